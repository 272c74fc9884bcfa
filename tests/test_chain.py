"""Chains of stages on the command line: plans, work folders, and going on after any stop."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from experts import knowing, upscaling
from PIL import Image

from univid import __main__ as command_line
from univid import checkpoints
from univid.cascade import Stage
from univid.video import from_uint8, read_video, to_uint8, write_video


@pytest.fixture(scope="module")
def models(small_checkpoint, tmp_path_factory):
    """Files of a base, a model of known frames and one that upscales."""
    folder = tmp_path_factory.mktemp("models")
    base = checkpoints.load(small_checkpoint, dtype=torch.float32)
    checkpoints.save(folder / "known.safetensors", knowing(base))
    checkpoints.save(folder / "upscale.safetensors", upscaling(base, height=48, width=64))
    return {
        "base": small_checkpoint,
        **{name: folder / f"{name}.safetensors" for name in ("known", "upscale")},
    }


@pytest.fixture
def call(models, tmp_path, monkeypatch, capsys):
    """Call the command line in an own folder; gives (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        status = command_line.main(list(map(str, words)))
        return status, *capsys.readouterr()

    return run


def chained(models, out, *words):
    return [
        "chain", "--prompt", "a red circle", "--checkpoint", models["base"], "--known-checkpoint",
        models["known"], "--upscale-checkpoint", models["upscale"], "--frames", 3, "--factor", 2,
        "--window", 3, "--out", out, *words,
    ]  # fmt: skip


def clip(path, number, fps=8.0, size=32):
    levels = np.random.default_rng(1).integers(0, 256, (number, 1, 1, 3))
    frames = np.broadcast_to(levels, (number, size, size, 3)).astype(np.uint8)
    write_video(from_uint8(frames), path, fps)
    return to_uint8(read_video(path)[0])


def pictures(folder):
    return [np.asarray(Image.open(path)) for path in sorted(Path(folder).glob("*.png"))]


def test_a_chain_says_what_it_will_make_and_makes_it(call, models, tmp_path):
    status, out, err = call(*chained(models, "movie.mp4"))
    assert status == 0, err
    plan = [line.split() for line in out.splitlines()]
    assert [line[0] for line in plan] == ["base", "interpolate", "upscale", "movie.mp4:"]
    assert [line[1] for line in plan[:3]] == ["3", "5", "5"]
    assert "64 x 48" in out.splitlines()[2] and "16 fps" in out.splitlines()[2]
    assert out.splitlines()[-1] == "movie.mp4: 5 frames of 64 x 48, 16 fps"
    video, fps = read_video(tmp_path / "movie.mp4")
    assert video.shape == (1, 3, 5, 48, 64) and fps == 16
    assert os.listdir(tmp_path) == ["movie.mp4"], "the work folder is gone"
    assert "upscale: 100%" in err


@pytest.mark.parametrize("number, factor", [(1, 2), (2, 3), (5, 4)])
def test_frames_and_rates_are_exact(call, models, tmp_path, number, factor):
    before = clip("in.mp4", number, 12.0)
    words = ("--video", "in.mp4", "--checkpoint", models["known"])
    status, _, err = call("interpolate", *words, "--factor", factor, "--out", "more")
    if number == 1:
        assert status == 2 and "at least 2 frames to interpolate between, got 1 in in.mp4" in err
    else:
        made = pictures(tmp_path / "more")
        assert status == 0 and len(made) == factor * (number - 1) + 1, err
        assert np.array_equal(np.stack(made[::factor]), before)
    assert call("extend", *words, "--more", 4, "--known", 1, "--out", "longer.mp4")[0] == 0
    video, fps = read_video(tmp_path / "longer.mp4")
    assert video.shape[2] == number + 4 and fps == 12
    words = ("--video", "in.mp4", "--checkpoint", models["upscale"], "--steps", 1)
    assert call("upscale", *words, "--out", "large")[0] == 0
    assert np.stack(pictures(tmp_path / "large")).shape == (number, 48, 64, 3)


def test_a_chain_goes_on_where_it_was(call, models, tmp_path, monkeypatch):
    assert call(*chained(models, "whole"))[0] == 0
    made, stop, run = [], [None], Stage._generate

    def counted(stage, window, *rest, **more):
        made.append((type(stage).__name__, window.new))
        if len(made) == stop[0]:
            raise KeyboardInterrupt
        return run(stage, window, *rest, **more)

    monkeypatch.setattr(Stage, "_generate", counted)
    for stop[0] in (1, 2, 2, 3):  # of the windows that are left
        assert call(*chained(models, "again"))[0] == 130
        made.clear()
    stop[0] = None
    folder = tmp_path / "again.work" / "2_interpolate"
    last = sorted(folder.glob("*.png"))[-1]
    last.unlink()  # half a window is none
    assert call(*chained(models, "again"))[0] == 0
    assert made == [("Interpolate", 3), ("Upscale", 3)]
    assert np.array_equal(pictures(tmp_path / "again"), pictures(tmp_path / "whole"))
    assert not (tmp_path / "again.work").exists()


def test_another_chain_does_not_go_on_there(call, models, tmp_path, monkeypatch):
    work = tmp_path / "work"
    monkeypatch.setattr(Stage, "_generate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert call(*chained(models, "a.mp4", "--work", work))[0] == 130
    before = sorted(work.rglob("*"))
    status, _, err = call(*chained(models, "a.mp4", "--work", work, "--seed", 3, "--steps", 1))
    assert status == 2 and "work holds the work of another chain, with another seed, steps;" in err
    os.utime(models["known"])
    status, _, err = call(*chained(models, "a.mp4", "--work", work))
    assert status == 2 and "another known_checkpoint" in err
    (work / "chain.json").write_text("{")
    status, _, err = call(*chained(models, "a.mp4", "--work", work))
    assert status == 2 and "cannot be read; delete" in err
    (work / "chain.json").unlink()
    status, _, err = call(*chained(models, "a.mp4", "--work", work))
    assert status == 2 and "already holds files" in err
    assert [path for path in before if path.name != "chain.json"] == sorted(work.rglob("*"))


def test_what_else_lies_in_a_work_folder_stays(call, models, tmp_path, monkeypatch):
    from univid import chain

    write = chain.FrameFolder.write

    def noted(folder, first, frames):
        write(folder, first, frames)
        for place in (folder.folder, folder.folder.parent):
            (place / "notes.txt").write_text("mine")

    monkeypatch.setattr(chain.FrameFolder, "write", noted)
    assert call(*chained(models, "a", "--stages", "base", "--work", "work"))[0] == 0
    there = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "work").rglob("*"))
    assert there == ["work/1_base", "work/1_base/notes.txt", "work/notes.txt"]


def test_a_damaged_frame_is_named(call, models, tmp_path, monkeypatch):
    run = Stage._generate

    def until(stage, window, *rest, **more):
        if type(stage).__name__ == "Upscale":
            raise KeyboardInterrupt
        return run(stage, window, *rest, **more)

    monkeypatch.setattr(Stage, "_generate", until)
    assert call(*chained(models, "a"))[0] == 130
    frame = tmp_path / "a.work/2_interpolate/frame_000002.png"
    frame.write_bytes(frame.read_bytes()[:60])
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    status, _, err = call(*chained(models, "a"))
    assert (
        status == 2 and "frame_000002.png cannot be read" in err and "delete it, and it is made again" in err
    )
    frame.unlink()
    assert call(*chained(models, "a"))[0] == 0


def test_a_full_disk_loses_nothing(call, models, tmp_path, monkeypatch):
    from univid.files import encode

    write, written = encode.encode_picture, []

    def full(frame, path):
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(frame, path)

    monkeypatch.setattr(encode, "encode_picture", full)
    status, _, err = call(*chained(models, "a"))
    assert status == 2 and "No space left" in err and err.count("\n") == err.count("\r") + 1 or "space" in err
    assert len(list((tmp_path / "a.work").rglob("*.png"))) == 4 and not (tmp_path / "a").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert call(*chained(models, "a"))[0] == 0 and len(pictures(tmp_path / "a")) == 5


def test_wrong_words_are_refused_before_any_work(call, models, tmp_path):
    clip("in.mp4", 3)
    small = ("--video", "in.mp4", "--checkpoint")
    for words, expected in (
        (("interpolate", *small, models["base"], "--out", "a.mp4"), "got one that makes clips of its own"),
        (("upscale", *small, models["known"], "--out", "a.mp4"), "use this one in `interpolate` or `extend`"),
        (("interpolate", *small, models["known"], "--factor", 1, "--out", "a.mp4"), "at least 2, got 1"),
        (
            ("upscale", *small, models["upscale"], "--height", 16, "--out", "a.mp4"),
            "at least the video's 32 x",
        ),
        (("upscale", *small, models["upscale"], "--height", 52, "--out", "a.mp4"), "multiple of 8, got 52"),
        (
            ("upscale", *small, models["upscale"], "--tile", 20, "--out", "a.mp4"),
            "multiple of 8 pixels from 32",
        ),
        *(
            ((name, *small, models[role], "--fps-number", 8, "--out", "a.mp4"), "trained without fps_number")
            for name, role in (("interpolate", "known"), ("extend", "known"), ("upscale", "upscale"))
        ),
        (("extend", *small, models["known"], "--known", 3, "--out", "a.mp4"), "known must be from 1 to 2"),
        (("interpolate", *small, models["known"], "--out", "in.mp4"), "in.mp4"),
        (("interpolate", "--video", "none.mp4", "--out", "a.mp4"), "none.mp4"),
        (chained(models, "a.mp4", "--stages", "interpolate"), "expected base and then any of interpolate"),
        (chained(models, "a.mp4", "--stages", "base,blur"), "expected base and then any of"),
        (chained(models, "a.mp4", "--prompt", ""), "expected --prompt, --image or both"),
        (chained(models, "a.gif", "--fps", 60), "fps must be from 0.01 to 50"),
        (
            ["chain", "--prompt", "a", "--checkpoint", models["base"], "--out", "a.mp4"],
            "interpolate needs a model of its own; give --known-ch",
        ),
    ):
        status, _, err = call(*words)
        assert status == 2 and expected in err, (words, err)
        assert err.count("\n") == 1, err
    assert os.listdir(tmp_path) == ["in.mp4"]


def test_sound_is_spoken_of(call, models, tmp_path):
    import av

    with av.open(str(tmp_path / "loud.mp4"), "w") as file:
        stream, sound = file.add_stream("libx264", 8), file.add_stream("aac", 8000)
        stream.width = stream.height = 32
        for _ in range(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        file.mux(sound.encode(frame))
        file.mux(stream.encode())
        file.mux(sound.encode())
    words = ("extend", "--checkpoint", models["known"], "--more", 1, "--known", 1)
    status, out, err = call(*words, "--video", "loud.mp4", "--out", "a.mp4")
    assert status == 0 and "loud.mp4: its sound is not copied" in out, err
    clip("quiet.mp4", 3)
    assert "sound" not in call(*words, "--video", "quiet.mp4", "--out", "b.mp4")[1]


def test_a_picture_goes_through_a_chain(call, models, tmp_path):
    status, _, err = call(*chained(models, "a", "--frames", 1))  # the last one said counts
    assert status == 0 and len(pictures(tmp_path / "a")) == 1, err


@pytest.mark.slow
def test_a_chain_is_killed_ten_times_and_ends_the_same(models, tmp_path):
    def begun(out):
        words = chained(models, tmp_path / out, "--stages", "base,extend,interpolate,upscale", "--more", 6)
        return subprocess.Popen([sys.executable, "-m", "univid", *map(str, words)], stderr=subprocess.DEVNULL)

    def made():
        return len(list((tmp_path / "again.work").rglob("*.png")))

    assert begun("whole").wait() == 0
    for there in sorted(random.Random(5).sample(range(1, 40), 10)):  # of 46 pictures
        process = begun("again")
        while made() < there:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert begun("again").wait() == 0
    whole, again = pictures(tmp_path / "whole"), pictures(tmp_path / "again")
    assert len(whole) == 2 * (3 + 6 - 1) + 1 and np.array_equal(whole, again)
    assert sorted(os.listdir(tmp_path)) == ["again", "whole"]

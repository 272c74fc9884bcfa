"""What the commands write: never onto what they read, whole or not at all, however they end."""

import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from univid import video
from univid.files import encode

ROOT = Path(__file__).parent.parent
PROMPT = "a red circle moves left on a black background"


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "--video", "v.mp4", "--out", "v.mp4"),
        ("generate", "--video", "v.mp4", "--out", "link.mp4"),
        ("generate", "--video", "v.mp4", "--out", "folder/../v.mp4"),
        ("generate", "--image", "p.png", "--out", "o.mp4", "--sheet", "p.png"),
        ("generate", "--image", "p.png", "--out", "o.mp4", "--sheet", "link.png"),
        ("generate", "--image", "p.png", "--last-image", "q.png", "--out", "o.mp4", "--sheet", "q.png"),
        ("generate", "--lora", "v.mp4:0.5", "--out", "v.mp4"),
        ("generate", "--checkpoint", "v.mp4", "--out", "v.mp4"),
        ("sweep", "--image", "p.png", "--out", "p.png"),
        ("import", "source", "--out", "source/unet/model.safetensors"),
        ("import", "source", "--out", "around/unet/model.safetensors"),
        ("import", "w.safetensors", "--out", "w.safetensors"),
        ("import", "source", "--vision", "w.safetensors", "--out", "w.safetensors"),
    ],
    ids=" ".join,
)
def test_no_input_is_replaced(run, tmp_path, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "source" / "unet").mkdir(parents=True)
    (tmp_path / "source" / "unet" / "config.json").write_text("{}")
    for path in (tmp_path / "w.safetensors", tmp_path / "source" / "unet" / "model.safetensors"):
        path.write_bytes(b"weights")
    for name in ("p.png", "q.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    video.write_video(torch.zeros(1, 3, 3, 32, 32), tmp_path / "v.mp4", 8)
    (tmp_path / "link.mp4").symlink_to("v.mp4")
    (tmp_path / "link.png").symlink_to("p.png")
    (tmp_path / "around").symlink_to("source")
    before = contents(tmp_path)
    more = ("--prompt", PROMPT) if words[0] in ("generate", "sweep") else ()
    status, out, err = run(*words, *more)
    assert status == 2 and "is read too" in err and "sample" not in err and out == ""
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("suffix", "width"), [(".mp4", 16392), (".gif", 65536), (".webm", 65544)])
def test_what_no_encoder_takes_is_refused_before_the_sampling(run, tmp_path, suffix, width):
    words = ("--frames", 1, "--height", 8, "--width", width, "--out", f"clip{suffix}")
    status, _, err = run("generate", "--prompt", PROMPT, *words)
    assert status == 2 and f"a {suffix} file holds at most" in err and "sample" not in err
    with pytest.raises(ValueError, match="pixels a side"):
        video.write_video(torch.zeros(1, 3, 1, 8, width), tmp_path / f"clip{suffix}", 8)
    assert contents(tmp_path) == {}


def test_an_encoder_that_fails_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(encode.ENCODERS, ".mp4", ("mp4", "libx264", {"preset": "no such"}))
    with pytest.raises(ValueError, match="clip.mp4 cannot be encoded"):
        video.write_video(torch.zeros(1, 3, 1, 8, 8), tmp_path / "clip.mp4", 8)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif", "frames"])
def test_a_disk_that_fills_leaves_the_older_file(tmp_path, name):
    clip = torch.rand(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if "." in name:
        (tmp_path / name).write_bytes(b"the user's own")
    before = contents(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, limits[1]))
    try:
        with pytest.raises(ValueError, match=f"{name} cannot be written"):
            video.write_video(clip, tmp_path / name, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_leaves_nothing(small_checkpoint, tmp_path, name, status):
    words = [
        sys.executable, "-m", "univid", "generate", "--prompt", PROMPT, "--checkpoint", small_checkpoint,
        "--steps", "900", "--out", tmp_path / "clip.mp4",
    ]  # fmt: skip
    log = tmp_path / "log"
    with open(log, "w") as stderr:
        # A shell starts background jobs deaf to Ctrl-C; here the program shall hear it all the same.
        hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(words, cwd=ROOT, stderr=stderr, preexec_fn=hear)
        for _ in range(600):
            if "sample" in log.read_text():
                break
            time.sleep(0.1)
        process.send_signal(getattr(signal, name))
        assert process.wait(timeout=120) == status
    assert log.read_text().splitlines()[-1] == "univid: interrupted; no unfinished file was left."
    assert "Traceback" not in log.read_text() and list(contents(tmp_path)) == ["log"]


def test_whoever_reads_may_stop_reading():
    command = [sys.executable, "-m", "univid", "inspect", "built-in"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0

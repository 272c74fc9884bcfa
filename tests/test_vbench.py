"""VBench's package on our videos: by its own code where it is installed, and what is said where it is not."""

import argparse
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from training.__main__ import main
from training.metrics import manifest, vbench_environment
from training.metrics.vbench_scores import NEEDS, OWN_PROMPTS, Bench, found, of_its_prompts
from univid.video import from_uint8, read_video, to_uint8, write_video

PROMPTS = ["In a still frame, a stop sign", "a toilet, frozen in time"]  # of VBench's list
FILES = ["first.mp4", "second.mp4", "third.mp4"]
INSTALLED = vbench_environment.default_folder()


@pytest.fixture
def videos(tmp_path):
    """Three videos of two prompts, the first of which is still, with a manifest."""
    folder = tmp_path / "videos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)
    for name, shake in zip(FILES, (0, 40, 90), strict=True):
        frames = np.clip(128 + (noise.astype(int) - 128) * shake // 128, 0, 255).astype(np.uint8)
        write_video(from_uint8(frames), folder / name, 8)
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    rows = [{"file": name, "prompt": prompt} for name, prompt in zip(FILES, prompts, strict=True)]
    manifest.write(folder, rows)
    return folder


@pytest.fixture
def environment(tmp_path):
    """One that is complete but for its packages: a list, and a Python that has no vbench."""
    folder = tmp_path / "environment"
    package = folder / "lib" / "python3.11" / "site-packages" / "vbench"
    package.mkdir(parents=True)
    dimensions = [["temporal_flickering", "scene"], ["temporal_flickering"], ["human_action"]]
    entries = [
        {"prompt_en": prompt, "dimension": names}
        for prompt, names in zip([*PROMPTS, "a person is clapping"], dimensions, strict=True)
    ]
    (package / vbench_environment.LIST).write_text(json.dumps(entries))
    (folder / "bin").mkdir()
    os.symlink(sys.executable, folder / "bin" / "python")
    (folder / vbench_environment.MARK).write_text('{"vbench": "0.1.5"}')
    return folder


@pytest.fixture
def installed():
    """The real one."""
    if not (INSTALLED / vbench_environment.MARK).is_file():
        reason = "VBench is NOT tested: `python -m training vbench --install` makes its environment"
        warnings.warn(reason, stacklevel=2)
        pytest.skip(reason)
    return INSTALLED


def run(*words):
    main(["vbench", *map(str, words)])


def flickering(path):
    """VBench's temporal flickering by its definition: 1 - the mean change from frame to frame."""
    frames = to_uint8(read_video(path)[0]).astype(float)
    return 1 - np.abs(np.diff(frames, axis=0)).mean() / 255


# With the real package


@pytest.mark.slow
def test_its_own_figures_of_our_videos(installed, videos, tmp_path, capsys):
    """A dimension that needs no weights, beside its definition; one whose weights are damaged, and others."""
    weights = tmp_path / "weights"
    (weights / "amt_model").mkdir(parents=True)
    (weights / "amt_model" / "amt-s.pth").write_bytes(b"no weights")
    before = set(videos.iterdir())
    run(videos, "--environment", installed, "--weights", weights)
    said = capsys.readouterr().out
    result = json.loads((videos / "vbench.json").read_text())
    score, each = result["results"]["temporal_flickering"]
    assert (
        result["vbench"] == "0.1.5"
        and result["mode"] == "vbench_standard"
        and set(result["results"]) == {"temporal_flickering"}
    )
    by_name = {row["video_path"]: row["video_results"] for row in each}
    assert by_name.keys() == set(FILES)
    expected = {name: flickering(videos / name) for name in FILES}
    # OpenCV and PyAV make RGB of the file's YUV in their own ways.
    assert by_name == pytest.approx(expected, abs=0.02)
    assert by_name["first.mp4"] == 1 and by_name["first.mp4"] > by_name["second.mp4"] > by_name["third.mp4"]
    assert score == pytest.approx(np.mean(list(by_name.values())))
    assert result["counts"] == {"temporal_flickering": {"videos": 3, "asked_for": 375}}
    assert "temporal_flickering" in said and f"{score:.4f}  3 of 375 videos" in said
    assert result["without"]["motion_smoothness"] == "has no video of its prompts"
    assert result["without"]["imaging_quality"] == "needs pyiqa_model/musiq_spaq_ckpt-358bb6af.pth"
    assert len(result["results"]) + len(result["without"]) == 16
    assert set(videos.iterdir()) == {*before, videos / "vbench.json"}
    run(
        videos,
        "--environment",
        installed,
        "--weights",
        weights,
        "--mode",
        "custom",
        "--out",
        tmp_path / "o.json",
    )
    custom = json.loads((tmp_path / "o.json").read_text())
    assert custom["results"]["temporal_flickering"][0] == pytest.approx(score)
    assert custom["without"]["motion_smoothness"].startswith("failed: ")  # by its own words
    assert {name for name, why in custom["without"].items() if "own prompts" in why} == set(OWN_PROMPTS)


def test_our_table_of_dimensions_is_the_packages(installed):
    listed = vbench_environment.entries(installed)
    assert {name for entry in listed for name in entry["dimension"]} == set(NEEDS)
    package = vbench_environment.list_path(installed).parent
    source = "".join(path.read_text() for path in [package / "utils.py", *package.glob("*_*.py")])
    source += (package / "third_party" / "ViCLIP" / "simple_tokenizer.py").read_text()
    for path in {path for paths in NEEDS.values() for path in paths} - {NEEDS["subject_consistency"][1]}:
        assert Path(path).name in source and path.split("/")[0] in source, path


def test_its_list_gives_the_prompts(installed):
    from training.metrics.prompts import read

    prompts = [row.prompt for row in read("vbench", installed)]
    assert len(vbench_environment.entries(installed)) == 946 and len(prompts) == len(set(prompts)) == 944
    assert prompts[:2] == PROMPTS
    assert all(manifest.vbench_name(prompt, 4) == f"{prompt}-4" for prompt in prompts)


# Without


def test_videos_have_the_prompts_of_their_manifest_or_names(videos):
    made = found(videos)
    assert [(video.path.name, video.prompt, video.sample) for video in made] == [
        ("first.mp4", PROMPTS[0], 0), ("second.mp4", PROMPTS[1], 0), ("third.mp4", PROMPTS[0], 1),
    ]  # fmt: skip
    (videos / manifest.NAME).unlink()
    (videos / "first.mp4").rename(videos / "a dog-1.mp4")
    assert [video.prompt for video in found(videos)] == ["a dog", "second", "third"]
    assert [video.path.name for video in of_its_prompts(found(videos), {"third"})] == ["third.mp4"]
    with pytest.raises(ValueError, match="none of 3 videos has a prompt of VBench's list"):
        of_its_prompts(found(videos), {"a cat"})


def test_five_videos_of_a_prompt_count(videos):
    for number in range(7):
        shutil.copy(videos / FILES[0], videos / f"x{number}.mp4")
    manifest.write(videos, [{"file": f"x{number}.mp4", "prompt": "a"} for number in range(7)])
    assert [video.path.name for video in of_its_prompts(found(videos), {"a"})] == [
        f"x{n}.mp4" for n in range(5)
    ]


def test_links_have_vbenchs_names(videos, tmp_path):
    listed = [{"prompt_en": prompt, "dimension": ["scene"]} for prompt in PROMPTS]
    for mode, names in {
        "standard": [f"{PROMPTS[0]}-0.mp4", f"{PROMPTS[1]}-0.mp4", f"{PROMPTS[0]}-1.mp4"],
        "custom": ["000000.mp4", "000001.mp4", "000002.mp4"],
    }.items():
        bench = Bench(argparse.Namespace(mode=mode), found(videos), listed)
        linked = bench._linked(tmp_path / mode)
        assert {name: video.path.name for name, video in linked.items()} == dict(
            zip(names, FILES, strict=True)
        )
        assert all(os.path.samefile(tmp_path / mode / name, linked[name].path) for name in names)


def test_a_dimension_that_cannot_run_says_why(videos, environment, tmp_path):
    words = [videos, "--environment", environment, "--weights", tmp_path]
    with pytest.raises(ValueError, match="temporal_flickering failed: .*No module named '(torch|vbench)'"):
        run(*words, "--dimensions", "temporal_flickering")  # in this environment, which is none
    with pytest.raises(
        ValueError, match="scene needs caption_model/tag2text_swin_14m.pth; weights are looked"
    ):
        run(*words, "--dimensions", "scene", "color")
    with pytest.raises(ValueError, match="scene is for VBench's own prompts"):
        run(*words, "--dimensions", "scene", "--mode", "custom")
    (tmp_path / NEEDS["human_action"][0]).parent.mkdir()
    (tmp_path / NEEDS["human_action"][0]).write_bytes(b"")
    with pytest.raises(ValueError, match="human_action has no video of its prompts"):
        run(*words, "--dimensions", "human_action")
    assert not (videos / "vbench.json").exists()


def test_what_cannot_be_scored_is_refused(videos, environment, tmp_path):
    given = ["--environment", environment, "--weights", tmp_path]
    with pytest.raises(ValueError, match="expected a folder of videos, got none; name one"):
        run()
    with pytest.raises(ValueError, match="no environment in .*nowhere; make it"):
        run(videos, "--environment", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected a folder of videos, got .*nowhere"):
        run(tmp_path / "nowhere", "--out", tmp_path / "o.json", *given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected videos in .*empty, got none"):
        run(tmp_path / "empty", *given)
    (videos / FILES[1]).unlink()
    with pytest.raises(ValueError, match="1 videos of .*manifest.jsonl are gone, the first is second.mp4"):
        run(videos, *given)
    for rows, message in {
        '{"file": "../x.mp4", "prompt": "a"}': "one folder, which .*manifest.jsonl does not say of ../x.mp4",
        '{"file": "x.mp4"}': "needs the prompt of every video.* does not say of x.mp4",
        "{": "manifest.jsonl, line 1: no JSON",
        '{"file": "x.webm", "prompt": "a"}': "one kind, .mp4 or .gif, got .webm",
        '{"file": "x", "prompt": "a"}': "got folders of frames",
    }.items():
        (videos / manifest.NAME).write_text(rows)
        with pytest.raises(ValueError, match=message):
            run(videos, *given)


def test_an_environment_is_made_of_a_python_that_fits_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "environment"
    with pytest.raises(ValueError, match="needs Python 3.10 or 3.11, got none that runs as nothing"):
        vbench_environment.install(folder, "nothing")
    monkeypatch.setattr(vbench_environment, "PYTHONS", ((2, 7),))
    version = ".".join(map(str, sys.version_info[:2]))
    with pytest.raises(ValueError, match=f"needs Python 2.7, got Python {version} as"):
        vbench_environment.install(folder, sys.executable)
    assert not folder.exists()
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else; name another folder"):
        vbench_environment.install(folder)
    assert (folder / "mine.txt").exists()


@pytest.mark.slow
def test_packages_that_cannot_be_had_are_said(tmp_path, monkeypatch):
    """And what was begun is no environment."""
    monkeypatch.setattr(vbench_environment, "PACKAGES", ("vbench==0.1.5",))
    monkeypatch.setattr(vbench_environment, "PYTHONS", (sys.version_info[:2],))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    folder = tmp_path / "environment"
    with pytest.raises(ValueError, match="cannot be installed, pip ended with 1: ERROR: .*vbench==0.1.5"):
        vbench_environment.install(folder)
    with pytest.raises(ValueError, match="no environment"):
        vbench_environment.interpreter(folder)

"""Figures over the states of a run, the commands, and what they refuse."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from denoise_runs import Maker
from PIL import Image

from training.__main__ import main
from training.config import LogsConfig
from training.loop import train
from training.lora import LoraConfig
from training.metrics import charts
from training.metrics.frames import flicker
from training.metrics.states import find_states
from training.metrics.videos import find_videos
from training.runs import task_of
from univid import checkpoints

PROMPTS = "a red circle\na blue square\n"


@pytest.fixture(scope="module")
def runs(media, small_checkpoint, tmp_path_factory):
    """Runs of three steps, each of which is kept: of the whole network, and of a LoRA."""
    root = tmp_path_factory.mktemp("runs")
    make = Maker(media, small_checkpoint, root)
    for name, options in (
        ("whole", {"stage": "full"}),
        ("lora", {"stage": "lora", "lora": LoraConfig(2, 2.0, "all")}),
    ):
        recipe = make.recipe(name=name, batch={"video": 1}, **options)
        logs = LogsConfig(save_every=1, keep=9, sample_every=0, validate_every=0)
        recipe = dataclasses.replace(recipe, steps=3, logs=logs)
        train(recipe, task_of(recipe, root), root / name, progress=False)
    return root


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text(PROMPTS)

    def called(*words):
        capsys.readouterr()
        main(list(map(str, words)))
        return capsys.readouterr().out

    return called


def write_videos(folder, captions, frames=5):
    folder.mkdir()
    for number, caption in enumerate(captions):
        clip = np.random.default_rng(number).integers(0, 256, (frames, 32, 32, 3), dtype=np.uint8)
        np.save(folder / f"{number}.npy", clip)
        if caption:
            (folder / f"{number}.txt").write_text(caption)
    return folder


def test_the_states_of_a_run_are_found_and_opened(runs):
    for name in ("whole", "lora"):
        states = find_states([runs / name])
        assert [state.step for state in states] == [1, 2, 3] and states[-1].path.name == "final.pt"
    weights = []
    for state in find_states([runs / "whole"]):
        with state.files() as (path, lora):
            model = checkpoints.load(path)
            assert lora is None and model.info["training_step"] == str(state.step)
            weights.append(model.unet.out[2].weight.float())
        assert not path.exists()
    assert not weights[0].equal(weights[1]) and not weights[1].equal(weights[2])
    with find_states([runs / "lora"])[0].files() as (base, lora):
        assert checkpoints.load(base).info["source"] == "random weights of a test" and lora.exists()


@pytest.mark.parametrize("name", ["whole", "lora"])
def test_a_curve_over_a_run(call, runs, tmp_path, name):
    videos = write_videos(tmp_path / "videos", ["a red circle", "a blue square", "a cat"])
    words = ["progress", runs / name, "--prompts", "prompts.txt", "--videos", videos, "--draws", 2]
    words += ["--metrics", "flicker,text,captions", "--out", "out"]
    said = call(*words)
    found = json.loads((tmp_path / "out" / "progress.json").read_text())
    assert [point["step"] for point in found["figures"]["flicker"]] == [1, 2, 3]
    made = [flicker(video.read()[0]) for video in find_videos(tmp_path / "out" / "step_00000002")]
    assert len(made) == 2 and found["figures"]["flicker"][1]["value"] == pytest.approx(np.mean(made))
    values = [point["value"] for point in found["figures"]["text"]]
    assert len(set(values)) == 3 and all(-1 <= value <= 1 for value in values)
    assert all(point["value"] in (0, 1 / 3, 2 / 3, 1) for point in found["figures"]["captions"])
    assert said.count("\n| step_0000000") == 3 and "progress.png" in said
    with Image.open(tmp_path / "out" / "progress.png") as picture:
        assert picture.format == "PNG" and picture.height > 600
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("step_*/*/*")}
    assert before and call(*words) == said  # and the videos are found again
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_checkpoints_are_ordered_by_their_steps(runs, small_checkpoint, tmp_path):
    paths = []
    for state in find_states([runs / "whole"]):
        with state.files() as (path, _):
            paths.append(tmp_path / f"{9 - state.step}.safetensors")
            paths[-1].write_bytes(path.read_bytes())
    assert [state.step for state in find_states(paths[::-1])] == [1, 2, 3]
    mixed = find_states([paths[1], small_checkpoint])  # one of them tells no step
    assert [(state.name, state.step) for state in mixed] == [(paths[1].stem, None), ("small", None)]


def test_a_picture_without_steps_has_names(tmp_path):
    points = [{"state": f"{n}", "step": None, "value": n, "low": None, "high": None} for n in (1, 2)]
    charts.progress({"flicker": points}, tmp_path / "a.png")
    charts.progress({"flicker": [points[0] | {"step": 5}]}, tmp_path / "b.png")
    sizes = [Image.open(tmp_path / name).size for name in ("a.png", "b.png")]
    assert sizes[0] == sizes[1]


def test_captions_and_tradeoff_write_what_they_say(call, small_checkpoint, tmp_path):
    videos = write_videos(tmp_path / "videos", ["a red circle", "a blue square"])
    said = call("captions", videos, "--checkpoint", small_checkpoint, "--draws", 3)
    found = json.loads((videos / "captions.json").read_text())
    assert f"{100 * found['accuracy']['value']:.1f} % of 2 videos" in said and "chance 50.0 %" in said
    assert found["checkpoint"]["name"] == "small.safetensors" and len(found["checkpoint"]["sha256"]) == 64
    assert [len(row["losses"]) for row in found["rows"]] == [2, 2] and found["draws"] == 3

    said = call(
        "tradeoff",
        "--checkpoint",
        small_checkpoint,
        "--prompts",
        "prompts.txt",
        "--out",
        "out",
        "--points",
        3,
    )
    found = json.loads((tmp_path / "out" / "tradeoff.json").read_text())
    assert len(found["points"]) == 3 and found["rows"][0]["picture"] == "made of: a blue square"
    assert "| unrelated | |" in said and (tmp_path / "out" / "tradeoff.png").stat().st_size > 10_000
    Image.new("RGB", (48, 30), "red").save(tmp_path / "red.png")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a cat", "image": "red.png"}\n')
    call(
        "tradeoff", "--checkpoint", small_checkpoint, "--prompts", "rows.jsonl", "--out", "one", "--points", 2
    )
    found = json.loads((tmp_path / "one" / "tradeoff.json").read_text())
    assert found["rows"] == [{"prompt": "a cat", "picture": "red.png"}]


def test_refusals(call, runs, small_checkpoint, tmp_path, caplog):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.txt").write_text("a cat\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a cat", "image": "red.png"}\n{"prompt": "a dog"}\n')
    Image.new("RGB", (8, 8)).save(tmp_path / "red.png")
    no_captions = write_videos(tmp_path / "silent", ["a cat", ""])
    one = write_videos(tmp_path / "one", ["a cat"])
    model = ("--checkpoint", small_checkpoint)
    out = ("--out", "out")
    for words, told in (
        (("captions", "empty", *model), "holds no video"),
        (("captions", no_captions, *model), "1 of 2 videos have no caption, the first: 1"),
        (("captions", one, *model), "at least 2 different captions"),
        (("captions", one, *model, "--captions", 1), "at least 2 captions to choose among, got 1"),
        (("tradeoff", *model, "--prompts", "one.txt", *out), "at least 2 different prompts"),
        (("tradeoff", *model, "--prompts", "none.txt", *out), "none.txt"),
        (("tradeoff", *model, "--prompts", "rows.jsonl", *out), "pictures in all or none, got 2 rows and 1"),
        (("tradeoff", *model, "--prompts", "one.txt", *out, "--points", 1), "at least 2 points"),
        (("tradeoff", *model, "--prompts", "one.txt", *out, "--clip", "ViT-B-32", "x.pt"), "which is none"),
        (("progress", "empty", "--metrics", "flicker", "--prompts", "one.txt", *out), "expected a run in"),
        (("progress", runs / "whole", "--metrics", "flicker", *out), "name it by --prompts"),
        (("progress", runs / "whole", "--metrics", "captions", *out), "name their folder by --videos"),
        (("progress", runs / "whole", "--metrics", ",", "--prompts", "one.txt", *out), "at least one metric"),
        (("progress", runs / "whole", "--metrics", "fvt", "--prompts", "one.txt", *out), "are .*; got fvt"),
    ):
        with pytest.raises(ValueError, match=told):
            call(*words)
    assert not list(tmp_path.glob("out/*"))  # nothing is made before what is wrong is said

    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((runs / "whole" / "config.json").read_bytes())
    with pytest.raises(ValueError, match="has no states yet; let the run reach its first one"):
        find_states([bare])
    (bare / "final.pt").write_bytes(b"cut")
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="has no states yet"):
        find_states([bare])
    assert "final.pt is damaged and left out" in caplog.text
    tiny = json.loads((bare / "config.json").read_text()) | {"task": "tiny"}
    (bare / "config.json").write_text(json.dumps(tiny))
    with pytest.raises(ValueError, match="is a run of the built-in model"):
        find_states([bare])

"""Motion customisation: what counts as the motion, what is asked for, and that one clip teaches it."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from training.__main__ import main
from training.stages.parts import parameters_of
from training.tiny import motion, shapes
from training.tiny.motion import FULL, LORA, clip, diagonal, marks, others, recipe, travel
from training.tiny.scorer import read
from training.tiny.shapes import DIRECTIONS, SEEN_SCENES, Scene
from univid import checkpoints
from univid.checkpoints.lora import read_lora
from univid.video import read_video, to_uint8

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SCENE = Scene("blue", "cross", "moves right", "white")


def seen(start, end, radius=0.16, scene=SCENE):
    return read(clip(scene, (*start, radius), (*end, radius)))


def test_a_way_to_the_lower_right_counts():
    for scene in others():
        assert diagonal(seen((0.3, 0.3), (0.7, 0.7), scene=scene)), scene
    reading = seen((0.3, 0.35), (0.6, 0.6))
    assert diagonal(reading) and np.allclose(travel(reading), (0.3, 0.25), atol=0.01)
    assert diagonal(seen((0.3, 0.3), (0.66, 0.5))) and diagonal(seen((0.3, 0.3), (0.5, 0.66)))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ((0.5, 0.5), (0.5, 0.5)),
        ((0.45, 0.45), (0.55, 0.55)),
        ((0.3, 0.5), (0.7, 0.5)),
        ((0.5, 0.3), (0.5, 0.7)),
        ((0.25, 0.4), (0.75, 0.6)),
        ((0.7, 0.7), (0.3, 0.3)),
        ((0.3, 0.7), (0.7, 0.3)),
        ((0.7, 0.3), (0.3, 0.7)),
    ],
    ids=["still", "hardly", "right", "down", "too flat", "upper left", "upper right", "lower left"],
)
def test_another_way_does_not(start, end):
    reading = seen(start, end)
    assert reading.found and reading.steadiness == 1 and not diagonal(reading)


def test_no_motion_that_the_model_knows_does():
    scenes = [scene for scene in SEEN_SCENES if scene.background == "gray"]
    for index, scene in enumerate(scenes):
        reading = read(shapes.draw(scene, np.random.default_rng(index), 12, 64))
        assert not diagonal(reading), scene
    assert {scene.motion for scene in scenes} > set(DIRECTIONS)


def test_jumping_and_nothing_do_not():
    rng = np.random.default_rng(0)
    centers = np.linspace(0.3, 0.7, 12)[:, None] + rng.uniform(-0.1, 0.1, (12, 2))
    poses = np.column_stack([centers, np.full(12, 0.16)])
    assert not diagonal(read(shapes.render(SCENE, poses, 64)))
    nothing = read(np.full((12, 64, 64, 3), 90, np.uint8))
    assert not diagonal(nothing) and not travel(nothing).any()
    assert not any(marks(SCENE, nothing).values())


def test_what_is_asked_for_shares_the_words_of_motion_alone():
    scenes = others()
    assert len(set(scenes)) == len(scenes) == 5 * 3 * 2 and scenes == others()
    for scene in scenes:
        assert scene.motion == motion.CLIP.motion
        assert all(getattr(scene, word) != getattr(motion.CLIP, word) for word in motion.CONTENT)


def test_the_clip_is_a_users(tmp_path):
    motion.draw(tmp_path)
    (path,) = tmp_path.glob("*.mkv")
    assert path.with_suffix(".txt").read_text("utf-8") == motion.CLIP.caption
    video, rate = read_video(path)
    assert rate == motion.FPS
    reading = read(to_uint8(video))
    assert diagonal(reading) and all(marks(motion.CLIP, reading).values())


def test_temporal_attention_alone_is_trained(tmp_path):
    low, full = recipe(LORA, tmp_path), recipe(FULL, tmp_path)
    assert low.options.lora.parts == full.options.parts == motion.PARTS
    assert (low.options.stage, full.options.stage) == ("lora", "full")
    same = {"lora", "stage", "parts"}
    a, b = ({k: v for k, v in asdict(r.options).items() if k not in same} for r in (low, full))
    assert a == b


def test_the_command_trains_scores_and_copies(tmp_path, monkeypatch, capsys):
    train = motion.train_missing
    monkeypatch.setattr(motion, "train_missing", lambda root, device: train(root, device, steps=1))
    copy = tmp_path / "copy.safetensors"
    main(["--root", str(tmp_path), "motion", "--clips", "2", "--out", str(copy)])
    result = json.loads((tmp_path / "motion.json").read_text())
    assert list(result["rows"]) == list(result["seen"]) == ["before", "LoRA", "full rank"]
    assert all(len(clips) == 2 for clips in result["seen"].values())
    assert result["rows"]["before"]["customised"]["value"] == 0
    shown = capsys.readouterr().out
    assert "| before | 0.0 [" in shown and "Goals met: 0 of 2" in shown

    unet = checkpoints.load("built-in", dtype=torch.float32).unet
    parts = parameters_of(unet, motion.PARTS)
    lora = read_lora(copy)
    assert {f"{path}.weight" for path in lora.layers} == {name for name in parts if name.endswith(".weight")}
    trained = checkpoints.load(tmp_path / FULL / f"{FULL}.safetensors", dtype=torch.float32).unet.state_dict()
    changed = {name for name, weight in unet.state_dict().items() if not torch.equal(weight, trained[name])}
    assert changed and changed <= parts


def test_no_clips_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one clip"):
        motion.evaluate({}, 0, tmp_path / "motion.json")


def test_the_lora_that_ships_moves_other_objects(tmp_path):
    path = checkpoints.built_in_path().with_name("loras") / "univid-tiny-diagonal.safetensors"
    assert path.stat().st_size < 500_000
    model = checkpoints.load("built-in", dtype=torch.float32)
    before = [diagonal(read(video)) for video in motion.make(model, range(4))]
    checkpoints.apply_lora(model, path)
    after = [diagonal(read(video)) for video in motion.make(model, range(4))]
    assert not any(before) and sum(after) >= 3


@pytest.mark.slow
def test_one_clip_teaches_its_motion(tmp_path):
    made = motion.train_missing(tmp_path, torch.device("cpu"))
    result = motion.evaluate(made, 10, tmp_path / "motion.json")
    moved = {name: figures["customised"]["value"] for name, figures in result["rows"].items()}
    assert moved["before"] == 0 and min(moved["LoRA"], moved["full rank"]) >= 0.6, moved

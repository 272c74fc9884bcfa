"""The checkpoint that ships: it loads, it is small, and it does what its model card says."""

from pathlib import Path

import numpy as np
import pytest
import torch

import univid.checkpoints as checkpoints
from training.tiny import known_scores, shapes, upscale_scores
from training.tiny.scorer import read
from training.tiny.shapes import Scene
from univid.cascade import Interpolate, Told, Upscale, whole
from univid.checkpoints.native import ASSETS, BUILT_IN
from univid.pipeline import Clip, generate
from univid.presets import PRESETS
from univid.roles import role
from univid.video import read_image, to_uint8

FOLDER = Path(checkpoints.__file__).parents[1] / "assets"
SCENES = [
    Scene("red", "circle", "moves left", "black"),
    Scene("green", "triangle", "grows", "white"),
    Scene("yellow", "cross", "moves down", "gray"),
    Scene("blue", "square", "moves right", "white"),
]


@pytest.fixture(scope="module")
def model():
    return checkpoints.load("built-in")


def test_it_is_the_tiny_preset_and_small(model):
    assert model.config == PRESETS["tiny"]
    assert checkpoints.built_in_path().stat().st_size <= 32 * 2**20
    assert all(torch.isfinite(p).all() for part in (model.unet, model.vae) for p in part.parameters())


def test_colour_and_background_follow_the_text(model):
    video = generate(model, [scene.caption for scene in SCENES], clip=Clip(frames=4), seed=1)
    readings = [read(frames) for frames in map(to_uint8, video.split(1))]
    right = [
        (r.color, r.background) == (s.color, s.background) for r, s in zip(readings, SCENES, strict=True)
    ]
    swapped = [
        (r.color, r.background) == (s.color, s.background) for r, s in zip(readings, SCENES[1:], strict=False)
    ]
    assert sum(right) >= 3 and not any(swapped)


def test_colour_and_background_follow_the_picture(model):
    picture = read_image(FOLDER / "sample.png")  # a blue square on white
    reading = read(to_uint8(generate(model, "", picture, clip=Clip(frames=4), seed=2)))
    assert (reading.color, reading.background) == ("blue", "white")


def test_the_experts_are_what_their_names_say():
    found = {name: checkpoints.load(name) for name in ASSETS if name != BUILT_IN}
    assert {name: role(model.profile) for name, model in found.items()} == {
        "built-in-known": "known",
        "built-in-upscale": "upscale",
    }
    assert sum(checkpoints.built_in_path(name).stat().st_size for name in found) <= 36e6
    for model in found.values():
        assert model.info["base"] == BUILT_IN
        assert all(torch.isfinite(p).all() for part in (model.unet, model.vae) for p in part.parameters())


def test_frames_in_between_are_like_their_neighbours():
    """Of clips that were not trained on: known frames stay, the others keep colour, background and way."""
    model, near = checkpoints.load("built-in-known"), []
    for index in range(3):
        video, scene = known_scores.truth(index, 9)
        made = whole(Interpolate(model, video[::4], Told(scene.caption, seed=index)))
        assert (made[::4] == video[::4]).all() and len(made) == 9
        reading, true = read(made), read(video)
        assert (reading.color, reading.background) == (scene.color, scene.background)
        near += list(np.linalg.norm(reading.positions - true.positions, axis=1)[[1, 2, 3, 5, 6, 7]])
    assert np.median(near) < 0.03


def test_larger_frames_are_nearer_to_the_truth_than_the_decoder_of_the_small_ones():
    model = checkpoints.load("built-in-upscale")
    small, scene = shapes.clip(1, seed=upscale_scores.SEED, frames=12)
    truth, _ = shapes.clip(1, seed=upscale_scores.SEED, frames=12, size=128)
    made = whole(Upscale(model, small, Told(scene.caption)))
    assert made.shape == truth.shape
    mine = upscale_scores.figures(made, truth)["PSNR"]
    assert mine > upscale_scores.figures(known_scores.coded(checkpoints.load(), truth), truth)["PSNR"]

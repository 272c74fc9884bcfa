"""The checkpoint that ships: it loads, it is small, and it does what its model card says."""

import dataclasses
from pathlib import Path

import pytest
import torch

import univid.checkpoints as checkpoints
from training.tiny.scorer import read
from training.tiny.shapes import Scene
from univid.config import PositionConfig
from univid.pipeline import Clip, generate
from univid.presets import PRESETS
from univid.video import read_image, to_uint8

ASSETS = Path(checkpoints.__file__).parents[1] / "assets"
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
    """But for the frequencies of frame places, which are those that it was trained with."""
    unet = PRESETS["tiny"].unet
    temporal = dataclasses.replace(unet.temporal, position=PositionConfig(1000.0, 10000.0))
    expected = dataclasses.replace(PRESETS["tiny"], unet=dataclasses.replace(unet, temporal=temporal))
    assert model.config == expected
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
    picture = read_image(ASSETS / "sample.png")  # a blue square on white
    reading = read(to_uint8(generate(model, "", picture, clip=Clip(frames=4), seed=2)))
    assert (reading.color, reading.background) == ("blue", "white")

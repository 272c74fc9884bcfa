"""The scorer of larger clips: the truth meets the goals, what is blurred, flickers or is noise does not."""

import dataclasses

import numpy as np
import pytest
import torch
from experts import upscaling

from training.tiny import shapes
from training.tiny import upscale_scores as scores
from training.tiny.machine import Machine
from univid import checkpoints


def rows(**made):
    """Figures as `evaluate` gives them, of one value each."""
    return {
        name.replace("_", " "): {word: {"value": value} for word, value in scores.figures(*clips).items()}
        for name, clips in made.items()
    }


@pytest.fixture(scope="module")
def clips():
    """A clip small, and as large as the truth is."""
    return tuple(shapes.clip(3, seed=scores.SEED, frames=4, size=size)[0] for size in (64, 128))


def test_figures_by_hand():
    truth = np.zeros((2, 3, 2, 3), np.uint8)
    made = truth.copy()
    made[1] = 10
    made[:, 0] += 4
    found = scores.figures(made, truth)
    error = (16 + 196 + 2 * 100) / 6
    assert found["PSNR"] == pytest.approx(10 * np.log10(255**2 / error))
    assert found["change"] == 10 and found["gradient"] == pytest.approx((4 / 2 + 0) / 2)


def met(clips, made, vae=None):
    small, truth = clips
    found = rows(
        model=(made, truth), bicubic=(scores.enlarged(small, 128), truth), truth=(truth, truth),
        the_VAEs_truth=(truth if vae is None else vae, truth),
    )  # fmt: skip
    found["the VAE's truth"] = found.pop("the VAEs truth")
    return [check["met"] for check in scores.checks(found)]


def test_the_truth_meets_every_goal_and_the_small_clip_does_not(clips):
    small, truth = clips
    assert met(clips, truth) == [True] * 5
    assert met(clips, scores.enlarged(small, 128))[:2] == [False, False]
    assert met(clips, np.repeat(np.repeat(small, 2, 1), 2, 2))[0] is False


def test_flicker_and_noise_are_seen(clips):
    truth = clips[1]
    flicker = np.clip(truth.astype(int) + 8 * (np.arange(4) % 2)[:, None, None, None], 0, 255)
    assert met(clips, flicker.astype(np.uint8))[4] is False
    noise = np.random.default_rng(0).integers(-9, 10, truth.shape)
    assert met(clips, np.clip(truth + noise, 0, 255).astype(np.uint8))[3] is False


def test_random_weights_score_nothing(small_checkpoint, tmp_path):
    path = tmp_path / "upscale.safetensors"
    base = checkpoints.load(small_checkpoint, dtype=torch.float32)
    checkpoints.save(path, dataclasses.replace(upscaling(base, height=96, width=96, steps=1)))
    result = scores.evaluate(str(path), 1, Machine(), tmp_path / "upscale.json")
    assert not result["checks"][0]["met"]
    text = scores.report(result)
    assert "Missed: PSNR above bicubic's" in text and "the VAE's truth: PSNR" in text
    assert (tmp_path / "upscale.json").stat().st_size > 500

"""Metrics of a clip's frames, on clips whose figures are known: translation, brightness, noise, cuts."""

import cv2
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage import data

from training.metrics import frames as module
from training.metrics.frames import METRICS, change, flicker, motion, steadiness, warp_error

PICTURE = data.astronaut()


def panned(step, frames=5, side=96):
    """A window that goes to the left over a picture: what it shows goes `step` whole pixels to the right."""
    starts = [200 - step * t for t in range(frames)]
    return np.stack([PICTURE[100 : 100 + side, x : x + side] for x in starts])


def still(frames=5, side=96):
    return panned(0, frames, side)


def noisy(clip, level, seed=0):
    noise = np.random.default_rng(seed).normal(0, level, clip.shape)
    return np.clip(clip + noise, 0, 255).round().astype(np.uint8)


def grey(levels, side=32):
    return np.stack([np.full((side, side, 3), level, np.uint8) for level in levels])


def test_a_still_clip_has_nothing_of_anything():
    found = {name: metric(still()) for name, metric in METRICS.items()}
    assert found == {"steadiness": 1, "warp_error": 0, "motion": 0, "change": 0, "flicker": 0}


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_translation_is_known(step):
    clip = panned(step)
    assert motion(clip) == pytest.approx(100 * step / 96, rel=0.1)
    assert steadiness(clip) > 0.995 and warp_error(clip) < 2e-4
    plain = np.abs(np.diff(clip.astype(float), axis=0)).mean()
    assert change(clip) == pytest.approx(plain) and plain > 5  # without the flow it looks unsteady
    assert 1 - plain / 255 < steadiness(clip) - 0.02


def test_motion_is_of_what_moves_most():
    rng = np.random.default_rng(0)
    patch = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (40, 40))
    clip = still(6).copy()
    for t, frame in enumerate(clip):
        frame[30:70, 20 + 2 * t : 60 + 2 * t] = patch
    assert motion(clip) == pytest.approx(100 * 2 / 96, rel=0.25)
    assert motion(clip[::2]) == pytest.approx(2 * motion(clip), rel=0.25)
    wide = np.concatenate([clip, still(6)], axis=2)  # [t 96 192 3]: the shorter side is the same
    assert motion(wide) == pytest.approx(motion(clip), rel=0.25)


def test_the_flow_is_read_the_right_way_round():
    pair = next(module._pairs(panned(3, 2)))
    assert np.median(pair.flow, axis=(0, 1)) == pytest.approx([3, 0], abs=0.05)
    down = next(module._pairs(panned(3, 2).transpose(0, 2, 1, 3).copy()))
    assert np.median(down.flow, axis=(0, 1)) == pytest.approx([0, 3], abs=0.05)
    assert not pair.seen[:, -3:].any() and pair.seen[:, :-12].mean() > 0.9  # leaves on the right


def test_sampling_along_the_flow_is_bilinear():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(20, 24, 3)).astype(np.float32)
    place = rng.uniform([0, 0], [23, 19], (20, 24, 2)).astype(np.float32)
    order = [place[..., 1], place[..., 0]]
    right = np.stack([map_coordinates(image[..., c], order, order=1) for c in range(3)], -1)
    assert module._at(image, place) == pytest.approx(right, abs=0.1)  # OpenCV goes by 32nds of a pixel
    wrong = np.stack([map_coordinates(image[..., c], order[::-1], order=1) for c in range(3)], -1)
    assert np.abs(module._at(image, place) - wrong).max() > 1


def test_warp_error_is_the_formula_and_its_mask_counts():
    clip = noisy(panned(2), 5)
    by_hand = []
    for pair in module._pairs(clip):
        total = sum((pair.difference[..., c] / 255) ** 2 for c in range(3)) / 3
        by_hand.append((pair.seen * total).sum() / pair.seen.sum())
    assert warp_error(clip) == pytest.approx(np.mean(by_hand), rel=1e-5)

    covered = still(4).copy()  # a blank wall comes in from the left and covers the picture
    for t, frame in enumerate(covered):
        frame[:, : 12 * t] = 90
    unmasked = np.mean([np.square(pair.difference / 255).mean() for pair in module._pairs(covered)])
    assert warp_error(covered) < unmasked / 3


def test_noise_of_known_strength():
    clip = noisy(grey([128] * 8, 64), 10)
    expected = 10 * 2 / np.pi**0.5  # mean of |a - b| for two normal values
    assert change(clip) == pytest.approx(expected, rel=0.01)
    cells = (
        10 / 8 * (1.5 * 2 / np.pi) ** 0.5
    )  # cells of 8 x 8 pixels; a - (b + c) / 2 has 1.5 times a's variance
    assert flicker(clip) == pytest.approx(cells, rel=0.1)


@pytest.mark.parametrize("step", [0, 3])
def test_noise_levels_rank(step):
    clips = [noisy(panned(step, 4), level) for level in (0, 4, 10, 25, 60)]
    for metric, sign in ((steadiness, -1), (warp_error, 1), (change, 1), (flicker, 1)):
        values = [sign * metric(clip) for clip in clips]
        assert all(a < b for a, b in zip(values, values[1:], strict=False)), metric.__name__
    assert warp_error(clips[0]) < warp_error(clips[1]) / 2


def test_flicker_of_known_brightness():
    assert flicker(grey([100, 120] * 4)) == pytest.approx(20)  # +-10 around 110
    assert flicker(grey(range(100, 180, 10))) == 0  # an even fade
    assert change(grey(range(100, 180, 10))) == 10
    halves = grey([100, 120] * 4)
    halves[:, :, 16:] = halves[::-1, :, 16:]  # out of step: the whole frame's mean never changes
    assert np.ptp(halves.mean((1, 2, 3))) == 0 and flicker(halves) == pytest.approx(20)
    assert flicker(panned(2)) < 3 < 8 < change(panned(2))


def test_brightness_that_pulses_is_unsteady():
    pulsing = still(6).astype(np.int16)
    pulsing[1::2] += 24
    pulsing = np.clip(pulsing, 0, 255).astype(np.uint8)
    assert steadiness(pulsing) < 0.94 and flicker(pulsing) == pytest.approx(24, rel=0.15)


def test_cuts_and_shuffled_frames_are_not_forgiven():
    cut = np.concatenate([still(2), data.chelsea()[None, 50:146, 50:146].repeat(2, 0)])
    assert change(cut[1:3]) > 30 and steadiness(cut[1:3]) < 0.9 < 0.999 < steadiness(cut[:2])
    clip = panned(4, 8, 128)
    shuffled = clip[np.random.default_rng(0).permutation(8)]
    assert steadiness(shuffled) < steadiness(clip) and motion(shuffled) > 1.5 * motion(clip)
    random = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    assert 0.6 < steadiness(random) < 0.8


def test_a_metric_does_not_change_its_clip():
    clip = noisy(panned(2), 5)
    kept = clip.copy()
    for metric in METRICS.values():
        assert metric(clip) == metric(clip[:])
    assert (clip == kept).all()


@pytest.mark.parametrize("name", METRICS)
def test_refusals(name):
    metric, least = METRICS[name], 3 if name == "flicker" else 2
    with pytest.raises(ValueError, match=f"at least {least} frames, got {least - 1}"):
        metric(still(least - 1))
    metric(still(least))
    for wrong in (still().astype(np.float32), still()[0], still()[..., :1]):
        with pytest.raises(ValueError, match=r"expected a clip as uint8 \[t h w 3\]"):
            metric(wrong)
    small = still(4, 15)
    if name in ("change", "flicker"):
        assert metric(small[:, :3, :5]) == 0
    else:
        with pytest.raises(ValueError, match="at least 16 x 16 pixels, got 15 x 15"):
            metric(small)
        metric(still(4, 16))

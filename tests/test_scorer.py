"""The scorer, checked on clips whose truth is known and on controls that must fail."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from training.tiny.scorer import agreement, distance, read
from training.tiny.shapes import RGB, SCENES, Scene, draw, render


def blur(video, rng, sigma=0.7, noise=0.03):
    soft = gaussian_filter(video.astype(np.float32), (0, sigma, sigma, 0))
    return np.clip(soft + 255 * noise * rng.standard_normal(video.shape), 0, 255).round().astype(np.uint8)


def true_clips(frames=12, size=64, degrade=None, scenes=SCENES, seed=0):
    for i, scene in enumerate(scenes):
        rng = np.random.default_rng([seed, i])
        video = draw(scene, rng, frames, size)
        yield (degrade(video, rng) if degrade else video), scene


@pytest.fixture(scope="module")
def readings():
    return [read(video) for video, _ in true_clips()]


@pytest.mark.parametrize("degrade", [None, blur])
@pytest.mark.parametrize(("size", "frames", "every"), [(64, 12, 1), (64, 4, 1), (96, 8, 3), (128, 6, 5)])
def test_true_clips_are_read_right(degrade, size, frames, every):
    clips = true_clips(frames, size, degrade, SCENES[::every])
    results = [(read(video), scene) for video, scene in clips]
    assert np.mean([agreement(reading, scene)["all"] for reading, scene in results]) >= 0.99
    assert np.mean([reading.moves for reading, _ in results]) >= 0.99
    assert np.mean([reading.steadiness for reading, _ in results]) >= 0.99


def test_shuffled_captions_are_near_chance(readings):
    order = np.random.default_rng(0).permutation(len(SCENES))
    rows = [agreement(reading, SCENES[i]) for reading, i in zip(readings, order, strict=True)]
    chance = {"color": 1 / 6, "shape": 1 / 4, "background": 1 / 3, "motion": 1 / 6, "all": 1 / 432}
    for word, share in chance.items():
        assert abs(np.mean([row[word] for row in rows]) - share) < 0.07, word


def test_noise_and_empty_clips_are_not_found():
    rng = np.random.default_rng(0)
    uniform = rng.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    blobs = gaussian_filter(rng.standard_normal((12, 64, 64, 3)), (0, 4, 4, 0))
    blobs = np.clip(128 + 500 * blobs, 0, 255).astype(np.uint8)
    grey = blur(np.full((12, 64, 64, 3), 115, np.uint8), rng)
    for video in (uniform, blobs, grey):
        reading = read(video)
        assert not reading.found and not reading.moves and reading.steadiness == 0
        assert not any(agreement(reading, SCENES[0]).values())
        assert distance(reading, reading) == float("inf")


def test_still_clips_do_not_move():
    for video, scene in true_clips(scenes=SCENES[::7]):
        right = agreement(read(np.repeat(video[:1], 12, axis=0)), scene)
        assert right["color"] and right["shape"] and right["background"] and not right["motion"]
        reading = read(np.repeat(video[:1], 12, axis=0))
        assert reading.motion is None and not reading.moves and reading.steadiness == 1


def test_jumping_is_neither_motion_nor_steady():
    rng = np.random.default_rng(0)
    poses = np.column_stack([rng.uniform(0.3, 0.7, (12, 2)), np.full(12, 0.15)])
    reading = read(render(Scene("red", "circle", "moves left", "black"), poses, 64))
    assert reading.found and reading.jitter > 0.05 and reading.steadiness < 0.3


def test_changing_colour_and_shape_are_not_steady():
    poses = np.column_stack([np.linspace(0.3, 0.7, 12), np.full(12, 0.5), np.full(12, 0.18)])
    red = render(Scene("red", "circle", "moves right", "black"), poses, 64)
    blue = render(Scene("blue", "circle", "moves right", "black"), poses, 64)
    square = render(Scene("red", "square", "moves right", "black"), poses, 64)
    even = np.arange(12)[:, None, None, None] % 2 == 0
    assert read(red).steadiness == 1 and read(red).flicker < 1
    assert read(np.where(even, red, blue)).steadiness == 0
    assert read(np.where(even, red, blue)).flicker > 10
    assert read(np.where(even, red, square)).steadiness == 0


def test_a_few_lost_frames_are_forgiven_many_are_not():
    video, scene = next(true_clips())
    for lost, found in ((2, True), (6, False)):
        gappy = video.copy()
        gappy[3 : 3 + lost] = video[0, 0, 0]
        reading = read(gappy)
        assert reading.found is found and np.isnan(reading.radii).sum() == lost
        assert agreement(reading, scene)["all"] is found
        assert reading.steadiness < 1


def test_tinted_background_and_foreign_hue_have_no_word(monkeypatch):
    scene = Scene("red", "circle", "grows", "gray")
    video = draw(scene, np.random.default_rng(0), 12, 64)
    plain = (video == video[0, 0, 0]).all(-1, keepdims=True)
    tinted = np.where(plain, np.array([60, 115, 140], np.uint8), video)
    assert read(video).background == "gray" and read(tinted).background is None
    monkeypatch.setitem(RGB, "red", np.array([0.95, 0.5, 0.1], np.float32))  # orange
    orange = read(draw(scene, np.random.default_rng(0), 12, 64))
    assert orange.found and orange.color is None and orange.shape == "circle"


def test_positions_and_distance_are_in_sides():
    poses = np.column_stack([np.linspace(0.3, 0.7, 9), np.full(9, 0.4), np.full(9, 0.15)])
    scene = Scene("cyan", "circle", "moves right", "white")
    reading = read(render(scene, poses, 64))
    assert np.allclose(reading.positions, poses[:, :2], atol=0.005)
    assert np.allclose(reading.radii, 0.15, atol=0.005)
    picture = read(render(scene, np.array([[0.5, 0.5, 0.15]]), 64))
    assert picture.found and picture.motion is None
    assert distance(reading, picture) == pytest.approx(0.1, abs=0.005)


def test_other_layouts_are_refused():
    for video in (np.zeros((3, 8, 8, 3)), np.zeros((3, 3, 8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8 frames"):
            read(video)

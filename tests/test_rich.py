"""The richer clips: deterministic, and the motion is the one that the caption names."""

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("skimage")

from training.tiny import rich  # noqa: E402
from training.tiny.shapes import DIRECTIONS, Scene, is_held_out  # noqa: E402


@pytest.fixture(scope="module")
def clips():
    return [rich.clip(i, seed=0, frames=6, size=48) for i in range(120)]


def test_every_kind_is_drawn(clips):
    assert min(Counter(scene.kind for _, scene in clips)[kind] for kind in rich.KINDS) > 12
    assert all(video.shape == (6, 48, 48, 3) and video.dtype == np.uint8 for video, _ in clips)


def test_clips_depend_on_seed_and_index_alone(clips):
    for i in (17, 3, 90, 41, 8):
        video, scene = rich.clip(i, seed=0, frames=6, size=48)
        assert scene == clips[i][1] and np.array_equal(video, clips[i][0])
        assert not np.array_equal(video, rich.clip(i, seed=1, frames=6, size=48)[0])


def test_length_changes_the_sampling_not_the_track():
    for i in range(40):
        long, scene = rich.clip(i, seed=0, frames=9, size=32)
        short, same = rich.clip(i, seed=0, frames=5, size=32)
        assert scene == same and np.array_equal(long[::2], short)


def test_everything_moves(clips):
    for video, scene in clips:
        assert (np.abs(np.diff(video.astype(int), axis=0)).max((1, 2, 3)) > 20).all(), scene


def test_two_objects_show_nothing_held_out_and_stay_apart(clips):
    for video, scene in clips:
        if scene.kind != "two objects":
            continue
        first, second = scene.caption.split(" on a ")[0].split(" and ")
        for words in (first, second):
            _, color, shape, *motion = words.split()
            assert not is_held_out(Scene(color, shape, " ".join(motion), "black"))
        assert first.split()[1] != second.split()[1]
        chroma = np.ptp(video.astype(int), axis=3) > 100
        assert chroma.any((1, 2)).all()


def test_the_camera_moves_where_the_caption_says(clips):
    for video, scene in clips:
        if scene.kind != "panning":
            continue
        way = next(word for word in DIRECTIONS if word in scene.caption)
        dx, dy = 3 * np.array(DIRECTIONS[way])
        first, second = video[0].astype(float), video[1].astype(float)
        # what the camera moves to the left of goes to the right: the picture shifts against the camera
        with_it = np.abs(np.roll(first, (-dy, -dx), (0, 1)) - second)[5:-5, 5:-5].mean()
        against = np.abs(np.roll(first, (dy, dx), (0, 1)) - second)[5:-5, 5:-5].mean()
        assert with_it < against, scene


def test_turning_is_clockwise_on_the_screen():
    poses = np.array([[0.5, 0.5, 0.3]])
    upright, turned = (rich._mask("triangle", poses, 64, np.radians([angle]))[0] for angle in (0, 30))
    top_right = (slice(0, 24), slice(36, 64))  # where the tip goes
    assert turned[top_right].sum() > upright[top_right].sum() + 20


def test_windows_between_pixels_are_bilinear():
    x, y = np.meshgrid(np.arange(12.0), np.arange(10.0))
    ramp = np.stack([x, y, x + 2 * y], axis=-1).astype(np.float32)
    crop = rich._windows(ramp, np.array([[2.25, 3.5]]), 4)[0]
    assert np.allclose(crop[0, 0], [2.25, 3.5, 9.25]) and np.allclose(crop[3, 2], [4.25, 6.5, 17.25])

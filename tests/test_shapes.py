"""The procedural clips: pure functions of (seed, index), inside the frame, and as the caption says."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from training.tiny import shapes
from training.tiny.shapes import HELD_OUT, HELD_OUT_SCENES, SCENES, SEEN_SCENES, Scene


def test_grammar():
    assert len(SCENES) == len({scene.caption for scene in SCENES}) == 6 * 4 * 6 * 3
    scene = Scene("red", "circle", "moves left", "black")
    assert scene.caption == "a red circle moves left on a black background"
    assert scene.still_caption == "a red circle on a black background"


def test_held_out_leaves_every_word_and_pair_in_training():
    assert len(HELD_OUT) == 14
    assert len(HELD_OUT_SCENES) == 14 * 3 and len(SEEN_SCENES) == 130 * 3
    assert not set(SEEN_SCENES) & set(HELD_OUT_SCENES)
    assert all(len(set(a) & set(b)) <= 1 for a, b in combinations(HELD_OUT, 2))
    words = Counter(word for triple in HELD_OUT for word in triple)
    assert set(words) == {*shapes.COLORS, *shapes.SHAPES, *shapes.MOTIONS}
    assert max(words[color] for color in shapes.COLORS) <= 3  # of 24
    assert max(words[motion] for motion in shapes.MOTIONS) <= 3  # of 24


def test_nothing_held_out_is_drawn_by_default():
    drawn = [shapes.image(i, seed=0, size=8)[1] for i in range(2000)]
    assert not any(shapes.is_held_out(scene) for scene in drawn)
    assert len(set(drawn)) > 370  # of 390
    only = shapes.clip(3, seed=0, scenes=HELD_OUT_SCENES)[1]
    assert shapes.is_held_out(only)


def test_clips_depend_on_seed_and_index_alone():
    first, scene = shapes.clip(5, seed=1)
    shapes.clip(6, seed=1)
    np.random.random(10)
    again, same = shapes.clip(5, seed=1)
    assert first.shape == (12, 64, 64, 3) and first.dtype == np.uint8
    assert scene == same and np.array_equal(first, again)
    assert not np.array_equal(first, shapes.clip(6, seed=1)[0])
    assert not np.array_equal(first, shapes.clip(5, seed=2)[0])


def test_length_and_size_change_the_sampling_of_a_clip_not_its_track():
    long, scene = shapes.clip(7, seed=0, frames=13)
    short, same = shapes.clip(7, seed=0, frames=7)
    assert scene == same and np.array_equal(long[::2], short)
    assert np.array_equal(shapes.clip(7, seed=0, frames=1)[0], long[:1])
    large = shapes.clip(7, seed=0, frames=7, size=128)[0].astype(float)
    halved = large.reshape(7, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(halved - short).mean() < 1  # grey levels of 255


def test_image_is_a_frame_of_the_clip():
    times = set()
    for i in range(40):
        picture, scene = shapes.image(i, seed=3)
        video, same = shapes.clip(i, seed=3)
        hits = [k for k in range(12) if np.array_equal(video[k], picture)]
        assert scene == same and hits
        times.add(hits[0])
    assert len(times) > 8


def test_shapes_stay_inside_the_frame():
    for i, scene in enumerate(SCENES):
        first_and_last = shapes.draw(scene, np.random.default_rng(i), 2, 200)
        border = [first_and_last[:, [0, -1]], first_and_last[:, :, [0, -1]]]
        assert all((edge == first_and_last[0, 0, 0]).all() for edge in border), scene


def test_tracks_follow_the_caption():
    for i, scene in enumerate(SCENES):
        track = shapes.random_track(scene, np.random.default_rng(i))
        radius, travel = track.start[2], track.end - track.start
        assert 0.1 <= min(radius, track.end[2]) and max(radius, track.end[2]) <= 0.25
        if scene.motion in shapes.DIRECTIONS:
            along = travel[:2] @ np.array(shapes.DIRECTIONS[scene.motion])
            assert 0.35 <= along <= 0.5 and np.isclose(np.abs(travel).sum(), along)
        else:
            factor = track.end[2] / radius
            assert (factor if scene.motion == "grows" else 1 / factor) > 1.5
            assert (travel[:2] == 0).all()


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_coverage_measures_area_and_centre(shape):
    poses = np.array([[0.4, 0.55, 0.2]])
    mask = shapes.coverage(shape, poses, 200)[0]
    assert mask.mean() == pytest.approx(shapes.AREA[shape] * 0.2**2, rel=0.01)
    axis = (np.arange(200) + 0.5) / 200
    assert mask.sum(0) @ axis / mask.sum() == pytest.approx(0.4, abs=1e-3)
    assert mask.sum(1) @ axis / mask.sum() == pytest.approx(0.55, abs=1e-3)


def test_colors_are_those_of_the_grammar():
    poses = np.array([[0.5, 0.5, 0.2]])
    for scene in SCENES:
        frame = shapes.render(scene, poses, 33)[0] / 255
        assert np.allclose(frame[0, 0], shapes.GREYS[scene.background], atol=1 / 255)
        red, green, blue = frame[16, 16]
        hue = np.degrees(np.arctan2(3**0.5 * (green - blue), 2 * red - green - blue))  # on the colour circle
        assert abs((hue - shapes.HUES[scene.color] + 180) % 360 - 180) < 2
        assert max(red, green, blue) - min(red, green, blue) > 0.8


def test_unknown_shape():
    with pytest.raises(ValueError, match="circle"):
        shapes.coverage("star", np.array([[0.5, 0.5, 0.2]]), 8)


def test_batches():
    videos, captions = shapes.batch([4, 2], seed=0, frames=3, size=32)
    assert videos.shape == (2, 3, 32, 32, 3) and videos.dtype == torch.uint8
    second, scene = shapes.clip(2, seed=0, frames=3, size=32)
    assert np.array_equal(videos[1].numpy(), second) and captions[1] == scene.caption
    stills, captions = shapes.batch([4, 2], seed=0, size=32, stills=True)
    picture, scene = shapes.image(2, seed=0, size=32)
    assert np.array_equal(stills[1, 0].numpy(), picture) and captions[1] == scene.still_caption
    video = shapes.to_video(videos)
    assert video.shape == (2, 3, 3, 32, 32) and video.min() >= -1 and video.max() <= 1
    assert torch.equal(((video + 1) * 127.5).round().to(torch.uint8), videos.permute(0, 4, 1, 2, 3))

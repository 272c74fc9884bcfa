"""Stages that make clips out of clips: frames, windows, and what is kept."""

import dataclasses

import numpy as np
import pytest
import torch
from experts import knowing, upscaling

from univid import checkpoints, windows
from univid.asked import Sampling
from univid.cascade import Extend, Interpolate, Told, Upscale, whole

LENGTHS, FACTORS = (1, 2, 5, 13, 93), (2, 3, 4)


def in_order(found, frames):
    """Every frame is made once, in order; what a window knows is there before."""
    done = 0
    for window in found:
        assert window.new == done < window.end and window.start <= window.new
        assert all(window.start <= frame < window.end for frame in window.known)
        done = window.end
    assert done == frames


@pytest.mark.parametrize("frames", LENGTHS[1:])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("longest", [2, 5, 12, 24])
def test_windows_between_known_frames(frames, factor, longest):
    found = list(windows.interpolation(frames, factor, longest))
    total = factor * (frames - 1) + 1
    in_order(found, total)
    assert windows.interpolated(frames, factor) == total
    for before, window in zip([None, *found], found, strict=False):
        assert window.frames <= max(longest, factor + 1)
        assert window.known == tuple(k for k in range(window.start, window.end) if k % factor == 0)
        assert {window.start, window.end - 1} <= set(window.known)
        assert before is None or before.end - 1 == window.start


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("more, known, longest", [(1, 1, 2), (12, 4, 12), (30, 7, 8), (100, 12, 24)])
def test_windows_after_known_frames(frames, more, known, longest):
    found = list(windows.extension(frames, more, known, longest))
    in_order([windows.Window(0, frames, 0), *found], frames + more)
    for window in found:
        assert window.frames <= longest
        assert window.known == tuple(range(max(0, window.new - known), window.new))


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("longest, overlap", [(2, 1), (8, 1), (24, 3), (12, 11)])
def test_windows_that_overlap(frames, longest, overlap):
    found = list(windows.sliding(frames, longest, overlap))
    in_order(found, frames)
    assert all(window.frames <= longest for window in found)
    assert all(len(window.known) == overlap and window.known[-1] == window.new - 1 for window in found[1:])


@pytest.fixture(scope="module")
def base(small_checkpoint):
    model = checkpoints.load(small_checkpoint, dtype=torch.float32)
    with torch.no_grad():  # random weights lose most of a frame: what little differs shall be levels
        for layer in (model.vae.quant_conv, model.vae.decoder.conv_out):
            layer.weight.mul_(10)
    return model


@pytest.fixture(scope="module")
def known(base):
    return knowing(base)


@pytest.fixture(scope="module")
def upscaler(base):
    return upscaling(base, height=64, width=64)


def frames(number, height=32, width=32):
    """Each of one colour."""
    colours = np.random.default_rng(0).integers(0, 2, (number, 1, 1, 3)) * 255
    return np.broadcast_to(colours, (number, height, width, 3)).astype(np.uint8)


def told(longest=None, **words):
    return Told(longest=longest, **words)


@pytest.mark.parametrize("number, factor, longest", [(1, 2, 3), (2, 4, 3), (5, 2, 6), (4, 3, 7)])
def test_more_frames(known, number, factor, longest):
    clip = frames(number)
    stage = Interpolate(known, clip, told(longest), factor=factor)
    result = whole(stage)
    assert result.shape == (factor * (number - 1) + 1, 32, 32, 3) and stage.speed == factor
    assert np.array_equal(result[::factor], clip)
    if number > 1:
        assert np.abs(result[1].astype(int) - result[0]).mean() > 1
        other = whole(Interpolate(known, clip, told(longest, seed=1), factor=factor))
        assert not np.array_equal(result[1], other[1])


def test_new_frames_lie_between_their_own_neighbours(known):
    clip = frames(4)
    first = whole(Interpolate(known, clip, told(3), factor=2))
    changed = clip.copy()
    changed[3] = 255 - changed[3]
    second = whole(Interpolate(known, changed, told(3), factor=2))
    same = [np.array_equal(a, b) for a, b in zip(first, second, strict=True)]
    assert same == [True] * 5 + [False] * 2  # windows (0 1 2), (2 3 4), (4 5 6)


def test_a_longer_clip(known):
    clip = frames(4)
    stage = Extend(known, clip, told(5), more=7, known=2)
    result = whole(stage)
    assert result.shape == (11, 32, 32, 3) and stage.frames == 11
    assert np.array_equal(result[:4], clip)
    for place, unlike in ((0, False), (1, False), (2, True), (3, True)):  # two are known
        changed = clip.copy()
        changed[place] = 255 - changed[place]
        found = whole(Extend(known, changed, told(5), more=7, known=2))
        assert np.array_equal(found[4:], result[4:]) != unlike
    again = whole(Extend(known, result[:7], told(5), more=4, known=2))
    assert np.array_equal(again, result)  # the noise is that of the frames, and so it is one long clip


@pytest.mark.parametrize("number", [1, 2, 7])
def test_a_larger_clip(upscaler, number):
    clip = frames(number)
    result = whole(Upscale(upscaler, clip, told(3), size=(40, 64)))
    assert result.shape == (number, 40, 64, 3)
    if number > 3:
        alone = whole(Upscale(upscaler, clip[:3], told(3), size=(40, 64)))
        assert np.array_equal(result[:3], alone)


def test_a_larger_clip_goes_on_from_the_window_before(upscaler):
    stage = Upscale(upscaler, frames(7), told(3), size=(40, 64))
    made = [np.full((7, 40, 64, 3), level, np.uint8) for level in (0, 0, 255)]
    made[1][0] = 255  # before the window
    black, far, white = (stage.make(stage.windows[1], there) for there in made)
    assert black.shape == (2, 40, 64, 3)
    assert np.array_equal(black, far) and not np.array_equal(black, white)


def test_a_large_clip_is_made_in_tiles_of_the_models_size(upscaler):
    stage = Upscale(upscaler, frames(2), told(), size=(64, 128))
    assert stage.sampling.tile == 64
    assert Upscale(upscaler, frames(2), size=(64, 64)).sampling.tile is None
    own = Upscale(upscaler, frames(2), told(sampling=Sampling(tile=32)), size=(64, 128))
    assert own.sampling.tile == 32
    assert whole(stage).shape == (2, 64, 128, 3)


def without_vae(model):
    config = dataclasses.replace(model.config, vae=None)
    return dataclasses.replace(model, config=config, vae=None)


def test_wrong_work_is_refused(base, known, upscaler):
    clip = frames(3)
    for stage, words in (
        (
            lambda: Upscale(base, clip),
            "upscale needs a model that refines an enlarged video, got one",
        ),
        (
            lambda: Interpolate(base, clip),
            "interpolate needs a model that makes frames between",
        ),
        (
            lambda: Extend(upscaler, clip, more=2),
            "got one that refines an enlarged video; load such",
        ),
        (lambda: Upscale(known, clip), "use this one in `interpolate` or `extend`"),
        (lambda: Interpolate(known, clip, factor=1), "factor must be a whole number of at least 2, got 1"),
        (lambda: Interpolate(without_vae(known), clip), "holds no VAE"),
        (lambda: Interpolate(known, clip[:0]), "a clip of at least 1 frame, got none"),
        (lambda: Extend(known, clip, more=0), "at least 1 more frame, got 0"),
        (lambda: Extend(known, clip, told(4), more=3, known=4), "known must be from 1 to 3"),
        (lambda: Interpolate(known, clip, told(1)), "a window must have at least 2 frames, got 1"),
        (lambda: Upscale(upscaler, clip, size=(16, 64)), "at least the video's 32 x 32, got 64 x 16"),
        (lambda: whole(Upscale(upscaler, clip, size=(36, 64))), "height must be a positive multiple of 8"),
        (lambda: whole(Interpolate(known, frames(3, 20, 32))), "height must be a positive multiple of 8"),
    ):
        with pytest.raises(ValueError, match=words.replace("`", ".")):
            stage()

"""Which frames of which clips a training step of the built-in model shows."""

import pytest
import torch

from training.tiny.draws import PICTURED, Drawer
from training.tiny.options import ShownOptions

MOMENTS, CLIPS = 45, 20
CENTERED = torch.tensor([3, 7])


def drawer(**shown) -> Drawer:
    return Drawer(ShownOptions(**shown), CLIPS, CENTERED, MOMENTS)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("frames", [5, 12, 24, 32, 45])
def test_whole_clips_are_spread_evenly_from_anywhere_in_their_first_part(frames):
    draws = drawer(whole_share=1.0).videos(500, frames, rng())
    moments = draws.moments
    assert moments.shape == (500, frames) and (moments[:, 1:] > moments[:, :-1]).all()
    steps = (moments[:, 1:] - moments[:, :-1]).float()
    assert (steps - MOMENTS / frames).abs().max() < 1
    part = MOMENTS / frames
    assert moments[:, 0].max() < part and moments[:, -1].min() >= MOMENTS - part - 1
    # On average a frame lies where the sampler says that it is: in the middle of its part.
    middle = (torch.arange(frames) + 0.5) / frames
    assert (draws.places(MOMENTS, True).mean(0) - middle).abs().max() < 0.02


@pytest.mark.parametrize("frames", [5, 12, 24, 45])
def test_windows_are_at_one_stride_and_anywhere(frames):
    moments = drawer(whole_share=0.0).videos(2000, frames, rng()).moments
    assert moments.min() == 0 and moments.max() == MOMENTS - 1
    strides = moments[:, 1:] - moments[:, :-1]
    assert (strides == strides[:, :1]).all()
    assert set(strides[:, 0].tolist()) == set(range(1, MOMENTS // frames + 1))
    ends = {(int(m[0]), int(m[-1])) for m in moments[strides[:, 0] == 1]}
    assert len(ends) == MOMENTS - frames + 1


def test_the_shares_are_those_that_were_asked_for():
    draws = drawer(whole_share=0.8, centered_share=0.5).videos(4000, 12, rng())
    strides = draws.moments[:, 1:] - draws.moments[:, :-1]
    windows = (strides == strides[:, :1]).all(1)  # 45 / 12 is no whole number, so whole clips are no such
    assert abs(windows.float().mean() - 0.2) < 0.03
    centered = torch.isin(draws.clips, CENTERED).float().mean()
    assert abs(centered - (0.5 + 0.5 * 2 / CLIPS)) < 0.03
    assert set(draws.clips.tolist()) == set(range(CLIPS))
    assert set(draws.pictures.tolist()) == set(range(12)) and not draws.still.any()  # moments 0, 4 ... 44


def test_single_frames_and_their_pictures():
    draws = drawer(places=True, picture_of_clip=True, still_share=0.5).images(4000, rng())
    assert draws.moments.shape == (4000, 1) and (draws.moments % PICTURED == 0).all()
    assert abs(draws.still.float().mean() - 0.5) < 0.03
    own = draws.pictures == draws.moments[:, 0] // PICTURED
    assert own[draws.still].all() and abs(own[~draws.still].float().mean() - 1 / 12) < 0.03
    places = draws.places(MOMENTS, True)[:, 0]
    assert (places[draws.still] == -1).all()
    moving = ~draws.still
    assert torch.equal(places[moving], (draws.moments[moving, 0] + 0.5) / MOMENTS)
    assert (draws.places(MOMENTS, False) == -1).all()
    own_pictures = drawer(places=True).images(200, rng())
    assert torch.equal(PICTURED * own_pictures.pictures, own_pictures.moments[:, 0])


def test_a_set_without_a_centered_path_shows_any():
    draws = Drawer(ShownOptions(centered_share=1.0), CLIPS, torch.tensor([], dtype=torch.long), MOMENTS)
    assert set(draws.images(500, rng()).clips.tolist()) == set(range(CLIPS))

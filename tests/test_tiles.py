"""Sampling in tiles: one field of noise, one video, and seams that are hardly seen."""

import dataclasses

import pytest
import torch
from experts import upscaling
from test_pipeline import PROMPT, build

from univid import Clip, Sampling, Source, checkpoints, coding, generate, joined
from univid.tiles import blended, tiles


@pytest.mark.parametrize("height, width, tile", [(7, 11, 2), (9, 24, 5), (90, 160, 40), (4, 5, 8)])
def test_tiles_cover_every_cell_and_count_it_once(height, width, tile):
    total = torch.zeros(height, width, dtype=torch.float64)
    for each in tiles(height, width, tile):
        assert each.weights.shape == each.of(total).shape and max(each.weights.shape) <= tile
        assert (each.weights > 0).all()
        each.of(total).add_(each.weights)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-6, atol=1e-6)


def test_a_tile_for_all_is_the_whole_frame():
    x = torch.randn(2, 3, 5, 7)
    seen = []
    assert torch.equal(blended(lambda tile: seen.append(tile.of(x)) or tile.of(x), 5, 7, 7), x)
    assert len(seen) == 1 and torch.equal(seen[0], x)


@pytest.fixture(scope="module")
def upscaler(small_checkpoint):
    return upscaling(checkpoints.load(small_checkpoint, dtype=torch.float32))


def waves(height, width, frames=3):
    """A clip `[1 3 t h w]` that changes slowly across the frame."""
    rows, columns = torch.linspace(0, 6, height)[:, None], torch.linspace(0, 9, width)
    times, colours = torch.arange(frames)[:, None, None], torch.arange(3)[:, None, None, None]
    return (0.8 * torch.sin(rows + columns + 0.4 * times + colours))[None]


def sampled(model, video, tile, **source):
    return generate(model, PROMPT, source=Source(video, **source), sampling=Sampling(tile=tile), seed=4)


def seam(video, place):
    """How much more neighbouring columns differ at `place` than elsewhere."""
    steps = video.diff(dim=-1).abs().mean((0, 1, 2, 3))
    return (steps[place - 1] / steps.median()).item()


def test_a_sample_in_tiles_is_near_the_whole_one_and_has_no_seam(upscaler):
    video = waves(64, 128)
    whole, tiled = sampled(upscaler, video, None), sampled(upscaler, video, 64)
    cut = torch.cat([sampled(upscaler, part, None) for part in video.split(64, -1)], -1)
    off = [((clip - whole).square().mean() / whole.var()).sqrt().item() for clip in (tiled, cut)]
    assert 0 < off[0] < off[1]
    assert seam(tiled, 64) < 1.5 < seam(cut, 64), "what is cut apart and joined shows where"
    assert torch.equal(sampled(upscaler, video, 128), whole)


def test_what_joins_the_input_is_cut_too(monkeypatch):
    animated = build("dynamicrafter")
    picture, size = waves(64, 64, 1)[:, :, 0], Clip(3, 64, 64)
    run, seen = animated.unet.forward, []

    def forward(x, timesteps, cond, **more):
        seen.append(cond.concat[:1])
        assert x.shape[-2:] == cond.concat.shape[-2:]
        return run(x, timesteps, cond, **more)

    monkeypatch.setattr(animated.unet, "forward", forward)
    monkeypatch.setattr(joined, "encode", lambda model, video, tile: coding.encode(model, video))
    generate(animated, PROMPT, picture, clip=size)
    whole = seen[0]
    seen.clear()
    generate(animated, PROMPT, picture, clip=size, sampling=Sampling(tile=32))
    expected = [tile.of(whole) for tile in tiles(8, 8, 4)]
    assert len(seen) % len(expected) == 0 and len(expected) == 9
    for call, part in enumerate(seen):
        assert torch.equal(part, expected[call % 9])
        assert not torch.equal(part, expected[(call + 1) % 9])


def test_wrong_tiles_are_refused(upscaler):
    for tile in (36, 24, 0, -64):
        with pytest.raises(ValueError, match=f"multiple of 8 pixels from 32 on, got {tile}"):
            sampled(upscaler, waves(64, 64), tile)


def test_an_expert_without_biased_noise_is_tiled_alike(upscaler):
    start = dataclasses.replace(upscaler.profile.start, biased_noise=None, denoise=0.8)
    expert = dataclasses.replace(upscaler, profile=dataclasses.replace(upscaler.profile, start=start))
    whole, tiled = (sampled(expert, waves(64, 128), tile) for tile in (None, 64))
    assert seam(tiled, 64) < 1.5 and ((tiled - whole).square().mean() / whole.var()).sqrt() < 1

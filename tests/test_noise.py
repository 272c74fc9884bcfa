"""Noise: a frame's noise depends on its clip's seed alone; FreeNoise's order and FreeInit's bands."""

import pytest
import torch
from reference import randn

from univid.diffusion import NoiseSchedule
from univid.noise import ClipNoise, LowBand, free_order, low_pass, mixed
from univid.presets import PRESETS
from univid.steer import FrameWindows


def test_noise_is_the_hosts():
    noise = ClipNoise([7])
    torch.manual_seed(7)
    for _ in range(2):  # successive calls continue the stream
        assert torch.equal(noise((1, 4, 6, 8, 10))[0].transpose(0, 1), torch.randn(6, 4, 8, 10))


def test_frame_does_not_depend_on_length_or_batch():
    short, long = ClipNoise([5])((1, 4, 3, 8, 10)), ClipNoise([5])((1, 4, 24, 8, 10))
    assert torch.equal(short, long[:, :, :3])
    batch = ClipNoise([4, 5, 6])
    alone = ClipNoise([5])
    for _ in range(2):
        together = batch((3, 4, 3, 8, 10))
        assert torch.equal(together[1:2], alone((1, 4, 3, 8, 10)))
        assert not torch.equal(together[0], together[1])


def test_a_window_has_the_noise_of_the_whole_clip():
    whole, window = ClipNoise([5])((1, 4, 9, 8, 10)), ClipNoise([5], start=4)
    assert torch.equal(window((1, 4, 3, 8, 10)), whole[:, :, 4:7])
    fresh = window((1, 4, 3, 8, 10))  # the next one is its own, of as many frames
    assert fresh.shape == (1, 4, 3, 8, 10) and not torch.equal(fresh, whole[:, :, 4:7])


def test_noise_is_standard_normal():
    noise = ClipNoise([0, 1])((2, 4, 16, 32, 32))
    assert noise.dtype == torch.float32 and noise.device.type == "cpu"
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_wrong_number_of_seeds():
    with pytest.raises(ValueError, match="2 clips, got 1 seeds"):
        ClipNoise([0])((2, 4, 1, 8, 8))


# FreeNoise


@pytest.mark.parametrize(("frames", "length", "stride"), [(36, 12, 4), (20, 8, 3), (9, 4, 4), (7, 6, 2)])
def test_every_window_has_the_noises_of_the_first(frames, length, stride):
    windows = FrameWindows(length, stride)
    noise = ClipNoise([7], windows=windows)((1, 4, frames, 2, 2))[0].movedim(1, 0)
    plain = ClipNoise([7])((1, 4, frames, 2, 2))[0].movedim(1, 0)
    assert torch.equal(noise[:length], plain[:length])

    def sorted_frames(first):
        return noise[first : first + length].flatten(1).sort(0).values

    starts = windows.starts(frames)
    assert starts[-1] == frames - length
    for first in starts:  # the last one too, which need not lie on the stride
        assert torch.equal(sorted_frames(first), sorted_frames(0))
        repeated = [any(torch.equal(frame, old) for old in noise[:length]) for frame in noise[first:]]
        assert all(repeated)
    assert not torch.equal(plain.flatten(1).sort(0).values[:length], sorted_frames(0))


def test_free_noise_of_one_window_is_plain():
    for frames in (5, 12):
        noise = ClipNoise([7], windows=FrameWindows(12, 4))((1, 4, frames, 4, 4))
        assert torch.equal(noise, ClipNoise([7])((1, 4, frames, 4, 4)))


def test_free_noise_is_a_clips_own():
    windows, shape = FrameWindows(4, 2), (1, 4, 9, 4, 4)
    batch = ClipNoise([4, 5], windows=windows)
    first = batch((2, *shape[1:]))
    assert torch.equal(first[1:], ClipNoise([5], windows=windows)(shape))
    whole, part = ClipNoise([5], windows=windows)(shape), ClipNoise([5], 3, windows)
    assert torch.equal(part((1, 4, 6, 4, 4)), whole[:, :, 3:])  # as part of the longer clip
    plain = ClipNoise([4, 5])
    plain((2, *shape[1:]))
    assert torch.equal(batch((2, *shape[1:])), plain((2, *shape[1:])))  # only the first noise is FreeNoise's
    orders = {tuple(free_order(36, FrameWindows(12, 4), seed).tolist()) for seed in range(8)}
    assert len(orders) == 8


# FreeInit


@pytest.mark.parametrize("size", [(12, 8, 8), (16, 40, 64), (11, 9, 15), (1, 6, 6)])
def test_the_bands_have_together_the_power_of_one_noise(size):
    """Closed form: a filter H of white noise of variance 1 leaves the mean of |H|^2."""
    band = low_pass(*size, 0.25)
    assert band[0, 0, 0] == 1  # a constant passes, also at odd sizes
    for axis, n in enumerate(size):  # and what is symmetric in time stays so
        assert torch.allclose(band.flip(axis).roll(1, axis), band), n
    a, b = (
        torch.randn(4096 // size[0], 4, *size, generator=torch.Generator().manual_seed(s)) for s in (1, 2)
    )
    if size[1] > 16:
        a, b = a[:16], b[:16]
    out = mixed(a, b, 0.25)
    assert out.dtype == torch.float32 and out.shape == a.shape
    spread = 3 * (2 / out.numel()) ** 0.5  # three standard errors of a variance
    assert abs(out.var().item() - 1) < max(1e-3, spread)
    power = (band.square() + (1 - band.square())).mean()
    assert abs(power - 1) < 1e-6


def test_the_published_mix_loses_variance_and_ours_does_not():
    a, b = (torch.randn(64, 4, 16, 40, 64, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    band = low_pass(16, 40, 64, 0.25)
    published = (band.square() + (1 - band).square()).mean().item()
    dims = (-3, -2, -1)
    theirs = torch.fft.ifftn(
        band * torch.fft.fftn(a, dim=dims) + (1 - band) * torch.fft.fftn(b, dim=dims), dim=dims
    )
    assert abs(published - 0.992) < 1e-3 and abs(theirs.real.var().item() - published) < 1e-3
    assert abs(mixed(a, b, 0.25).var().item() - 1) < 1e-3


def test_the_low_band_and_what_it_leaves_are_the_whole():
    """Mixing is linear: the low part of one and the high part of another; the powers of both of z are z's."""
    z, zero = randn(2, 4, 11, 9, 15), torch.zeros(2, 4, 11, 9, 15)
    low, high = mixed(z, zero, 0.25), mixed(zero, z, 0.25)
    y = randn(2, 4, 11, 9, 15, seed=3)
    assert torch.allclose(mixed(z, y, 0.25), low + mixed(zero, y, 0.25), atol=1e-5)
    assert torch.allclose(low.square().sum() + high.square().sum(), z.square().sum(), rtol=1e-5)
    constant = torch.full_like(z, 0.7)
    assert torch.allclose(mixed(constant, zero, 0.25), constant, atol=1e-5)
    assert torch.allclose(mixed(zero, constant, 0.25), zero, atol=1e-5)
    assert torch.allclose(mixed(z, y, 1e6), z, atol=1e-5) and torch.allclose(
        mixed(z, y, 1e-3)[..., 0, 0, 0],
        (y - y.mean((-3, -2, -1), keepdim=True) + z.mean((-3, -2, -1), keepdim=True))[..., 0, 0, 0],
        atol=1e-4,
    )


def test_the_low_band_is_that_of_the_noised_clip():
    schedule = NoiseSchedule(PRESETS["tiny"].schedule)
    latents, noise, fresh = (randn(2, 4, 6, 8, 8, seed=s) for s in (1, 2, 3))
    band = LowBand(cutoff=0.5, level=0.85)
    timestep = round(0.85 * 999)
    sigma = schedule.sigmas[timestep]
    noised = (latents + sigma * noise) / (1 + sigma**2).sqrt()
    assert torch.allclose(band.start(latents, noise, fresh, schedule), mixed(noised, fresh, 0.5), atol=1e-5)
    still = band.start(latents[:, :, :1], noise, fresh, schedule)  # a picture counts in every frame
    assert torch.equal(still, band.start(latents[:, :, :1].expand(-1, -1, 6, -1, -1), noise, fresh, schedule))
    half = band.start(latents.half(), noise.bfloat16(), fresh, schedule)
    assert half.dtype == torch.float32
    last = LowBand(level=1.0).start(
        latents, noise, fresh, schedule
    )  # zero terminal SNR: nothing of it is left
    assert torch.allclose(last, mixed(noise, fresh, 0.25), atol=2e-3)


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"runs": 0}, "at least once, got 0"), ({"cutoff": 0.0}, "above 0, got 0"), ({"level": 1.2}, "got 1.2")],
)
def test_a_low_band_that_is_none_is_refused(asked, words):
    with pytest.raises(ValueError, match=words):
        LowBand(**asked)

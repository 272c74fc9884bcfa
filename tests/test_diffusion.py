"""The noise schedule, the views and the loss against diffusers and against a perfect network."""

import dataclasses

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from univid.conditioning import Conditioning
from univid.config import BetaConfig, ScheduleConfig
from univid.diffusion import (
    TO_X0,
    Denoiser,
    NoiseSchedule,
    eps_to_x0,
    training_loss,
    v_to_x0,
    x0_to_eps,
    x0_to_v,
)
from univid.presets import SD21_SCHEDULE, TINY

BETAS = SD21_SCHEDULE.betas
ZERO_SNR = NoiseSchedule(TINY.schedule)
PLAIN = NoiseSchedule(SD21_SCHEDULE)
SCALED = NoiseSchedule(dataclasses.replace(TINY.schedule, x0_scale=0.3))
TIMESTEPS = torch.tensor([0, 250, 700, 999])


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 4, 3, 5, 6, generator=generator)
    return x0, noise


@pytest.fixture
def cond():
    return Conditioning(torch.randn(4, 3, 8), None, torch.tensor([[1.0, 0.0]]).expand(4, 2))


def diffusers_schedule(**options):
    return DDPMScheduler(1000, BETAS.start, BETAS.end, BETAS.name, **options)


def column(values):
    return values.reshape(-1, 1, 1, 1, 1)


def k_scaled(schedule, x0, noise, timesteps):
    return x0 + column(schedule.sigmas[timesteps]) * noise


def test_sigmas_equal_diffusers():
    alpha_bars = diffusers_schedule().alphas_cumprod
    torch.testing.assert_close(PLAIN.sigmas, ((1 - alpha_bars) / alpha_bars).sqrt(), rtol=1e-4, atol=0)


def test_zero_terminal_snr_equals_diffusers_up_to_the_last_entry():
    betas = torch.linspace(BETAS.start**0.5, BETAS.end**0.5, 1000).double() ** 2
    expected = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    ours = 1 / (ZERO_SNR.sigmas.double() ** 2 + 1)
    torch.testing.assert_close(ours[:-1], expected[:-1], rtol=1e-5, atol=1e-12)
    assert expected[-1] == 0 and 0 < ours[-1] < 1e-7
    assert ZERO_SNR.sigmas[0] == PLAIN.sigmas[0]
    assert not torch.allclose(ZERO_SNR.sigmas[500], PLAIN.sigmas[500], rtol=1e-3)


COSINE = ScheduleConfig("v", BetaConfig("squaredcos_cap_v2", None, None), 1000, False, x0_scale=1.0)


@pytest.mark.parametrize("timesteps", [1000, 50])
def test_the_cosine_schedule_equals_diffusers(timesteps):
    config = dataclasses.replace(COSINE, num_timesteps=timesteps)
    theirs = DDPMScheduler(timesteps, beta_schedule="squaredcos_cap_v2")
    betas = theirs.betas.double()  # their products are of float32
    alpha_bars = (1 - betas).cumprod(0)
    ours = NoiseSchedule(config)
    torch.testing.assert_close(
        ours.sigmas.double(), ((1 - alpha_bars) / alpha_bars).sqrt(), rtol=1e-4, atol=0
    )
    assert (ours.sigmas.diff() > 0).all() and ours.sigma_max > 1000
    zero = NoiseSchedule(dataclasses.replace(config, zero_terminal_snr=True))
    expected = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    torch.testing.assert_close(1 / (zero.sigmas[:-1].double() ** 2 + 1), expected[:-1], rtol=1e-4, atol=1e-12)
    assert (zero.sigmas.diff() > 0).all() and zero.sigma_max == ZERO_SNR.sigma_max


@pytest.mark.parametrize("schedule", [PLAIN, ZERO_SNR, SCALED])
def test_a_schedule_may_end_earlier(schedule):
    """What lies below the new end is as it was."""
    short = schedule.until(900)
    assert (short.last, short.sigma_max, short.sigma_min) == (900, schedule.sigmas[900], schedule.sigma_min)
    assert torch.equal(short.sigmas, schedule.sigmas[:901]) and schedule.last == 999
    sigmas = schedule.sigma(torch.linspace(0, 900, 41))
    assert torch.equal(short.timestep(sigmas), schedule.timestep(sigmas))
    torch.testing.assert_close(short.x0_scale(sigmas), schedule.x0_scale(sigmas))
    assert short.timestep(torch.tensor(1e6)) == 900
    assert schedule.until(None) is schedule and torch.equal(schedule.until(999).sigmas, schedule.sigmas)
    for timestep in (0, -1, 1000):
        with pytest.raises(ValueError, match="a timestep from 1 to 999, got"):
            schedule.until(timestep)


@pytest.mark.parametrize("schedule", [PLAIN, ZERO_SNR, SCALED, NoiseSchedule(COSINE)])
def test_timestep_inverts_sigma(schedule):
    timesteps = torch.arange(1000)
    assert schedule.sigma_min == schedule.sigmas[0] and schedule.sigma_max == schedule.sigmas[-1]
    assert (schedule.sigmas.diff() > 0).all()
    assert torch.equal(schedule.timestep(schedule.sigmas), timesteps)
    torch.testing.assert_close(schedule.sigma(timesteps), schedule.sigmas, rtol=1e-6, atol=0)
    middle = (schedule.sigmas[400] * schedule.sigmas[401]).sqrt()
    torch.testing.assert_close(schedule.sigma(400.5), middle)
    assert schedule.timestep(middle * 1.0001) == 401 and schedule.timestep(middle * 0.9999) == 400
    assert schedule.timestep(torch.tensor([1e-9, 1e9])).tolist() == [0, 999]
    assert schedule.timestep(torch.tensor(1.0)).shape == ()


def test_forward_process_equals_diffusers(batch):
    theirs = diffusers_schedule()
    torch.testing.assert_close(PLAIN.add_noise(*batch, TIMESTEPS), theirs.add_noise(*batch, TIMESTEPS))
    torch.testing.assert_close(PLAIN.target(*batch, TIMESTEPS, "v"), theirs.get_velocity(*batch, TIMESTEPS))


def test_views_agree(batch):
    x0, noise = batch
    x, sigma = k_scaled(PLAIN, x0, noise, TIMESTEPS), PLAIN.sigmas[TIMESTEPS]
    v = PLAIN.target(x0, noise, TIMESTEPS, "v")
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(x0_to_eps(x0, x, sigma), noise, **close)
    torch.testing.assert_close(x0_to_v(x0, x, sigma), v, **close)
    torch.testing.assert_close(eps_to_x0(noise, x, sigma), x0, **close)
    torch.testing.assert_close(v_to_x0(v, x, sigma), x0, **close)
    torch.testing.assert_close(x0_to_v(x0[:1], x[:1], sigma[0]), v[:1], **close)  # scalar sigma
    assert not torch.allclose(v_to_x0(v, x, sigma.flip(0)), x0, atol=0.1)


def test_a_factor_of_x0_scales_the_video_and_nothing_else(batch):
    """The forward process and the targets are those of the plain schedule at s x0."""
    x0, noise = batch
    scale = column(SCALED.x0_scales[TIMESTEPS])
    assert scale.flatten().tolist() == pytest.approx([1.0, 1 - 0.7 * 250 / 399, 0.3, 0.3])
    torch.testing.assert_close(
        SCALED.add_noise(x0, noise, TIMESTEPS), ZERO_SNR.add_noise(scale * x0, noise, TIMESTEPS)
    )
    for prediction in ("eps", "v", "x0"):
        targets = [
            SCALED.target(x0, noise, TIMESTEPS, prediction),
            ZERO_SNR.target(scale * x0, noise, TIMESTEPS, prediction),
        ]
        torch.testing.assert_close(*targets)
    torch.testing.assert_close(SCALED.sigmas * SCALED.x0_scales, ZERO_SNR.sigmas)
    assert not torch.allclose(
        SCALED.add_noise(x0, noise, TIMESTEPS), ZERO_SNR.add_noise(x0, noise, TIMESTEPS)
    )


@pytest.mark.parametrize("schedule", [PLAIN, ZERO_SNR, SCALED])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_perfect_network_gives_back_x0_and_no_loss(schedule, prediction, batch, cond):
    x0, noise = batch
    target = schedule.target(x0, noise, TIMESTEPS, prediction)

    def perfect(x_t, timesteps, cond):
        assert torch.equal(timesteps, TIMESTEPS)
        torch.testing.assert_close(x_t, schedule.add_noise(x0, noise, TIMESTEPS), rtol=1e-5, atol=1e-5)
        return target

    x, sigma = k_scaled(schedule, x0, noise, TIMESTEPS), schedule.sigmas[TIMESTEPS]
    denoised = Denoiser(perfect, schedule, prediction)(x, sigma, cond)
    # float32 noise of a sigma of 4,518 hides x0 from eps, which is why eps refuses zero terminal SNR.
    limit = (2e-3 if prediction == "eps" else 1e-5) / schedule.x0_scales[-1].item()
    torch.testing.assert_close(denoised, x0, rtol=0, atol=limit)
    assert training_loss(perfect, schedule, prediction, x0, noise, TIMESTEPS, cond).tolist() == [0, 0, 0, 0]
    other = {"eps": "v", "v": "x0", "x0": "eps"}[prediction]
    assert not torch.allclose(Denoiser(perfect, schedule, other)(x, sigma, cond), x0, atol=0.1)


def test_denoiser_owns_the_dtype(batch, cond):
    def network(x_t, timesteps, cond):
        assert x_t.dtype == cond.text.dtype == torch.bfloat16 and cond.weights.dtype == torch.float32
        assert timesteps.tolist() == [700] * 4
        return x_t

    denoised = Denoiser(network, PLAIN, "v", torch.bfloat16)(batch[0], PLAIN.sigmas[700], cond)
    assert denoised.dtype == torch.float32 and denoised.isfinite().all()


def test_loss_is_the_mean_squared_error_of_each_clip(batch, cond):
    guess = torch.randn(batch[0].shape)
    loss = training_loss(lambda x_t, timesteps, cond: guess, PLAIN, "v", *batch, TIMESTEPS, cond)
    target = PLAIN.target(*batch, TIMESTEPS, "v")
    torch.testing.assert_close(
        loss, torch.stack([((g - t) ** 2).mean() for g, t in zip(guess, target, strict=True)])
    )


@pytest.mark.parametrize("x0_scale", [1.0, 0.3])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_min_snr_weighs_the_error_of_x0(prediction, x0_scale, batch, cond):
    """Where noise is mixed into s x0, that is the video, its noise is s sigma, and the SNR is of both."""
    schedule = NoiseSchedule(dataclasses.replace(SD21_SCHEDULE, x0_scale=x0_scale))
    x0, noise = batch
    guess = torch.randn(x0.shape)
    loss = training_loss(lambda *_: guess, schedule, prediction, x0, noise, TIMESTEPS, cond, "min_snr")
    video = column(schedule.x0_scales[TIMESTEPS]) * x0
    sigma = PLAIN.sigmas[TIMESTEPS].double()
    guess_x0 = TO_X0[prediction](guess.double(), k_scaled(PLAIN, video, noise, TIMESTEPS).double(), sigma)
    expected = (sigma**-2).clamp(max=5) * (guess_x0 - video).square().mean((1, 2, 3, 4))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=0)


def test_unknown_weighting(batch, cond):
    with pytest.raises(ValueError, match="uniform, min_snr"):
        training_loss(lambda *_: batch[0], PLAIN, "v", *batch, TIMESTEPS, cond, "snr")

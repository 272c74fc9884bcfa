"""Samplers against the closed form of a Gaussian and against diffusers at a random network."""

import dataclasses
import math

import diffusers
import numpy as np
import pytest
import torch

from univid.conditioning import Conditioning
from univid.diffusion import LAST_ALPHA_BAR, Denoiser, NoiseSchedule
from univid.noise import ClipNoise
from univid.presets import SD21_SCHEDULE, TINY
from univid.samplers import SAMPLERS, SIGMA_SCHEDULES, get_sampler, initial_x, sigma_schedule

ZERO_SNR = NoiseSchedule(TINY.schedule)
PLAIN = NoiseSchedule(SD21_SCHEDULE)
SCALED = NoiseSchedule(dataclasses.replace(TINY.schedule, x0_scale=0.3))
SHAPE = (2, 4, 3, 5, 6)
COND = Conditioning(torch.randn(2, 1, 8), None, torch.tensor([[1.0, 0.0]]).expand(2, 2))
STOCHASTIC = ("euler_ancestral", "dpmpp_2m_sde")


# Closed form: for data N(0, S^2) the denoiser and the solution are known.

S = 0.7


def gaussian(x, sigma):
    return x * S**2 / (S**2 + sigma**2)


def gaussian_error(name, steps):
    """Error at sigma 0.1 of the solution from sigma 10, in float64."""
    sigmas = torch.linspace(10 ** (1 / 3), 0.1 ** (1 / 3), steps + 1, dtype=torch.float64) ** 3
    x = SAMPLERS[name](gaussian, torch.ones(1, dtype=torch.float64), sigmas)
    return abs(x.item() - math.sqrt((S**2 + 0.1**2) / (S**2 + 10**2)))


@pytest.mark.parametrize("name, order", [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(name, order):
    errors = [gaussian_error(name, steps) for steps in (100, 200, 400)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("name", STOCHASTIC)
def test_variance_of_the_stochastic_samplers(name):
    generator = torch.Generator().manual_seed(0)
    sigmas = sigma_schedule("karras", PLAIN, 200)
    x = torch.randn(50_000, generator=generator) * (S**2 + sigmas[0] ** 2).sqrt()
    sampled = SAMPLERS[name](gaussian, x, sigmas, noise=lambda shape: torch.randn(shape, generator=generator))
    assert sampled.std().item() == pytest.approx(S, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([x, sampled]))[0, 1]) < 0.05  # the start is forgotten
    assert SAMPLERS[name](gaussian, x, sigmas, noise=torch.zeros).std() < 0.5 * S


# diffusers' schedulers at a random fixed network


class RandomNetwork:
    """Mixes channels and neighbours, nonlinear, depends on the timestep."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.kernel = torch.randn(4, 4, 3, 3, 3, generator=generator) / 8
        self.phase = torch.randn(4, generator=generator)

    def __call__(self, x_t, timesteps, cond=None):
        mixed = torch.nn.functional.conv3d(x_t, self.kernel, padding=1)
        angle = timesteps.reshape(-1, 1) / 200 + self.phase
        return torch.tanh(mixed + angle.sin()[..., None, None, None]) + 0.3 * x_t


NETWORK = RandomNetwork()


def ours(name, sigmas, schedule, prediction, noise=None):
    """Sample from the same start as `theirs`; gives x0 and the start in the variance-preserving form."""
    denoiser = Denoiser(NETWORK, schedule, prediction)
    start = ClipNoise([0, 1])(SHAPE)
    x = SAMPLERS[name](
        lambda x, sigma: denoiser(x, sigma, COND), initial_x(start, sigmas[0], schedule), sigmas, noise=noise
    )
    return x, start


def theirs(scheduler, x, model_scale=False, **step_options):
    for i, t in enumerate(scheduler.timesteps):
        model_input = scheduler.scale_model_input(x, t) if model_scale else x
        options = {key: value[i] for key, value in step_options.items()}
        x = scheduler.step(NETWORK(model_input, t.repeat(len(x))), t, x, **options).prev_sample
    return x


def make(cls, prediction, **options):
    return getattr(diffusers, cls)(
        beta_start=SD21_SCHEDULE.betas.start,
        beta_end=SD21_SCHEDULE.betas.end,
        beta_schedule=SD21_SCHEDULE.betas.name,
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[prediction],
        **options,
    )


CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def on_our_sigmas(scheduler, sigmas, schedule):
    """Give a sigma-based scheduler exactly our grid: the grids themselves are compared elsewhere."""
    scheduler.set_timesteps(len(sigmas) - 1)
    torch.testing.assert_close(scheduler.sigmas.float(), sigmas, rtol=1e-3, atol=1e-6)
    assert scheduler.timesteps.tolist() == schedule.timestep(sigmas[:-1]).tolist()
    scheduler.sigmas = sigmas.clone()
    return scheduler


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("sigmas, spacing", [("ddim_uniform", "leading"), ("simple", "trailing")])
def test_ddim_equals_diffusers(prediction, sigmas, spacing):
    scheduler = make("DDIMScheduler", prediction, clip_sample=False, steps_offset=1, timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    grid = sigma_schedule(sigmas, PLAIN, 20)
    assert PLAIN.timestep(grid[:-1]).tolist() == scheduler.timesteps.tolist()
    x, _ = ours("ddim", grid, PLAIN, prediction)
    # The host starts from sqrt(1 + sigma^2) only at the largest sigma; below it from sigma.
    start = initial_x(ClipNoise([0, 1])(SHAPE), grid[0], PLAIN) / (1 + grid[0] ** 2).sqrt()
    torch.testing.assert_close(x, theirs(scheduler, start), **CLOSE)
    assert not torch.allclose(ours("dpmpp_2m", grid, PLAIN, prediction)[0], x, **CLOSE)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_eta_equals_diffusers(eta):
    scheduler = make("DDIMScheduler", "v", clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    sigmas, stream = sigma_schedule("simple", PLAIN, 10), ClipNoise([8, 9])
    draws = [stream(SHAPE) for _ in range(9)]

    def run(eta):
        denoiser, left = Denoiser(NETWORK, PLAIN, "v"), iter(draws)
        start = initial_x(ClipNoise([0, 1])(SHAPE), sigmas[0], PLAIN)
        sample = get_sampler("ddim", PLAIN, eta)
        return sample(lambda x, sigma: denoiser(x, sigma, COND), start, sigmas, noise=lambda _: next(left))

    # Their last step ends without noise, as ours, where they would still draw some.
    options = {"eta": [eta] * 9 + [0.0], "variance_noise": [*draws, None]}
    torch.testing.assert_close(run(eta), theirs(scheduler, ClipNoise([0, 1])(SHAPE), **options), **CLOSE)
    assert not torch.allclose(run(0.0), run(eta), **CLOSE)


def test_eta_out_of_range_is_refused():
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="eta must be from 0 to 1"):
            get_sampler("ddim", PLAIN, eta)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_zero_terminal_snr_equals_diffusers(sampler):
    """v, trailing spacing, from pure noise."""
    options = {"clip_sample": False} if sampler == "ddim" else {"final_sigmas_type": "zero"}
    cls = {"ddim": "DDIMScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler"}[sampler]
    scheduler = make(cls, "v", timestep_spacing="trailing", rescale_betas_zero_snr=True, **options)
    if sampler == "ddim":
        scheduler.alphas_cumprod[-1] = LAST_ALPHA_BAR
    scheduler.set_timesteps(20)
    sigmas = sigma_schedule("simple", ZERO_SNR, 20)
    assert ZERO_SNR.timestep(sigmas[:-1]).tolist() == scheduler.timesteps.tolist()
    if sampler == "dpmpp_2m":  # diffusers puts 2^-24 where we and the host have 4.9e-8
        scheduler.sigmas = sigmas.clone()
    x, start = ours(sampler, sigmas, ZERO_SNR, "v")
    assert x.isfinite().all()
    torch.testing.assert_close(x, theirs(scheduler, start), **CLOSE)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("karras", [False, True])
def test_dpmpp_2m_equals_diffusers(prediction, karras):
    scheduler = make(
        "DPMSolverMultistepScheduler",
        prediction,
        final_sigmas_type="zero",
        timestep_spacing="trailing",
        use_karras_sigmas=karras,
    )
    sigmas = sigma_schedule("karras" if karras else "simple", PLAIN, 20)
    on_our_sigmas(scheduler, sigmas, PLAIN)
    x, start = ours("dpmpp_2m", sigmas, PLAIN, prediction)
    torch.testing.assert_close(x, theirs(scheduler, start), **CLOSE)
    assert not torch.allclose(ours("euler", sigmas, PLAIN, prediction)[0], x, **CLOSE)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_dpmpp_2m_sde_equals_diffusers(prediction):
    scheduler = make(
        "DPMSolverMultistepScheduler",
        prediction,
        final_sigmas_type="zero",
        timestep_spacing="trailing",
        algorithm_type="sde-dpmsolver++",
    )
    sigmas = sigma_schedule("simple", PLAIN, 10)
    on_our_sigmas(scheduler, sigmas, PLAIN)
    x, start = ours("dpmpp_2m_sde", sigmas, PLAIN, prediction, ClipNoise([8, 9]))
    stream = ClipNoise([8, 9])
    expected = theirs(scheduler, start, variance_noise=[stream(SHAPE) for _ in range(10)])
    torch.testing.assert_close(x, expected, **CLOSE)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_euler_ancestral_equals_diffusers(prediction):
    scheduler = make("EulerAncestralDiscreteScheduler", prediction, timestep_spacing="trailing")
    sigmas = sigma_schedule("simple", PLAIN, 10)
    on_our_sigmas(scheduler, sigmas, PLAIN)
    generator = torch.Generator().manual_seed(3)
    x, start = ours(
        "euler_ancestral", sigmas, PLAIN, prediction, lambda shape: torch.randn(shape, generator=generator)
    )
    again = torch.Generator().manual_seed(3)
    expected = theirs(
        scheduler, initial_x(start, sigmas[0], PLAIN), model_scale=True, generator=[again] * len(sigmas)
    )
    torch.testing.assert_close(x, expected, **CLOSE)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_heun_equals_diffusers(prediction):
    scheduler = make("HeunDiscreteScheduler", prediction, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    sigmas = sigma_schedule("simple", PLAIN, 10)
    torch.testing.assert_close(scheduler.sigmas[::2].float()[:-1], sigmas[:-2], rtol=1e-3, atol=0)
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    x, start = ours("heun", sigmas, PLAIN, prediction)
    expected = theirs(scheduler, initial_x(start, sigmas[0], PLAIN), model_scale=True)
    torch.testing.assert_close(x, expected, **CLOSE)


# Contracts of the samplers


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("sigmas", SIGMA_SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("schedule", [ZERO_SNR, SCALED], ids=["plain", "scaled"])
def test_zero_snr_never_gives_nan(name, sigmas, steps, schedule):
    grid = sigma_schedule(sigmas, schedule, steps)
    x, _ = ours(name, grid, schedule, "v", noise=ClipNoise([2, 3]))
    assert x.dtype == torch.float32 and x.isfinite().all()
    if name != "heun":  # a trapezoid over the huge first step amplifies, with the host's as well
        assert x.abs().max() < 10 / schedule.x0_scales[-1]


@pytest.mark.parametrize("name", SAMPLERS)
def test_clip_of_a_batch_is_the_clip_alone(name):
    sigmas = sigma_schedule("karras", PLAIN, 5)

    def run(seeds):
        noise = ClipNoise(seeds)
        cond = Conditioning(torch.ones(len(seeds), 1, 8), None, torch.tensor([[1.0, 0.0]] * len(seeds)))
        denoiser = Denoiser(NETWORK, PLAIN, "v")
        x = initial_x(noise((len(seeds), *SHAPE[1:])), sigmas[0], PLAIN)
        return SAMPLERS[name](lambda x, sigma: denoiser(x, sigma, cond), x, sigmas, noise=noise)

    batch = run([4, 5, 6])
    torch.testing.assert_close(batch[1:2], run([5]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(batch[0], batch[1], atol=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_callback_reports_every_step_and_cancels(name):
    sigmas = sigma_schedule("karras", PLAIN, 6)
    seen = []

    def callback(step, num_steps, x, denoised):
        torch.testing.assert_close(denoised, gaussian(x, sigmas[step]))
        seen.append((step, num_steps))

    SAMPLERS[name](gaussian, torch.ones(SHAPE), sigmas, noise=torch.randn, callback=callback)
    assert seen == [(step, 6) for step in range(6)]

    def cancel(step, num_steps, x, denoised):
        if step == 2:
            raise KeyboardInterrupt

    calls = []
    with pytest.raises(KeyboardInterrupt):
        SAMPLERS[name](
            lambda x, sigma: calls.append(sigma) or gaussian(x, sigma),
            torch.ones(SHAPE),
            sigmas,
            noise=torch.randn,
            callback=cancel,
        )
    assert len(calls) == (5 if name == "heun" else 3)


def test_initial_x():
    noise, latents = torch.randn(SHAPE), torch.randn(SHAPE)
    top, middle = PLAIN.sigmas[-1], PLAIN.sigmas[500]
    torch.testing.assert_close(initial_x(noise, top, PLAIN), noise * math.sqrt(1 + top.item() ** 2))
    torch.testing.assert_close(initial_x(noise, middle, PLAIN, latents), latents + noise * middle)
    for name in SIGMA_SCHEDULES:  # the host's ddim_uniform starts below the largest sigma
        for schedule in (PLAIN, ZERO_SNR):
            first = sigma_schedule(name, schedule, 5)[0]
            scale = first if name == "ddim_uniform" else (1 + first**2).sqrt()
            assert torch.equal(initial_x(noise, first, schedule), noise * scale)


# Sigma schedules


@pytest.mark.parametrize("schedule", [PLAIN, ZERO_SNR])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_sigma_schedules_follow_their_definitions(schedule, steps):
    table = schedule.sigmas.double().numpy()

    def at(timesteps):
        return np.exp(np.interp(timesteps, np.arange(1000), np.log(table)))

    ends = table[-1] ** (1 / 7), table[0] ** (1 / 7)
    expected = {
        "normal": at(np.linspace(999, 0, steps)),
        "sgm_uniform": at([999 - 999 * i / steps for i in range(steps)]),
        "simple": [table[999 - i * (1000 // steps)] for i in range(steps)],
        "ddim_uniform": table[[t for t in range(1, 1000, 1000 // steps)]][::-1],
        "karras": np.linspace(*ends, steps) ** 7,
        "exponential": np.geomspace(table[-1], table[0], steps),
    }
    assert expected.keys() == SIGMA_SCHEDULES.keys()
    for name, values in expected.items():
        sigmas = sigma_schedule(name, schedule, steps)
        assert sigmas.dtype == torch.float32 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
        np.testing.assert_allclose(sigmas[:-1].numpy(), values, rtol=1e-4)


# What the host's own functions give for 4 steps of SD 2.1's schedule, plain and with zero terminal SNR.
GOLDEN = {
    ("simple", False): [14.61464, 4.081729, 1.612886, 0.6932049, 0.0],
    ("sgm_uniform", False): [14.61464, 4.086081, 1.61558, 0.6951495, 0.0],
    ("normal", False): [14.61464, 2.918307, 0.932358, 0.02916716, 0.0],
    ("ddim_uniform", False): [4.116696, 1.623692, 0.6983981, 0.04131441, 0.0],
    ("karras", False): [14.61464, 3.168605, 0.4469186, 0.02916718, 0.0],
    ("exponential", False): [14.61464, 1.840024, 0.2316642, 0.02916716, 0.0],
    ("simple", True): [4518.764, 5.398738, 1.76808, 0.7270558, 0.0],
    ("sgm_uniform", True): [4518.764, 5.406622, 1.771316, 0.7291438, 0.0],
    ("normal", True): [4518.764, 3.500933, 0.9868965, 0.02916716, 0.0],
    ("ddim_uniform", True): [5.46223, 1.781065, 0.7326325, 0.04206757, 0.0],
    ("karras", True): [4518.763, 485.5894, 18.03183, 0.02916716, 0.0],
    ("exponential", True): [4518.764, 84.13524, 1.56652, 0.02916716, 0.0],
}


def test_golden_sigmas_of_the_host():
    for (name, zero_snr), values in GOLDEN.items():
        sigmas = sigma_schedule(name, ZERO_SNR if zero_snr else PLAIN, 4)
        np.testing.assert_allclose(sigmas.numpy(), values, rtol=1e-5)


def test_denoise_keeps_the_last_steps():
    half = sigma_schedule("karras", PLAIN, 10, denoise=0.5)
    assert torch.equal(half, sigma_schedule("karras", PLAIN, 20)[-11:])
    assert torch.equal(sigma_schedule("karras", PLAIN, 10, denoise=1.0), sigma_schedule("karras", PLAIN, 10))
    for name in SIGMA_SCHEDULES:
        assert len(sigma_schedule(name, PLAIN, 7, denoise=0.6)) == 8


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("karas", PLAIN, 5), "normal, karras, exponential, sgm_uniform, simple, ddim_uniform"),
        (("karras", PLAIN, 0), "at least 1, got 0"),
        (("karras", PLAIN, -3), "at least 1, got -3"),
        (("karras", PLAIN, 2.5), "whole number"),
        (("karras", PLAIN, 1001), "at most 1000"),
        (("karras", PLAIN, 20, 0.001), "larger denoise"),
        (("karras", PLAIN, 5, 0.0), "above 0"),
        (("karras", PLAIN, 5, 1.5), "at most 1"),
        (("karras", PLAIN, 5, float("nan")), "got nan"),
    ],
)
def test_bad_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sigma_schedule(*arguments)


def test_unknown_sampler_lists_the_known_ones():
    assert get_sampler("heun", PLAIN) is SAMPLERS["heun"]
    with pytest.raises(
        ValueError, match="euler, euler_ancestral, ddim, heun, dpmpp_2m, dpmpp_2m_sde, lcm, got 'eular'"
    ):
        get_sampler("eular", PLAIN)

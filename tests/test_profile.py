"""Sampling as the public relatives have it: the states of their own samplers, step by step."""

import dataclasses

import pytest
import torch
from golden_weights import golden_outputs, seeded

from univid.conditioning import Conditioning
from univid.diffusion import Denoiser, NoiseSchedule
from univid.guidance import Joint
from univid.presets import SD21_SCHEDULE
from univid.samplers import get_sampler, initial_x, sigma_schedule

CLOSE = {"rtol": 0, "atol": 2e-5}
SHAPE = (1, 4, 2, 2, 3)


def schedule_of(prediction, x0_scale, zero_snr=False):
    return NoiseSchedule(
        dataclasses.replace(
            SD21_SCHEDULE, prediction=prediction, x0_scale=x0_scale, zero_terminal_snr=zero_snr
        )
    )


def without_end(schedule):
    """The sources' last sigma under zero terminal SNR is infinite, ours is the host's 4,519."""
    schedule.sigmas[-1] = 1e7
    schedule.log_sigmas[-1] = schedule.sigmas[-1].log()
    return schedule


# name in golden/README.md: prediction, x0 scale, eta, guidance scale, rescale
VIDEOCRAFTER = {
    "videocrafter eta 0": ("eps", 0.7, 0.0, 3.0, 0.0),
    "videocrafter eta 1": ("eps", 0.7, 1.0, 3.0, 0.0),
    "videocrafter eta 1 alone": ("eps", 0.7, 1.0, 1.0, 0.0),
    "dynamicrafter 256 eta 1": ("eps", 1.0, 1.0, 3.0, 0.0),
}
DYNAMICRAFTER = {
    f"dynamicrafter {scale} eta {eta}": ("v", scale, float(eta), 7.5, 0.7)
    for scale in (0.7, 0.3)
    for eta in (0, 1)
}


def network(x_t, timesteps, cond):
    """The closed form of the golden runs; the text is its number c."""
    c = cond.text.reshape(-1, 1, 1, 1, 1)
    return 0.8 * x_t + 0.3 * c * torch.sin(x_t + timesteps.reshape(-1, 1, 1, 1, 1) / 200)


def condition(c):
    return Conditioning(torch.full((1, 1, 1), c), None, torch.tensor([[1.0, 0.0]]))


def run(schedule, sigmas, prediction, scale, rescale, eta, sampler="ddim"):
    """States in the network's form before every step and at the end, and x0 in every step."""
    denoiser, guider = Denoiser(network, schedule, prediction), Joint(scale, rescale)

    def to_x_t(x, sigma):
        s = schedule.x0_scale(sigma)
        return x * s * ((s * sigma) ** 2 + 1).rsqrt()

    states, answers, draws = [], [], iter(range(len(sigmas)))

    def keep(step, _, x, denoised):
        states.append(to_x_t(x, sigmas[step]))
        answers.append(denoised)

    s = schedule.x0_scale(sigmas[0])
    x = get_sampler(sampler, schedule, eta)(
        lambda x, sigma: guider(denoiser, x, sigma, condition(1.0), condition(-0.5)),
        seeded("x", *SHAPE) * (s**-2 + sigmas[0] ** 2).sqrt(),
        sigmas,
        noise=lambda shape: seeded(f"noise {next(draws)}", *shape),
        callback=keep,
    )
    return torch.cat([*states, to_x_t(x, sigmas[-1])]), torch.cat(answers)


@pytest.mark.parametrize("name", VIDEOCRAFTER)
def test_sampling_equals_videocrafters(name):
    prediction, x0_scale, eta, scale, rescale = VIDEOCRAFTER[name]
    schedule, golden = schedule_of(prediction, x0_scale), golden_outputs()
    sigmas = sigma_schedule("ddim_uniform", schedule, 5)
    assert schedule.timestep(sigmas[:-1]).tolist() == [801, 601, 401, 201, 1]
    # Their last step ends at the first timestep's noise; ours, as the host's, at none.
    sigmas[-1] = schedule.sigmas[0]
    states, denoised = run(schedule, sigmas, prediction, scale, rescale, eta)
    torch.testing.assert_close(states, golden[f"{name} x"], **CLOSE)
    torch.testing.assert_close(denoised, golden[f"{name} denoised"], **CLOSE)
    for other in (
        (schedule, 1.0 - eta, "ddim"),
        (schedule_of(prediction, 0.5), eta, "ddim"),
        (schedule, eta, "dpmpp_2m"),
    ):
        sigmas = sigma_schedule("ddim_uniform", other[0], 5)
        assert (
            run(other[0], sigmas, prediction, scale, rescale, *other[1:])[1] - denoised
        ).abs().max() > 1e-2


@pytest.mark.parametrize("name", DYNAMICRAFTER)
def test_sampling_equals_dynamicrafters(name):
    prediction, x0_scale, eta, scale, rescale = DYNAMICRAFTER[name]
    golden, count = golden_outputs(), 5
    schedule = schedule_of(prediction, x0_scale, zero_snr=True)
    sigmas = sigma_schedule("simple", schedule, count)
    assert schedule.timestep(sigmas[:-1]).tolist() == [999, 799, 599, 399, 199]
    exact = without_end(schedule_of(prediction, x0_scale, zero_snr=True))
    for table, limit in ((exact, CLOSE), (schedule, {"rtol": 0, "atol": 2e-2})):
        grid = sigma_schedule("simple", table, count)
        states, denoised = run(table, grid, prediction, scale, rescale, eta)
        torch.testing.assert_close(states[:-1], golden[f"{name} x"][:-1], **limit)
        # What they store is already times the factor that x0 will have: the next step's, at last the same.
        s = table.x0_scale(torch.cat([grid[1:-1], grid[-2:-1]])).reshape(-1, 1, 1, 1, 1)
        torch.testing.assert_close(denoised * s, golden[f"{name} denoised"], **limit)
    for rescale_, scale_, eta_ in ((0.0, scale, eta), (rescale, 3.0, eta), (rescale, scale, 1 - eta)):
        other = run(table, grid, prediction, scale_, rescale_, eta_)[0]
        assert (other - states).abs().max() > 5e-2


def test_the_x0_scale_equals_the_sources():
    golden, at = golden_outputs(), [0, 1, 200, 398, 399, 400, 998, 999]
    for name, prediction, x0_scale in (
        ("videocrafter", "eps", 0.7),
        ("dynamicrafter 0.7", "v", 0.7),
        ("dynamicrafter 0.3", "v", 0.3),
    ):
        schedule = schedule_of(prediction, x0_scale, zero_snr=prediction == "v")
        torch.testing.assert_close(schedule.x0_scales[at], golden[f"{name} scale"].float())
        alpha_bars = 1 / ((schedule.sigmas * schedule.x0_scales).double() ** 2 + 1)
        torch.testing.assert_close(
            alpha_bars[at], golden[f"{name.split()[0]} alphas_cumprod"].double(), rtol=1e-4, atol=1e-7
        )
        # Between the entries too, and beyond them.
        torch.testing.assert_close(schedule.x0_scale(schedule.sigmas), schedule.x0_scales)
        middle = schedule.x0_scale(schedule.sigma(200.5))
        torch.testing.assert_close(middle, schedule.x0_scales[200:202].mean())
        ends = schedule.x0_scale(torch.tensor([0.0, 1e9])).tolist()
        assert ends == pytest.approx([1.0, x0_scale])
        assert (schedule.sigmas.diff() > 0).all()


def test_ddim_at_eta_1_is_ancestral_sampling_unless_x0_is_scaled():
    for x0_scale, equal in ((1.0, True), (0.7, False)):
        schedule = schedule_of("eps", x0_scale)
        sigmas = sigma_schedule("ddim_uniform", schedule, 5)
        ddim, ancestral = (
            run(schedule, sigmas, "eps", 3.0, 0.0, 1.0, name)[0] for name in ("ddim", "euler_ancestral")
        )
        assert torch.allclose(ddim, ancestral, atol=1e-5) == equal


def test_eta_0_is_euler():
    schedule = schedule_of("v", 0.3, zero_snr=True)
    sigmas = sigma_schedule("sgm_uniform", schedule, 7)
    ddim, euler = (run(schedule, sigmas, "v", 3.0, 0.7, 0.0, name)[0] for name in ("ddim", "euler"))
    assert torch.equal(ddim, euler)


def test_pure_noise_has_variance_1_for_the_network():
    schedule, noise = schedule_of("v", 0.3, zero_snr=True), torch.ones(SHAPE)
    x = initial_x(noise, schedule.sigmas[-1], schedule)
    seen = []
    Denoiser(lambda x_t, *_: seen.append(x_t) or x_t, schedule, "v")(x, schedule.sigmas[-1], condition(1.0))
    torch.testing.assert_close(seen[0], noise)


@pytest.mark.parametrize("steps", [5, 10, 20, 25, 50])
def test_spacings_of_the_sources(steps):
    """VideoCrafter's "uniform" and DynamiCrafter's "uniform_trailing" timesteps."""
    schedule, stride = schedule_of("eps", 0.7), 1000 // steps

    def timesteps(name):
        return schedule.timestep(sigma_schedule(name, schedule, steps)[:-1]).tolist()

    assert timesteps("ddim_uniform") == [t + 1 for t in range(0, 1000, stride)][::-1]
    assert timesteps("simple") == list(range(999, -1, -stride))

"""Where sampling starts: from there all samplers are right with all schedules, from zero SNR they are not."""

import dataclasses

import pytest
import torch

from univid.checkpoints import load
from univid.conditioning import Conditioning
from univid.diffusion import NoiseSchedule
from univid.presets import PROFILES, SD21_SCHEDULE, TINY
from univid.samplers import SAMPLERS, SIGMA_SCHEDULES, initial_x, sigma_schedule

FULL = NoiseSchedule(TINY.schedule)
STARTED = FULL.until(PROFILES["tiny"].start.timestep)
S = 0.7  # deviation of Gaussian data, for which the exact denoiser is known, and what a run must end at
STEPS = 6


def deviation(sampler, name, schedule):
    """Of many clips of one number that the exact denoiser makes from pure noise, in units of the data's."""
    generator = torch.Generator().manual_seed(0)
    sigmas = sigma_schedule(name, schedule, STEPS)
    x = initial_x(torch.randn(20_000, generator=generator), sigmas[0], schedule)
    x = SAMPLERS[sampler](
        lambda x, sigma: x * S**2 / (S**2 + sigma**2),
        x,
        sigmas,
        noise=lambda shape: torch.randn(shape, generator=generator),
    )
    return x.std().item() / S


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", SIGMA_SCHEDULES)
def test_six_steps_are_near_the_closed_form(sampler, name):
    assert 0.5 < deviation(sampler, name, STARTED) < 1.6


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_zero_snr_they_are_not(sampler):
    assert not 0.5 < deviation(sampler, "karras", FULL) < 1.6
    for name in ("normal", "exponential", "sgm_uniform") if sampler == "heun" else ():
        assert deviation(sampler, name, FULL) > 1.9


@pytest.fixture(scope="module")
def model():
    return load("built-in")


def test_the_built_in_model_starts_there(model):
    assert model.profile == PROFILES["tiny"]
    schedule = model.denoiser().schedule
    assert schedule.last == model.profile.start.timestep and 15 < schedule.sigma_max < 40
    assert schedule.sigma_max == pytest.approx(STARTED.sigma_max)
    assert not model.profile.start.from_video and schedule.from_noise


def test_the_network_is_told_that_what_it_gets_first_is_pure_noise(model):
    """Then the first step is that of zero terminal SNR, whose sigma of 4,519 no other step has to cross."""
    told = []

    class Spy(torch.nn.Module):
        def forward(self, x, timesteps, cond):
            told.append(timesteps.tolist())
            return torch.zeros_like(x)

    denoiser = dataclasses.replace(model.denoiser(), network=Spy())
    x = torch.zeros(1, 4, 1, 2, 2)
    for timestep in (935, 934, 500, 0):
        denoiser(
            x, denoiser.schedule.sigma(timestep), Conditioning(torch.zeros(1, 1, 8), None, torch.ones(1, 2))
        )
    assert told == [[999], [934], [500], [0]]
    eps = NoiseSchedule(SD21_SCHEDULE).until(900)  # has no timestep of pure noise
    assert eps.told(torch.tensor([900, 12])).tolist() == [900, 12]

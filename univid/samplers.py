"""Samplers and sigma schedules, under the host's names and definitions.

A sampler integrates dx = (x - x0) / sigma dsigma from sigmas[0] to 0 (Karras et al. 2206.00364). With x0
held fixed over a step the exact solution is x0 + (x - x0) sigma_next / sigma, which keeps float32 accurate
also at the huge first sigma of a zero-terminal-SNR schedule.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .devices import beside
from .diffusion import NoiseSchedule

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, sigma) -> x0
Noise = Callable[[tuple[int, ...]], Tensor]  # shape -> standard normal noise
# (step, num_steps, x, denoised) with x at the step's sigma; an exception raised in it cancels.
Callback = Callable[[int, int, Tensor, Tensor], None] | None


def initial_x(noise: Tensor, sigma: Tensor, schedule: NoiseSchedule, latents: Tensor | None = None) -> Tensor:
    """The state to start from at `sigma`, the first of the sigmas.

    noise: `[b c t h w]`, standard normal; latents: of the video to start from, or None.
    At the largest sigma of a schedule that starts from noise the network knows inputs of variance 1 only, so
    noise there has sqrt(1 + sigma^2), as in the host; else, sigma. Under a factor s of x0:
    sqrt(1 / s^2 + sigma^2).
    """
    full = schedule.from_noise and sigma >= schedule.sigma_max * (1 - 1e-5)
    largest = (schedule.x0_scales[-1].to(sigma) ** -2 + sigma**2).sqrt()
    x = noise * (largest if full else sigma)
    return x if latents is None else x + latents


# A sampler: (denoise, x [b c t h w] float32, sigmas [steps + 1] descending to 0, *, noise, callback) -> x.
# The sigmas stay on the CPU, wherever x is, so that no decision waits for a device. The deterministic ones
# draw no noise.


def sample_euler(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback = None
) -> Tensor:
    """Euler steps."""
    for step, sigma, sigma_next in _steps(sigmas):
        denoised = _denoise(denoise, x, sigma, step, sigmas, callback)
        x = _decay(x, denoised, sigma_next / sigma)
    return x


def sample_euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, callback: Callback = None
) -> Tensor:
    """Euler steps that go below the next sigma and add fresh noise (ancestral sampling, eta 1)."""
    for step, sigma, sigma_next in _steps(sigmas):
        denoised = _denoise(denoise, x, sigma, step, sigmas, callback)
        x = _decay_with_noise(x, denoised, sigma, sigma_next, noise)
    return x


def sample_ddim(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback = None,
    eta: float = 0.0,
    x0_scale: Callable[[Tensor], Tensor] = torch.ones_like,
) -> Tensor:
    """DDIM (2010.02502): Euler steps at eta 0, ancestral ones at eta 1.

    x0_scale: the schedule's. Where s changes, DDIM at eta > 0 is no longer ancestral sampling: it takes the
    fresh noise from abar, which does not know of s, as VideoCrafter and DynamiCrafter do.

    Raises:
        ValueError: eta above 0, and nothing to draw its noise from.
    """
    if eta and noise is None:
        raise ValueError(f"ddim with eta {eta:g} adds noise to every step, got none; give noise, or eta 0.")
    for step, sigma, sigma_next in _steps(sigmas):
        denoised = _denoise(denoise, x, sigma, step, sigmas, callback)
        kept = sigma_next / sigma
        if eta and sigma_next > 0:
            left = (kept * x0_scale(sigma_next) / x0_scale(sigma)) ** 2
            # 1 - fresh^2 written so that a `left` below float32's resolution at 1 counts.
            x = _decay(x, denoised, kept * (1 - eta**2 + eta**2 * left).sqrt())
            fresh = eta * (1 - left).sqrt()  # in units of sigma_next
            x = x + beside(noise(x.shape), x, x.dtype) * (sigma_next * fresh)
        else:
            x = _decay(x, denoised, kept)
    return x


def sample_heun(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback = None
) -> Tensor:
    """Heun's second-order steps, two denoiser calls each (2206.00364, alg. 1); the last one is Euler's."""
    for step, sigma, sigma_next in _steps(sigmas):
        denoised = _denoise(denoise, x, sigma, step, sigmas, callback)
        x_next = _decay(x, denoised, sigma_next / sigma)
        if sigma_next > 0:
            slope = (x - denoised) / sigma
            slope_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
            x_next = x_next + (slope_next - slope) / 2 * (sigma_next - sigma)
        x = x_next
    return x


def sample_dpmpp_2m(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback = None
) -> Tensor:
    """DPM-Solver++ 2M (2211.01095, alg. 2): Euler from an x0 extrapolated out of the last two answers."""
    previous = None
    for step, sigma, sigma_next in _steps(sigmas):
        denoised = _denoise(denoise, x, sigma, step, sigmas, callback)
        x = _decay(x, _extrapolate(denoised, previous, sigmas, step), sigma_next / sigma)
        previous = denoised
    return x


def sample_dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, callback: Callback = None
) -> Tensor:
    """SDE-DPM-Solver++ 2M (2211.01095; midpoint, eta 1): 2M's extrapolation, fresh noise every step."""
    previous = None
    for step, sigma, sigma_next in _steps(sigmas):
        denoised = _denoise(denoise, x, sigma, step, sigmas, callback)
        x = _decay_with_noise(x, _extrapolate(denoised, previous, sigmas, step), sigma, sigma_next, noise)
        previous = denoised
    return x


def sample_lcm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, callback: Callback = None
) -> Tensor:
    """A consistency model's steps (2303.01469, alg. 1): to the clean video, and back with fresh noise."""
    for step, sigma, sigma_next in _steps(sigmas):
        x = _denoise(denoise, x, sigma, step, sigmas, callback)
        if sigma_next > 0:
            x = x + beside(noise(x.shape), x, x.dtype) * sigma_next
    return x


SAMPLERS = {
    "euler": sample_euler,
    "euler_ancestral": sample_euler_ancestral,
    "ddim": sample_ddim,
    "heun": sample_heun,
    "dpmpp_2m": sample_dpmpp_2m,
    "dpmpp_2m_sde": sample_dpmpp_2m_sde,
    "lcm": sample_lcm,
}


def get_sampler(name: str, schedule: NoiseSchedule, eta: float = 0.0) -> Callable[..., Tensor]:
    """The sampler of a name, for a model's noise schedule.

    eta: of "ddim", 0 to 1: how much of the noise of a step is fresh. The others have no such number.

    Raises:
        ValueError: an unknown name, or eta out of range.
    """
    function = _known(SAMPLERS, name, "sampler")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 to 1, got {eta}.")
    return partial(function, eta=eta, x0_scale=schedule.x0_scale) if name == "ddim" else function


def adds_noise(name: str, eta: float = 0.0) -> bool:
    """Whether a sampler of SAMPLERS solves a stochastic equation, with fresh noise in its steps."""
    return name in ("euler_ancestral", "dpmpp_2m_sde", "lcm") or (name == "ddim" and eta > 0)


def _steps(sigmas: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    return ((step, sigmas[step], sigmas[step + 1]) for step in range(len(sigmas) - 1))


def _denoise(
    denoise: Denoise, x: Tensor, sigma: Tensor, step: int, sigmas: Tensor, callback: Callback
) -> Tensor:
    denoised = denoise(x, sigma)
    if callback is not None:
        callback(step, len(sigmas) - 1, x, denoised)
    return denoised


def _decay(x: Tensor, x0: Tensor, ratio: Tensor) -> Tensor:
    """The noise in x shrinks by `ratio`."""
    return x0 + (x - x0) * ratio


def _decay_with_noise(x: Tensor, x0: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise) -> Tensor:
    """The old noise shrinks by ratio^2, and fresh noise brings the deviation back to sigma_next."""
    ratio = sigma_next / sigma
    x = _decay(x, x0, ratio**2)
    if sigma_next > 0:
        x = x + beside(noise(x.shape), x, x.dtype) * (sigma_next * (1 - ratio**2).sqrt())
    return x


def _extrapolate(denoised: Tensor, previous: Tensor | None, sigmas: Tensor, step: int) -> Tensor:
    """x0 at the middle of this step in log sigma, from the last two answers; first order at either end."""
    if previous is None or sigmas[step + 1] == 0:
        return denoised
    before, now, after = sigmas[step - 1 : step + 2].log()
    return denoised + (denoised - previous) * ((now - after) / (before - now) / 2)


# Sigma schedules: (schedule, steps) -> sigmas [steps + 1], descending to 0.


def normal_sigmas(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Timesteps uniform from the first to the last, both included."""
    return _ending_in_zero(schedule.sigma(torch.linspace(len(schedule.sigmas) - 1, 0, steps)))


def sgm_uniform_sigmas(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Timesteps uniform, the last one left out: trailing spacing."""
    return _ending_in_zero(schedule.sigma(torch.linspace(len(schedule.sigmas) - 1, 0, steps + 1)[:-1]))


def simple_sigmas(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Entries of the table, counted down from the largest in even strides."""
    count = len(schedule.sigmas)
    return _ending_in_zero(schedule.sigmas[[count - 1 - int(i * (count / steps)) for i in range(steps)]])


def ddim_uniform_sigmas(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Timesteps 1, 1 + T // steps, ...: leading spacing.

    As in the host, a number of steps that does not divide T may give more steps than asked.
    """
    return _ending_in_zero(schedule.sigmas[1 :: len(schedule.sigmas) // steps].flip(0))


def karras_sigmas(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Uniform in sigma^(1/7) between the schedule's ends (2206.00364, eq. 5)."""
    low, high = schedule.sigma_min ** (1 / 7), schedule.sigma_max ** (1 / 7)
    return _ending_in_zero((high + torch.linspace(0, 1, steps) * (low - high)) ** 7)


def exponential_sigmas(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Uniform in log sigma between the schedule's ends."""
    return _ending_in_zero(
        torch.linspace(math.log(schedule.sigma_max), math.log(schedule.sigma_min), steps).exp()
    )


SIGMA_SCHEDULES = {
    "normal": normal_sigmas,
    "karras": karras_sigmas,
    "exponential": exponential_sigmas,
    "sgm_uniform": sgm_uniform_sigmas,
    "simple": simple_sigmas,
    "ddim_uniform": ddim_uniform_sigmas,
}


def sigma_schedule(name: str, schedule: NoiseSchedule, steps: int, denoise: float = 1.0) -> Tensor:
    """The sigmas of a run, `[steps + 1]` on the CPU, descending to 0.

    denoise: below 1, for a video to start from: the last `steps` steps of a schedule of `steps / denoise`.

    Raises:
        ValueError: unknown name; steps or denoise out of range.
    """
    function = _known(SIGMA_SCHEDULES, name, "sigma schedule")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps}.")
    if not 0 < denoise <= 1:
        raise ValueError(f"denoise must be above 0 and at most 1, got {denoise}.")
    full_steps = steps if denoise > 0.9999 else int(steps / denoise)
    if full_steps > len(schedule.sigmas):
        raise ValueError(
            f"steps / denoise must be at most {len(schedule.sigmas)}, the timesteps of the model, "
            f"got {full_steps}; take fewer steps or a larger denoise."
        )
    sigmas = function(schedule, full_steps)
    return sigmas if full_steps == steps else sigmas[-(steps + 1) :]


def _ending_in_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _known(table: dict[str, Callable[..., Tensor]], name: str, what: str) -> Callable[..., Tensor]:
    if name not in table:
        raise ValueError(f"{what} must be one of {', '.join(table)}, got {name!r}.")
    return table[name]

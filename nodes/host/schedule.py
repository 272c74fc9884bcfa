"""A checkpoint's noise schedule as the host's sampling: its betas, factor of x0 and start.

For models trained on s x0, with a factor s that falls along the timesteps, s x0 is the video for the
host's sampling classes, so they are asked about s x and s sigma.
"""

import torch
from comfy.model_sampling import reshape_sigma
from torch import Tensor

from ...univid.config import ScheduleConfig, StartProfile
from ...univid.diffusion import NoiseSchedule

BETA_SCHEDULES = {"scaled_linear": "linear", "squaredcos_cap_v2": "cosine"}  # the host's names


def sampling_settings(config: ScheduleConfig) -> dict:
    """What the host's sampling classes ask a model's config about its schedule."""
    ends = {"linear_start": config.betas.start, "linear_end": config.betas.end}
    return {
        "beta_schedule": BETA_SCHEDULES[config.betas.name],
        "timesteps": config.num_timesteps,
        "zsnr": config.zero_terminal_snr,
        **{name: value for name, value in ends.items() if value is not None},
    }


def own_sampling(sampling: torch.nn.Module, config: ScheduleConfig, start: StartProfile) -> torch.nn.Module:
    """The host's model sampling (eps or v) for a model's factor of x0, and from where its sampling starts.

    There is the largest sigma, as the host's schedulers, samplers and starting noise see it, and percent 0 of
    conditionings' ranges.
    """
    schedule = NoiseSchedule(config).starting(start)
    if config.x0_scale != 1:
        _scale(sampling, schedule)
    elif schedule.last < len(sampling.sigmas) - 1:
        sampling.set_sigmas(sampling.sigmas[: schedule.last + 1])
    if not schedule.from_noise:
        _start_from_video(sampling)
    return sampling if schedule.last == config.num_timesteps - 1 else _with_percents(sampling)


def _scale(sampling: torch.nn.Module, schedule: NoiseSchedule) -> None:
    class ScaledSampling(type(sampling)):
        def x0_scale(self, sigma: Tensor) -> Tensor:
            return schedule.x0_scale(sigma)

        def calculate_input(self, sigma: Tensor, x: Tensor) -> Tensor:
            s = self.x0_scale(sigma)
            return super().calculate_input(s * sigma, _times(s, x))

        def calculate_denoised(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
            s = self.x0_scale(sigma)
            return _times(1 / s, super().calculate_denoised(s * sigma, output, _times(s, x)))

        def noise_scaling(self, sigma: Tensor, noise: Tensor, latents: Tensor, max_denoise=False) -> Tensor:
            s = self.x0_scale(sigma)
            return _times(1 / s, super().noise_scaling(s * sigma, noise, _times(s, latents), max_denoise))

    sampling.__class__ = ScaledSampling
    sampling.set_sigmas(schedule.sigmas)


def _start_from_video(sampling: torch.nn.Module) -> None:
    class VideoSampling(type(sampling)):
        def noise_scaling(self, sigma: Tensor, noise: Tensor, latents: Tensor, max_denoise=False) -> Tensor:
            """The largest sigma is one like the others: there is a video under its noise."""
            return super().noise_scaling(sigma, noise, latents)

    sampling.__class__ = VideoSampling


def _with_percents(sampling: torch.nn.Module) -> torch.nn.Module:
    class ShortSampling(type(sampling)):
        def percent_to_sigma(self, percent: float) -> float:
            """Percents are of the table, where the host's class counts on 1,000 entries."""
            if not 0 < percent < 1:
                return super().percent_to_sigma(percent)
            return self.sigma(torch.tensor((1 - percent) * (len(self.sigmas) - 1))).item()

    sampling.__class__ = ShortSampling
    return sampling


def x0_scale(sampling: torch.nn.Module, sigma: Tensor) -> Tensor:
    """The factor of x0 at sigma, of its shape, under the model sampling that a run uses; else 1."""
    return sampling.x0_scale(sigma) if hasattr(sampling, "x0_scale") else torch.ones_like(sigma)


def _times(s: Tensor, x: Tensor) -> Tensor:
    return reshape_sigma(s, x.ndim) * x

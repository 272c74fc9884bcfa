"""The noise schedule of models that were trained on s x0, with a factor s that falls along the timesteps.

For the host's sampling classes s x0 is the video, so they are asked about s x and s sigma.
"""

import torch
from comfy.model_sampling import reshape_sigma
from torch import Tensor

from ...univid.config import ScheduleConfig
from ...univid.diffusion import NoiseSchedule


def scaled_sampling(sampling: torch.nn.Module, config: ScheduleConfig) -> torch.nn.Module:
    """The host's model sampling of a model (eps or v), for its factor of x0."""
    if config.x0_scale == 1:
        return sampling
    schedule = NoiseSchedule(config)

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
    return sampling


def x0_scale(sampling: torch.nn.Module, sigma: Tensor) -> Tensor:
    """The factor of x0 at sigma, of its shape, under the model sampling that a run uses; else 1."""
    return sampling.x0_scale(sigma) if hasattr(sampling, "x0_scale") else torch.ones_like(sigma)


def _times(s: Tensor, x: Tensor) -> Tensor:
    return reshape_sigma(s, x.ndim) * x

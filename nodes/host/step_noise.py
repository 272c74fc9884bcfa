"""SAMPLERs of the host whose fresh noise is the library's, so that node and command line make the same clip.

Its lcm, and the library's DDIM: the host's own "ddim" knows eta 0 alone.
"""

from collections.abc import Sequence
from functools import partial

import comfy.samplers
import torch
from einops import rearrange
from torch import Tensor

from ...univid.noise import ClipNoise
from ...univid.samplers import sample_ddim
from .schedule import x0_scale


class StepNoise:
    """The library's noise of a seed, (t, c, h, w) on the CPU, from a clip's first step on.

    started: shape of the noise that the run started from: of a window, with all frames before it.
    """

    def __init__(self, seed: int, started: Sequence[int]):
        self._noise = ClipNoise([seed])
        self(started)

    def __call__(self, shape: Sequence[int]) -> Tensor:
        t, c, h, w = shape
        return rearrange(self._noise((1, c, t, h, w)), "1 c t h w -> t c h w")


def lcm(noise: StepNoise, shape: Sequence[int], device: torch.device) -> comfy.samplers.KSAMPLER:
    """The host's lcm with that noise, for latents of `shape`, (t, c, h, w)."""
    return comfy.samplers.ksampler("lcm", {"noise_sampler": lambda sigma, after: noise(shape).to(device)})


def ddim(eta: float, model_sampling: torch.nn.Module, noise: StepNoise) -> comfy.samplers.KSAMPLER:
    """DDIM with eta of 0 to 1 and that noise, for latents `[t c h w]`."""

    def sample(model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None) -> Tensor:
        ones = x.new_ones(x.shape[0])

        def report(step: int, _: int, x: Tensor, denoised: Tensor) -> None:
            if callback is not None:
                sigma = sigmas[step]
                callback({"i": step, "x": x, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

        return sample_ddim(
            lambda x, sigma: model(x, sigma * ones, **(extra_args or {})),
            x,
            sigmas,
            noise=noise,
            callback=report,
            eta=eta,
            x0_scale=partial(x0_scale, model_sampling),
        )

    return comfy.samplers.KSAMPLER(sample, inpaint_options={"random": True})  # as the host's own

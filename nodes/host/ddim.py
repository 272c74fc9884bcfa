"""The library's DDIM with fresh noise, as a SAMPLER of the host; the host's own "ddim" knows eta 0 alone."""

from functools import partial

import comfy.samplers
import torch
from einops import rearrange
from torch import Tensor

from ...univid.noise import ClipNoise
from ...univid.samplers import sample_ddim
from .schedule import x0_scale


def ddim(eta: float, model_sampling: torch.nn.Module, seed: int) -> comfy.samplers.KSAMPLER:
    """DDIM with eta of 0 to 1 for latents `[t c h w]`; the noise of a step is the library's of this seed."""

    def sample(model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None) -> Tensor:
        noise, ones = ClipNoise([seed]), x.new_ones(x.shape[0])

        def fresh(shape) -> Tensor:
            t, c, h, w = shape
            return rearrange(noise((1, c, t, h, w)), "1 c t h w -> t c h w")

        def report(step: int, _: int, x: Tensor, denoised: Tensor) -> None:
            if callback is not None:
                sigma = sigmas[step]
                callback({"i": step, "x": x, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

        fresh(x.shape)  # the noise that the run started from
        return sample_ddim(
            lambda x, sigma: model(x, sigma * ones, **(extra_args or {})),
            x,
            sigmas,
            noise=fresh,
            callback=report,
            eta=eta,
            x0_scale=partial(x0_scale, model_sampling),
        )

    return comfy.samplers.KSAMPLER(sample, inpaint_options={"random": True})  # as the host's own

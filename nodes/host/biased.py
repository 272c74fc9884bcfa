"""Consistent biased noise on a MODEL; in mode "paper" the host's samplers need nothing but the latents."""

import comfy.samplers
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ...univid.biased import BiasedNoise, biased_mode
from .model import profile_of

KEY = "univid_biased_noise"
# Samplers of the host that add no noise, by their functions' names; "ddim" is its euler.
ODE = {
    "euler", "heun", "heunpp2", "exp_heun_2_x0", "dpm_2", "lms", "dpmpp_2m", "ipndm", "ipndm_v", "deis",
    "res_multistep", "gradient_estimation",
}  # fmt: skip


def with_consistent_noise(model, latents: Tensor):
    """A clone of a MODEL whose denoiser follows the noisy videos of its training, whatever guides it.

    latents: `[t c h w]` of the condition's video, as VAE Encode gives them, from which the run starts too.

    Raises:
        ValueError: a model without biased noise; in a run, a sampler that adds noise.
    """
    profile = profile_of(model)
    biased_mode(profile, "consistent")

    def check(executor: WrapperExecutor, *args, **kwargs) -> Tensor:
        name = _name(executor.class_obj)
        biased_mode(profile, "consistent", None if name in ODE else name)
        return executor(*args, **kwargs)

    def predict(executor: WrapperExecutor, x: Tensor, sigma: Tensor, *args, **kwargs) -> Tensor:
        network = executor.class_obj.inner_model  # of the GUIDER
        biased = BiasedNoise(profile.start.biased_noise, network.diffusion_model.schedule)
        denoise = biased.consistent(
            lambda x, sigma: executor(x, sigma, *args, **kwargs), network.process_latent_in(latents)
        )
        return denoise(x, sigma)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, check)
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, predict)
    return clone


def _name(sampler: comfy.samplers.Sampler) -> str:
    function = getattr(sampler, "sampler_function", sampler)
    return getattr(function, "__name__", type(function).__name__).removeprefix("sample_")

"""The noise that a MODEL's runs start from, whatever node samples: FreeNoise's, FreeInit's and FrameInit's.

FreeNoise acts on the noise as a sampler brings it, the low band after that, in whatever order nodes set them.
"""

from comfy.patcher_extension import WrapperExecutor, WrappersMP
from einops import rearrange
from torch import Tensor

from ...univid.noise import ClipNoise, LowBand, free_order
from ...univid.steer import FrameWindows
from .changed import changed
from .model import profile_of, with_option

FREE, LOW = "univid_free_noise", "univid_low_band"


def with_windows(model, windows: FrameWindows, free_noise: bool):
    """A clone of a MODEL whose attention over time has windows, and whose clips start from FreeNoise or not.

    Raises:
        ValueError: another model than UniVid; in a run, a clip that is shorter than a window.
    """
    clone = with_option(changed(model, windows=windows), FREE, windows if free_noise else None)
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, FREE)

    def reordered(
        executor: WrapperExecutor, noise: Tensor, latent_image: Tensor, sampler, sigmas: Tensor,
        denoise_mask=None, callback=None, disable_pbar=False, seed=None, *args, **kwargs,
    ) -> Tensor:  # fmt: skip
        windows.check(len(noise))
        noise = noise[free_order(len(noise), windows, seed or 0).to(noise.device)]
        rest = (denoise_mask, callback, disable_pbar, seed, *args)
        return executor(noise, latent_image, sampler, sigmas, *rest, **kwargs)

    if free_noise:
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, FREE, reordered)
    return clone


def with_low_band(model, latents: Tensor, seed: int, band: LowBand):
    """A clone of a MODEL whose clips start from noise with the low band of `latents` under that noise.

    latents: `[t c h w]` of the clip of the run before, or `[1 c h w]` of a picture, as VAE Encode gives them.
    seed: of the fresh noise, from which the high band comes.

    Raises:
        ValueError: another model than UniVid; in a run, a clip of another length or size, one that does not
            start from noise alone, or the sampler's seed.
    """
    profile_of(model)
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, LOW)

    def started(
        executor: WrapperExecutor, guider, sigmas: Tensor, extra_args: dict, callback, noise: Tensor,
        latent_image: Tensor | None = None, *args, **kwargs,
    ) -> Tensor:  # fmt: skip
        network = guider.inner_model
        schedule = network.diffusion_model.schedule
        if not schedule.from_noise or (latent_image is not None and latent_image.any()):
            raise ValueError(
                "FreeInit is for clips that start from noise alone, got one that starts from a video; take "
                "Empty UniVid Latent for the sampler."
            )
        if len(latents) not in (1, len(noise)) or latents.shape[1:] != noise.shape[1:]:
            raise ValueError(
                f"expected latents of the clip's {list(noise.shape)} or of one picture of its size, got "
                f"{list(latents.shape)}; connect those of the run before."
            )
        if extra_args.get("seed") == seed:
            raise ValueError(
                f"the fresh noise of FreeInit is that of the sampler, by the same seed {seed}; take another."
            )
        windows = extra_args["model_options"]["transformer_options"].get(FREE)
        low, own = (rearrange(x, "t c h w -> 1 c t h w") for x in (network.process_latent_in(latents), noise))
        start = band.start(low, own, ClipNoise([seed], windows=windows)(own.shape), schedule)
        noise = rearrange(start, "1 c t h w -> t c h w").to(noise)
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, *args, **kwargs)

    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, LOW, started)
    return clone

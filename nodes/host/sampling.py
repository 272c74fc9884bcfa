"""One whole run of PST Sampler: noise, guidance, sampler, progress, preview, interrupt, finite check."""

import logging

import comfy.model_management as management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ...univid import memory
from ...univid.guidance import Pulls
from ...univid.machine import available_memory
from .guider import Guidance, UniVidGuider
from .model import profile_of
from .patches import owners
from .preview import ClipPreviewer, previewer_of
from .step_noise import StepNoise, ddim, lcm

OWN = "the checkpoint's own"
SAMPLERS = [*comfy.samplers.KSampler.SAMPLERS, OWN]
SCHEDULERS = [*comfy.samplers.KSampler.SCHEDULERS, OWN]

logger = logging.getLogger(__name__)


def sample(
    model,
    positive: list,
    negative: list,
    latent: dict,
    *,
    seed: int,
    steps: int,
    sampler_name: str,
    scheduler: str,
    guider: Guidance,
    denoise: float = 1.0,
    eta: float = -1.0,
) -> tuple[dict, list[Pulls | None]]:
    """Sample `latent` {"samples": [t 4 h w]}; return the new latent and the pulls of each model call.

    sampler_name, scheduler: names of the host, or OWN for the checkpoint's.
    eta: of "ddim", 0 to 1; negative = the checkpoint's.

    Raises:
        ValueError: another model, latents of another shape, conditions of another width or length, or a
            number out of range.
        FloatingPointError: the U-Net gave nan or infinite values.
    """
    profile = profile_of(model)
    sampler_name = profile.sampler if sampler_name == OWN else sampler_name
    scheduler = profile.sigma_schedule if scheduler == OWN else scheduler
    eta = profile.eta if eta < 0 else eta
    if eta > 1:
        raise ValueError(f"eta must be from 0 to 1, or below 0 for the checkpoint's, got {eta}.")
    samples = comfy.sample.fix_empty_latent_channels(
        model, latent["samples"], latent.get("downscale_ratio_spacial")
    )
    model.model.check_latents(samples)
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    host_guider = UniVidGuider(model, guider)
    host_guider.set_conds(positive, negative)
    sigmas = comfy.samplers.KSampler(
        model, steps, model.load_device, sampler_name, scheduler, denoise, model.model_options
    ).sigmas
    preflight(model, samples, host_guider)
    out = host_guider.sample(
        noise,
        samples,
        _sampler(model, sampler_name, eta, seed, latent | {"samples": samples}),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    out = out.to(device=management.intermediate_device(), dtype=management.intermediate_dtype())
    result = {key: value for key, value in latent.items() if key != "downscale_ratio_spacial"}
    return result | {"samples": out}, host_guider.pulls


def _sampler(model, name: str, eta: float, seed: int, latent: dict) -> comfy.samplers.KSAMPLER:
    """The host's, but for those whose noise in a step is the library's, so that both make the same clip."""
    if name != "lcm" and not (name == "ddim" and eta):
        return comfy.samplers.sampler_object(name)
    t, *shape = latent["samples"].shape
    noise = StepNoise(seed, (max(latent.get("batch_index") or [t - 1]) + 1, *shape))
    if name == "lcm":
        return lcm(noise, (t, *shape), model.load_device)
    return ddim(eta, model.get_model_object("model_sampling"), noise)


def preflight(model, samples: Tensor, guider: UniVidGuider) -> None:
    """Log what is about to run, the memory that the host plans for it, and what is free.

    A warning where that is too little: for one branch, because the host takes them one by one if it must.
    """
    branches = len(guider.guidance.plan(True, True))
    frames, _, height, width = samples.shape
    window = getattr(model.model_options.get("context_handler"), "context_length", frames)
    shape, free = (min(frames, window), *samples.shape[1:]), room(model.load_device)
    alone, all_branches = (model.model.memory_required([n * shape[0], *shape[1:]]) for n in (1, branches))
    logger.info(
        "UniVid: %d frames of %d x %d, %d branch%s a step, %s, about %.2f GB for activations, %.2f GB free",
        frames, 8 * width, 8 * height, branches, "es" * (branches > 1), _dtype(model), all_branches / 1e9,
        free / 1e9,
    )  # fmt: skip
    smaller = ", or load the model as bf16" if model.model.get_dtype_inference() == torch.float32 else ""
    clip = memory.finished(1, (frames, 8 * height, 8 * width))
    for what, needed, there, cure in (
        ("a step", alone, free, f"make fewer or smaller frames, use context windows{smaller}"),
        ("the finished clip", clip, available_memory(), "make fewer or smaller frames"),
    ):
        if needed > there:
            logger.warning(
                "UniVid: %s needs about %.1f GB of memory, and %.1f GB are free; %s",
                what, needed / 1e9, there / 1e9, cure,
            )  # fmt: skip


def room(device: torch.device) -> int:
    """Bytes that a step can take on a device, once the host has moved all models out that lie there."""
    if management.is_device_cpu(device):
        return available_memory()
    loaded = (other for other in management.current_loaded_models if other.device == device)
    return management.get_free_memory(device) + sum(other.model_loaded_memory() for other in loaded)


def _callback(model, steps: int):
    """Progress and preview, after a check that stops a run that broke."""
    previewer, bar = previewer_of(model), comfy.utils.ProgressBar(steps)

    def callback(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        if not torch.isfinite(denoised).all():
            raise FloatingPointError(
                f"the U-Net gave nan or infinite values in step {step + 1} of {total} in {_dtype(model)}; "
                f"{_cure(model)}."
            )
        if step + 1 == total and isinstance(previewer, ClipPreviewer):
            previewer.due = 0.0  # the last one stays on the node
        picture = previewer and previewer.decode_latent_to_preview_image("JPEG", denoised)
        bar.update_absolute(step + 1, total, picture)

    return callback


def _cure(model) -> str:
    """What to try where a model gives nan or infinite values."""
    if patched := owners(model.model_options):
        return f"the model is patched by {', '.join(patched)}: try without, or another size of the clip"
    if model.model.get_dtype_inference() != torch.float32:
        return "load the model with dtype fp32, or bf16 instead of fp16"
    return "try another sampler or scheduler, a lower guidance scale, and without LoRAs"


def _dtype(model) -> str:
    return str(model.model.get_dtype_inference()).removeprefix("torch.")

"""Latents `[t 4 h w]`: empty ones, and into frames with any Stable Diffusion VAE of the host."""

import comfy.model_management as management
import comfy.utils
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

FACTOR = 8  # pixels a latent cell, of every Stable Diffusion 1.x and 2.x VAE


def empty(frames: int, height: int, width: int) -> Tensor:
    """Zero latents for a clip; height and width in pixels, multiples of FACTOR."""
    return torch.zeros(
        (frames, 4, height // FACTOR, width // FACTOR),
        device=management.intermediate_device(),
        dtype=management.intermediate_dtype(),
    )


def decode(vae, samples: Tensor, chunk: int = 8) -> Tensor:
    """Frames `[t h w 3]` in 0..1 of latents `[t c h w]`, with progress, and an interrupt between chunks.

    chunk: frames decoded at once at most; the host takes fewer where memory is short.

    Raises:
        ValueError: latents of another model, or a VAE that is none for images.
        FloatingPointError: latents or frames with nan or infinite values.
    """
    _check(vae, samples)
    frames = samples.shape[0]
    bar, result = comfy.utils.ProgressBar(frames), None
    for start in range(0, frames, chunk):
        management.throw_exception_if_processing_interrupted()
        part = vae.decode(samples[start : start + chunk])  # [n h w 3]
        if not part.isfinite().all():
            raise FloatingPointError(_not_finite(vae.vae_dtype, start, start + len(part)))
        if result is None:
            result = torch.empty((frames, *part.shape[1:]), dtype=part.dtype, device=part.device)
        result[start : start + len(part)] = part
        bar.update_absolute(start + len(part))
    return result


def spread(samples: Tensor, count: int) -> Tensor:
    """At most `count` frames of `[t ...]`, evenly from the first to the last."""
    frames = samples.shape[0]
    return samples[[round(i) for i in np.linspace(0, frames - 1, min(count, frames))]]


def as_clip(images: Tensor) -> Tensor:
    """The host's IMAGE `[t h w 3]` in 0..1 as the library's clip `[1 3 t h w]` in -1..1."""
    return rearrange(images, "t h w c -> 1 c t h w") * 2 - 1


def as_image(picture) -> Tensor:
    """An uint8 picture `[h w 3]`, an array or Pillow's, as the host's IMAGE `[1 h w 3]` in 0..1."""
    return rearrange(torch.from_numpy(np.array(picture)), "h w c -> 1 h w c").float() / 255


def _check(vae, samples: Tensor) -> None:
    channels = vae.latent_channels
    if getattr(samples, "is_nested", False) or samples.ndim != 4:
        raise ValueError(
            f"expected latents [frames channels height width], got {list(samples.shape)}, as other video "
            "models make them; decode those with VAE Decode."
        )
    if vae.latent_dim != 2:
        raise ValueError(
            "expected a VAE for images, which decodes frame by frame, got one for "
            f"{ {1: 'audio', 3: 'videos'}.get(vae.latent_dim, 'something else') }; "
            "take the one of Load UniVid or of Stable Diffusion 1.x or 2.x."
        )
    if samples.shape[1] != channels:
        raise ValueError(
            f"the VAE decodes latents of {channels} channels, got {samples.shape[1]} in "
            f"{list(samples.shape)}; take the VAE that belongs to the model."
        )
    if samples.shape[0] == 0:
        raise ValueError("expected latents of at least 1 frame, got none; make a clip first.")
    if not samples.isfinite().all():
        raise FloatingPointError(
            f"the latents hold nan or infinite values before decoding ({_name(samples.dtype)}); sample them "
            "again with the model loaded as fp32, or as bf16 instead of fp16."
        )


def _not_finite(dtype: torch.dtype, start: int, end: int) -> str:
    advice = (
        "the VAE's file is damaged, load another one"
        if dtype == torch.float32
        else "start the host with --fp32-vae"
    )
    return f"the VAE gave nan or infinite values in frames {start} to {end - 1} in {_name(dtype)}; {advice}."


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

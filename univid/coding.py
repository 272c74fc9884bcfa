"""Pixels to latents in the largest pieces that fit into the free memory, and the size of those pieces."""

import logging

from torch import Tensor

from . import memory
from .model import UniVid

logger = logging.getLogger(__name__)


def pieces(
    model: UniVid, way: str, clips: int, size: tuple[int, int, int], tile: int | None = None
) -> memory.Pieces:
    """In which the VAE can take clips (t, h, w) now.

    way: "encode" or "decode". tile: latent cells a side of larger frames' tiles; None = whole frames if they
        fit.
    """
    t, h, w = size
    factor, weight = model.config.vae.factor, next(model.vae.parameters())
    if tile is not None and tile * factor < max(h, w):
        return memory.Pieces(1, tile)
    coding = memory.Coding(
        model.config.vae, way, clips * t, (h // factor, w // factor), weight.dtype, weight.device
    )
    free = memory.free_memory(weight.device)
    found = coding.pieces(None if free is None else free - memory.finished(clips, size))
    if found.tile is not None:
        logger.warning(
            "frames of %d x %d are %sd in tiles of %d x %d pixels, because whole ones do not fit into the "
            "memory that is free; the result changes a little",
            w, h, way, *[factor * found.tile] * 2,
        )  # fmt: skip
    return found


def encode(model: UniVid, video: Tensor, tile: int | None = None) -> Tensor:
    """Final latents `[b c t h w]` in float32 of videos `[b 3 t h w]`, which move to the VAE's device."""
    found = pieces(model, "encode", len(video), tuple(video.shape[2:]), tile)
    video = video.to(next(model.vae.parameters()).device)
    return model.vae.encode(video, chunk=found.chunk, tile=found.tile).float()

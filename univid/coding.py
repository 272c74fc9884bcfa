"""Pixels to latents in the largest pieces that fit into the free memory, and the size of those pieces."""

import logging

from torch import Tensor

from . import memory
from .model import UniVid

logger = logging.getLogger(__name__)


def pieces(model: UniVid, way: str, clips: int, size: tuple[int, int, int]) -> memory.Pieces:
    """In which the VAE can take clips (t, h, w) now; way: "encode" or "decode"."""
    t, h, w = size
    factor, weight = model.config.vae.factor, next(model.vae.parameters())
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


def encode(model: UniVid, video: Tensor) -> Tensor:
    """Final latents `[b c t h w]` in float32 of videos `[b 3 t h w]` on the VAE's device."""
    found = pieces(model, "encode", len(video), tuple(video.shape[2:]))
    return model.vae.encode(video, chunk=found.chunk, tile=found.tile).float()

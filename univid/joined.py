"""The latents that join a network's input: of pictures, or of the frames of a clip that are known."""

import torch
from einops import rearrange
from torch import Tensor

from .asked import Source
from .coding import encode
from .conditioning import concat_frames
from .config import KNOWN
from .known import known_channels, noisy
from .model import UniVid
from .video import fit


def joined_latents(
    model: UniVid,
    image: Tensor | None,
    source: Source,
    level: float,
    size: tuple[int, int, int],
    noise: Tensor,
    tile: int | None = None,
) -> Tensor | None:
    """What the profile joins to the input, `[b c t h w]`; None where it says "none".

    image: the first frame, `[1|b 3 h w]`; it and `source.last_image` are cropped at the centre to the video's
    proportions. level: of the noise on known latents. size: (t, h, w). noise: what sampling starts from.
    tile: as `coding.pieces` takes it.
    """
    kind, frames, clips = model.profile.inputs.concat, size[0], len(noise)
    if kind == "none":
        return None
    device = next(model.vae.parameters()).device
    first, last = (
        None if picture is None else picture_latents(model, picture, size[1:], clips, tile)
        for picture in (image, source.last_image)
    )
    if kind not in KNOWN:
        return concat_frames(kind, first, last, frames)
    latents, mask = torch.zeros_like(noise, device=device), torch.zeros(clips, frames, dtype=torch.bool)
    if source.known:
        places = list(source.known)
        latents[:, :, places] = encode(model, source.video[:, :, places], tile)
        mask[:, places] = True
    for place, picture in ((0, first), (frames - 1, last)):
        if picture is not None:
            latents[:, :, place : place + 1] = picture
            mask[:, place] = True
    return known_channels(kind, noisy(latents, level, noise), mask)


def picture_latents(
    model: UniVid, pictures: Tensor, pixels: tuple[int, int], clips: int, tile: int | None = None
) -> Tensor:
    """Latents `[b c 1 h w]` of pictures `[1|b 3 h w]`, cropped at the centre to frames of (h, w) pixels."""
    clip = fit(rearrange(pictures, "b c h w -> 1 c b h w"), *pixels)
    latents = encode(model, clip, tile)
    return rearrange(latents, "1 c b h w -> b c 1 h w").expand(clips, -1, -1, -1, -1)

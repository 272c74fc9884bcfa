"""Known frames: what a model is shown of a clip of which it makes the others (Show-1 3.4; SEINE 2310.20700).

One mechanism animates a picture, goes from one to another, fills in frames, continues a clip and closes a
loop: latents of the known frames and a mask of them join the input along channels.
"""

import torch
from torch import Tensor

from .asked import Source
from .config import KNOWN
from .model import UniVid


def known_channels(kind: str, latents: Tensor, mask: Tensor) -> Tensor:
    """What joins the input, `[b c+1 t h w]`: latents with the unknown frames filled in, and the mask.

    Args:
        kind: of the sampling profile's `concat`. "known": zeros where nothing is known (Show-1's paper).
            "known_blend": what lies on a straight line in time between the known neighbours, and beyond the
            outermost one that one (the authors' code).
        latents: `[b c t h w]`; unknown frames may hold anything finite.
        mask: `[b t]` bool, True = known.
    """
    shown = mask.to(latents)[:, None, :, None, None]
    filled = latents * shown
    if kind == "known_blend":
        filled = _blended(latents, mask.to(latents.device)) * shown.amax(2, keepdim=True)
    return torch.cat([filled, shown.expand(-1, 1, -1, *latents.shape[3:])], 1)


def _blended(latents: Tensor, mask: Tensor) -> Tensor:
    frames = mask.shape[1]
    steps = torch.arange(frames, device=mask.device).expand_as(mask)
    before = steps.masked_fill(~mask, -1).cummax(1).values  # the last known one so far, -1 = none
    after = steps.masked_fill(~mask, frames).flip(1).cummin(1).values.flip(1)  # the next one, frames = none
    left = torch.where(before < 0, after, before).clamp(max=frames - 1)
    right = torch.where(after == frames, before, after).clamp(min=0)
    share = (steps - left) / (right - left).clamp(min=1)

    def at(index: Tensor) -> Tensor:
        return latents.gather(2, index[:, None, :, None, None].expand_as(latents))

    return torch.lerp(at(left), at(right), share.to(latents)[:, None, :, None, None])


def noisy(latents: Tensor, level: float, noise: Tensor) -> Tensor:
    """Known latents with noise of `level` times their deviation, of which the network is told ("noise").

    A little of it makes the network forgive what earlier made frames lack (noise augmentation, 2106.15282).

    noise: that which sampling starts from, `[b c t h w]`; here it serves at other places, so that it says
        nothing of itself.
    """
    return latents + level * noise.roll(1, 1).flip(-1) if level else latents


def check_known(model: UniVid, source: Source, image: Tensor | None, frames: int) -> None:
    """Refuse known frames that a clip does not have, or of which a model makes nothing.

    Raises:
        ValueError: as said.
    """
    known, inputs = source.known, model.profile.inputs
    if source.known_noise is not None:
        if "noise" not in model.config.unet.numbers:
            raise ValueError(
                f"this model was trained without noise on known frames, got {source.known_noise:g}; leave "
                "known_noise out."
            )
        if not 0 <= source.known_noise <= 1:
            raise ValueError(f"known_noise must be from 0 to 1, got {source.known_noise:g}.")
    if not known:
        return
    if inputs.concat not in KNOWN:
        raise ValueError(
            "this model makes whole clips and takes no known frames, got some; load one that was trained for "
            "them, or leave `known` out."
        )
    if source.video is None or source.denoise != 1 or image is not None or source.last_image is not None:
        raise ValueError(
            "expected known frames of a video, without a picture beside it and with denoise 1, got something "
            "else; pictures of the first and last frame need no `known`."
        )
    if list(known) != sorted(set(known)) or not 0 <= known[0] <= known[-1] < frames:
        raise ValueError(
            f"known must be frames from 0 to {frames - 1}, each once and ascending, got {tuple(known)}."
        )
    if len(known) == frames:
        raise ValueError(f"all {frames} frames are known, so there is nothing to make; leave some out.")

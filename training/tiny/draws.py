"""Which frames of which clips a step shows, for all its samples at once.

A clip of the set is known at many moments. What is shown of it is a number of them: spread over the whole
clip, or a window at some stride, as one cuts a piece out of a longer video. A single frame is one moment.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .options import ShownOptions

PICTURED = 4  # every so many moments there are image tokens: what can be shown as a picture


@dataclass(frozen=True)
class Draws:
    """Of `b` samples of `t` frames. clips: `[b]` indices. moments: `[b t]` indices, ascending.

    pictures: `[b]`, the picture's moment, counted in PICTURED. still: `[b]`, whether a sample is a picture of
    its own: its caption is without motion, and its frame has no place.
    """

    clips: Tensor
    moments: Tensor
    pictures: Tensor
    still: Tensor

    def places(self, moments: int, told: bool) -> Tensor:
        """The frames' places in their clips of so many moments, `[b t]`; -1 where they are not told."""
        return torch.where(self.still[:, None] | (not told), -1.0, (self.moments + 0.5) / moments)


class Drawer:
    """Draws samples with generators of one device, that of `centered`.

    centered: the clips whose paths lead through the middle. moments: of every clip.
    """

    def __init__(self, shown: ShownOptions, clips: int, centered: Tensor, moments: int):
        self.shown, self.clips, self.moments, self.device = shown, clips, moments, centered.device
        self.pictured = -(-moments // PICTURED)  # moments that can be shown as a picture
        self.centered = centered if len(centered) else torch.arange(clips, device=self.device)

    def images(self, size: int, rng: torch.Generator) -> Draws:
        """Single frames, shown as pictures of their own or as what they are, frames at a place in a clip.

        The second is the cheap way to learn where a word of motion puts a shape, and, when the picture is one
        of any frame of the clip, to keep what a picture shows in all of them.
        """
        own, other = (self._integers(self.pictured, size, rng) for _ in range(2))
        still = self._uniform(size, rng) < self.shown.still_share
        if self.shown.places and self.shown.picture_of_clip:
            pictures = torch.where(still, own, other)
        else:
            pictures = own
        return Draws(self._clips(size, rng), PICTURED * own[:, None], pictures, still)

    def videos(self, size: int, frames: int, rng: torch.Generator) -> Draws:
        """Clips of `frames` frames."""
        steps = torch.arange(frames, device=self.device)
        u = self._uniform(size, rng)[:, None]
        spread = ((steps + u) * self.moments / frames).long()
        stride = (1 + self._uniform(size, rng)[:, None] * (self.moments // frames)).long()
        room = self.moments - stride * (frames - 1)
        start = (u * room).long()
        whole = self._uniform(size, rng)[:, None] < self.shown.whole_share
        moments = torch.where(whole, spread, start + stride * steps).clamp(max=self.moments - 1)
        pictures = self._integers(self.pictured, size, rng)
        return Draws(self._clips(size, rng), moments, pictures, torch.zeros_like(pictures, dtype=torch.bool))

    def _clips(self, size: int, rng: torch.Generator) -> Tensor:
        anywhere = self._integers(self.clips, size, rng)
        centered = self.centered[self._integers(len(self.centered), size, rng)]
        return torch.where(self._uniform(size, rng) < self.shown.centered_share, centered, anywhere)

    def _uniform(self, size: int, rng: torch.Generator) -> Tensor:
        return torch.rand(size, generator=rng, device=self.device)

    def _integers(self, high: int, size: int, rng: torch.Generator) -> Tensor:
        return torch.randint(high, (size,), generator=rng, device=self.device)

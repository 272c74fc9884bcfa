"""Attention over time in windows of frames, averaged inside the layer (FreeNoise, 2310.15169)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

REFERENCES = ("window", "clip")


@dataclass(frozen=True)
class FrameWindows:
    """How attention over time sees a clip that is longer than those of its training: a window at a time.

    length: frames of a window, at least 2. stride: from one window's first frame to the next one's, 1 to
        `length`; the last window ends with the clip.
    references: the frames that PSTAttn looks at. "window": each window's own, as of a clip of its length.
        "clip": the same ones for all, spread over the whole clip, so that PSTAttn has no windows.

    Raises:
        ValueError: other numbers or words.
    """

    length: int
    stride: int
    references: str = "window"

    def __post_init__(self):
        if self.length < 2:
            raise ValueError(f"windows must have at least 2 frames, got {self.length}.")
        if not 1 <= self.stride <= self.length:
            raise ValueError(
                f"the stride of windows must be from 1 to their {self.length} frames, got {self.stride}."
            )
        if self.references not in REFERENCES:
            raise ValueError(
                f"reference frames must be those of each 'window' or of the 'clip', got {self.references!r}."
            )

    def check(self, frames: int) -> None:
        """Refuse, by a ValueError, a clip that is shorter than a window."""
        if frames < self.length:
            raise ValueError(
                f"expected a clip of at least {self.length} frames, the length of its windows, got {frames}; "
                "ask for more frames or shorter windows."
            )

    def starts(self, frames: int) -> list[int]:
        """The first frame of each window, ascending; the last is `frames - length`."""
        return [*range(0, frames - self.length, self.stride), frames - self.length]

    def shares(self, frames: int, device: torch.device | None = None) -> Tensor:
        """How much each window counts in each frame, `[n t]` float32; a frame's shares add up to 1.

        They are as 1, 2, ... up to a window's middle and down again.
        """
        starts = torch.arange(len(self.starts(frames)), device=device) * self.stride
        place = torch.arange(frames, device=device) - starts.clamp(max=frames - self.length)[:, None]
        pyramid = torch.minimum(place + 1, self.length - place).clamp(min=0).float()
        return pyramid / pyramid.sum(0)

    def averaged(self, attend: Callable[[slice], Tensor], frames: int) -> Tensor:
        """The windows' answers `[b length ...]` to `attend` as one, `[b t ...]`, in their type.

        attend: gets a window's frames as a slice. A clip of one window is that window's answer, bit for bit.
        """
        starts = self.starts(frames)
        if len(starts) == 1:
            return attend(slice(0, frames))
        total = None
        for number, start in enumerate(starts):
            window = slice(start, start + self.length)
            out = attend(window)
            if total is None:
                wide = torch.promote_types(out.dtype, torch.float32)
                total = out.new_zeros((len(out), frames, *out.shape[2:]), dtype=wide)
                shares = self.shares(frames, out.device).to(wide)
            share = shares[number, window].reshape(-1, *[1] * (out.dim() - 2))
            total[:, window] += share * out
        return total.to(out.dtype)

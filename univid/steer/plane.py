"""Modality weights over the plane: where in a frame the text counts, and where the picture.

In cross-attention a weight multiplies what a query token gets. So a weight for each place of a frame is a
map, averaged to as many cells as a level of the network has; one that is the same everywhere is a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..devices import beside


@dataclass(frozen=True, eq=False)
class Masks:
    """By what lambda_t and lambda_v are multiplied in each place of the frames; None = by 1.

    text, image: `[1 h w]`, or one a frame, `[t h w]`, of any size and shape: a mask covers the whole frame.
        1 is the full weight, 0 none.

    Raises:
        ValueError: another layout, nothing in it, or a value that is negative or not finite.
    """

    text: Tensor | None = None
    image: Tensor | None = None

    def __post_init__(self):
        for name, mask in self._given():
            if mask.dim() != 3 or not mask.numel():
                raise ValueError(f"{name}_mask must be [1 or frames, h, w], got shape {list(mask.shape)}.")
            low, high = mask.aminmax()
            if not (low >= 0 and high.isfinite()):
                raise ValueError(
                    f"{name}_mask must have finite values of at least 0 (1 = the full weight), got some from "
                    f"{low:g} to {high:g}; make it anew."
                )

    def counts(self) -> tuple[bool, bool]:
        """Whether text and picture count anywhere: a mask of zeros is a weight of 0."""
        return tuple(mask is None or bool(mask.any()) for mask in (self.text, self.image))

    @property
    def frames(self) -> int | None:
        """Those of the mask with the most, None where it has one for all."""
        return max((len(mask) for _, mask in self._given() if len(mask) > 1), default=None)

    def check(self, frames: int) -> None:
        """Refuse, by a ValueError, masks that are neither one for the clip nor one a frame."""
        for name, mask in self._given():
            if len(mask) not in (1, frames):
                raise ValueError(
                    f"expected 1 {name}_mask, or one for each of {frames} frames, got {len(mask)}; give one, "
                    "or as many as the clip has frames."
                )

    def maps(self, frames: int, height: int, width: int, shares: Sequence[Tensor] = ()) -> Tensor | None:
        """What `Conditioning.maps` is for one clip of height x width latent cells; None where there are none.

        `[1 1+p h w]`, or `[1 t 1+p h w]` where they change over the frames; one cell where all have one.

        shares: of lambda_v, of p pictures, `[1|t h w]` each; without any there is one picture.

        Raises:
            ValueError: as `check`.
        """
        for masks in (self, *(Masks(image=share) for share in shares)):
            masks.check(frames)
        if self.text is None and self.image is None and not shares:
            return None
        text, image, *shares = (
            torch.ones(1, 1, 1) if mask is None else averaged(mask.float(), height, width)
            for mask in (self.text, self.image, *shares)
        )
        maps = [text, *(image * share for share in shares)] if shares else [text, image]
        shape = torch.broadcast_shapes(*(mask.shape for mask in maps))
        maps = torch.stack([mask.expand(shape) for mask in maps], 1)  # [t 1+p h w]
        return maps if len(maps) == 1 else maps[None]

    def _given(self) -> list[tuple[str, Tensor]]:
        pair = {"text": self.text, "image": self.image}
        return [(name, mask) for name, mask in pair.items() if mask is not None]


def averaged(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps `[... h w]` of whole frames in height x width cells, each the mean of what lies in it, by area.

    A cell that holds a part of a pixel counts it by that part. So sizes need not divide: of 45 rows each of
    23 cells has 1.96, and of 1 row each has the same. What is the same everywhere, or 0 in all of a cell,
    stays so to the last bit. A map of one cell is a number and comes back as it is.
    """
    if maps.shape[-2:] in ((1, 1), (height, width)):
        return maps
    low = maps.amin((-2, -1), keepdim=True)  # what rounds is how far a place lies above
    rows, columns = (
        beside(_shares(before, after), maps, maps.dtype)
        for before, after in zip(maps.shape[-2:], (height, width), strict=True)
    )
    return low + rows @ (maps - low) @ columns.T


def _shares(before: int, after: int) -> Tensor:
    """Which share of each of `after` even parts of a side lies in each of `before`: `[after before]`."""
    edges = torch.arange(before + 1)[None] * after  # in units in which both kinds of edge are whole
    cuts = torch.arange(after + 1)[:, None] * before
    starts, ends = torch.maximum(edges[:, :-1], cuts[:-1]), torch.minimum(edges[:, 1:], cuts[1:])
    return (ends - starts).clamp(min=0) / before

"""Large frames in overlapping tiles: what is made of each is blended where they meet."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .devices import beside


@dataclass(frozen=True)
class Tile:
    """Rows and columns of a frame, and how much each of its cells counts there, `[h w]`.

    The weights rise and fall linearly over a quarter tile, and those of all tiles sum to one everywhere.
    frame: (height, width) of the whole, in cells.
    """

    rows: slice
    columns: slice
    weights: Tensor
    frame: tuple[int, int]

    def of(self, x: Tensor, cell: int = 1) -> Tensor:
        """Its part of `x` `[... h w]`, where a cell is so many pixels wide."""
        rows, columns = (slice(cell * side.start, cell * side.stop) for side in (self.rows, self.columns))
        return x[..., rows, columns]


def tiles(height: int, width: int, tile: int, cell: int = 1) -> Iterator[Tile]:
    """Tiles of at most `tile` cells a side, evenly spread over height x width cells.

    cell: pixels a side of a cell in what is blended.

    Raises:
        ValueError: `tile` is below 2.
    """
    if tile < 2:
        raise ValueError(f"tile must be at least 2 latent cells, got {tile}; use None for whole frames.")
    for top, bottom, rows in _spans(height, tile, cell):
        for left, right, columns in _spans(width, tile, cell):
            yield Tile(slice(top, bottom), slice(left, right), rows[:, None] * columns, (height, width))


def blended(
    make: Callable[[Tile], Tensor], height: int, width: int, tile: int | None, cell: int = 1
) -> Tensor:
    """What `make` gives for each tile, `[... h w]`, blended into a whole frame; tile: None = one for all."""
    if tile is None or (tile >= height and tile >= width):
        ones = torch.ones(()).expand(height * cell, width * cell)
        return make(Tile(slice(0, height), slice(0, width), ones, (height, width)))
    total = None
    for each in tiles(height, width, tile, cell):
        part = make(each)
        if total is None:
            total = part.new_zeros(*part.shape[:-2], height * cell, width * cell)
        each.of(total, cell).add_(part * beside(each.weights, part, part.dtype))
    return total


def _spans(length: int, tile: int, cell: int) -> list[tuple[int, int, Tensor]]:
    """Along one side: (start, end) in cells and the weights of its pixels."""
    overlap = max(1, tile // 4)
    if length <= tile:
        return [(0, length, torch.ones(length * cell))]
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [i * (length - tile) // (count - 1) for i in range(count)]
    position = (torch.arange(length * cell) + 0.5) / (overlap * cell)
    weights = torch.zeros(count, length * cell)
    for i, start in enumerate(starts):
        inside = slice(start * cell, (start + tile) * cell)
        distance = position[: tile * cell]  # to the tile's edge, in overlaps
        rising = distance if i > 0 else torch.ones_like(distance)
        falling = distance.flip(0) if i < count - 1 else torch.ones_like(distance)
        weights[i, inside] = torch.minimum(rising, falling).clamp(max=1)
    weights = weights / weights.sum(0)
    return [
        (start, start + tile, weights[i, start * cell : (start + tile) * cell])
        for i, start in enumerate(starts)
    ]

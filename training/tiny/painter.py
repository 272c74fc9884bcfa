"""The clips of shapes.py, drawn and painted many at once on any device: what a training step shows.

A step's clips are functions of its generator, not of (seed, index). Scenes are indices into shapes.SCENES.
"""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from .shapes import (
    BACKGROUNDS,
    BAR,
    COLORS,
    DIRECTIONS,
    DISTANCE,
    GREYS,
    HALF_SIDE,
    LARGE_RADIUS,
    MARGIN,
    MOVING_RADIUS,
    REACH,
    RGB,
    SCENES,
    SEEN_SCENES,
    SHAPES,
    SMALL_RADIUS,
    WIDTH,
)


class Painter:
    """Tables of the grammar's words on one device. all, seen: indices of the scenes of that name, `[n]`."""

    def __init__(self, device: torch.device | str = "cpu"):
        def table(values: list) -> Tensor:
            return torch.tensor(np.array(values)).to(device)

        self.device = torch.device(device)
        order = {scene: index for index, scene in enumerate(SCENES)}
        self.all, self.seen = (table([order[scene] for scene in scenes]) for scenes in (SCENES, SEEN_SCENES))
        self.direction = table([DIRECTIONS.get(scene.motion, (0, 0)) for scene in SCENES]).float()  # [s 2]
        self.moves = table([scene.motion in DIRECTIONS for scene in SCENES])
        self.grows = table([scene.motion == "grows" for scene in SCENES])
        self.shape = table([SHAPES.index(scene.shape) for scene in SCENES])
        self.color = table([COLORS.index(scene.color) for scene in SCENES])
        self.backdrop = table([BACKGROUNDS.index(scene.background) for scene in SCENES])
        colors, greys = np.stack([RGB[color] for color in COLORS]), np.array(list(GREYS.values()), np.float32)
        blend = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
        palette = greys[:, None, None] + blend * (colors[:, None, None] - greys[:, None, None])  # [c g 256 3]
        self.palette = table(np.rint(255 * palette).astype(np.uint8))

    def tracks(self, scenes: Tensor, rng: torch.Generator) -> Tensor:
        """First and last poses `[b 2 3]` = (x, y, radius) of scenes `[b]`, as of `shapes.random_track`."""
        u = torch.rand(len(scenes), 4, generator=rng, device=self.device)

        def between(low, high, u: Tensor) -> Tensor:
            return low + (high - low) * u

        moves = self.moves[scenes]
        small = torch.where(moves, between(*MOVING_RADIUS, u[:, 0]), between(*SMALL_RADIUS, u[:, 0]))
        large = torch.where(moves, small, between(*LARGE_RADIUS, u[:, 1]))
        travel = between(*DISTANCE, u[:, 1:2]) * self.direction[scenes]
        margin = REACH * large[:, None] + MARGIN
        start = between(margin - travel.clamp(max=0), 1 - margin - travel.clamp(min=0), u[:, 2:])
        grows = self.grows[scenes]
        first, last = torch.where(grows, small, large), torch.where(grows, large, small)
        begin, end = torch.cat([start, first[:, None]], 1), torch.cat([start + travel, last[:, None]], 1)
        return torch.stack([begin, end], 1)

    def paint(self, scenes: Tensor, poses: Tensor, size: int = 64) -> Tensor:
        """Frames uint8 `[b t h w 3]` of scenes `[b]` at poses `[b t 3]`, as `shapes.render` paints them."""
        pixels = torch.arange(size, device=self.device, dtype=torch.float32) + 0.5
        x, y, radius = (size * poses).float().unbind(-1)
        dx = (pixels - x[..., None])[..., None, :]  # [b t 1 w]
        dy = (pixels - y[..., None])[..., :, None]  # [b t h 1]
        distance = self._distance(self.shape[scenes][:, None, None, None], dx, dy, radius[..., None, None])
        coverage = (0.5 - distance).clamp(0, 1)
        palette = self.palette[self.color[scenes], self.backdrop[scenes]]  # [b 256 3]
        levels = (255 * coverage).round().long().flatten(1)
        painted = palette[torch.arange(len(scenes), device=self.device)[:, None], levels]
        return painted.unflatten(1, coverage.shape[1:])

    def videos(self, scenes: Tensor, times: Tensor, rng: torch.Generator, size: int = 64) -> Tensor:
        """Videos float32 `[b 3 t h w]` in -1..1 of scenes `[b]`, on random tracks, at times `[b t]`."""
        start, end = self.tracks(scenes, rng)[:, None].unbind(2)
        frames = self.paint(scenes, start + times[..., None] * (end - start), size)
        return rearrange(frames, "b t h w c -> b c t h w").float() / 127.5 - 1

    def _distance(self, shape: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
        """Each clip's own of `shapes.signed_distance`; all are computed, or a device had to wait."""
        across, up = x.abs(), y.abs()
        long, short = torch.maximum(across, up), torch.minimum(across, up)
        tip = torch.maximum(y, 0.75**0.5 * across - 0.5 * y)
        found = {
            "circle": (x * x + y * y).sqrt() - radius,
            "square": long - HALF_SIDE * radius,
            "triangle": tip - 0.5 * REACH * radius,
            "cross": torch.maximum(long - BAR * radius, short - WIDTH * radius),
        }
        distance = found[SHAPES[0]]
        for index, name in enumerate(SHAPES[1:], 1):
            distance = torch.where(shape == index, found[name], distance)
        return distance

"""Reproducible noise: one generator a clip, always on the CPU."""

import torch
from einops import rearrange
from torch import Tensor


class ClipNoise:
    """Noise for a batch of clips, each from its own seed; every call draws the next noise.

    A clip's noise is one `randn(t, c, h, w)`, as the host makes a batch of pictures. So the first noise of a
    frame depends on the clip's seed alone, not on length, batch or device (where c h w is a multiple of 16;
    for other sizes torch draws the last 16 numbers of a clip anew).

    seeds: one a clip; the convention for a batch from one seed is seed, seed + 1, ...
    """

    def __init__(self, seeds: list[int]):
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise of shape (b c t h w), float32 on the CPU.

        Raises:
            ValueError: b is not the number of seeds.
        """
        b, c, t, h, w = shape
        if b != len(self._generators):
            raise ValueError(f"expected one seed for each of {b} clips, got {len(self._generators)} seeds.")
        clips = [torch.randn(t, c, h, w, generator=generator) for generator in self._generators]
        return rearrange(clips, "b t c h w -> b c t h w")

"""Buckets: the few sizes, nearly equal in area, to which pictures and clips are cut to make batches."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from training.data.samples import BadSample, Bucket

MAX_ENLARGEMENT = 2.0  # beyond it the model would learn blur
MULTIPLE = 64  # the autoencoder's 8 times the U-Net's 8


def buckets_of(area: int, max_aspect: float = 2.0) -> tuple[Bucket, ...]:
    """All buckets of at most `area` pixels, one a height, whose sides are multiples of 64, lowest first.

    A width is the largest multiple that fits. max_aspect: of the longer side to the shorter one. So
    buckets_of(320 * 576) is the default of `DataConfig`.

    Raises:
        ValueError: there are none.
    """
    lying = []
    for height in range(MULTIPLE, math.isqrt(max(area, 0)) + 1, MULTIPLE):
        width = area // height // MULTIPLE * MULTIPLE
        if width <= max_aspect * height:
            lying.append((height, width))
    if not lying:
        raise ValueError(
            f"expected an area of at least 64 x 64 and a max_aspect that some bucket has, got {area} and "
            f"{max_aspect}; raise either."
        )
    return tuple(sorted({*lying, *((width, height) for height, width in lying)}))


def nearest(height: int, width: int, buckets: Sequence[Bucket]) -> int:
    """The index of the bucket whose aspect ratio is nearest in logarithm; of several the first."""
    aspect = math.log(height / width)
    return min(range(len(buckets)), key=lambda i: abs(math.log(buckets[i][0] / buckets[i][1]) - aspect))


def fit(pixels: Tensor, bucket: Bucket, x: float = 0.5, y: float = 0.5) -> Tensor:
    """Cut frames uint8 `[t h w 3]` to a bucket's proportions and resize them to it, antialiased bicubic.

    x, y: where the window lies in its free room, 0 = left or top, 0.5 = in the middle as `univid.video.fit`
    cuts, 1 = right or bottom. Nothing is stretched, but for the rounding of the window to whole pixels.

    Raises:
        BadSample: the frames would be enlarged more than MAX_ENLARGEMENT times.
    """
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(f"expected x and y in 0..1, got {x} and {y}.")
    height, width = pixels.shape[1:3]
    scale = max(bucket[0] / height, bucket[1] / width)
    if scale > MAX_ENLARGEMENT:
        raise BadSample(
            f"{width} x {height} is too small: for {bucket[1]} x {bucket[0]} it would be enlarged "
            f"{scale:.1f} times, at most {MAX_ENLARGEMENT:g} are good"
        )
    rows, columns = min(height, round(bucket[0] / scale)), min(width, round(bucket[1] / scale))
    top, left = (math.ceil(at * room - 0.5) for at, room in ((y, height - rows), (x, width - columns)))
    window = rearrange(pixels[:, top : top + rows, left : left + columns], "t h w c -> t c h w")
    resized = F.interpolate(window, bucket, mode="bicubic", antialias=True)
    return rearrange(resized, "t c h w -> t h w c").contiguous()

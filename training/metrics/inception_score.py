"""The Inception score of videos (Salimans et al. 2016, Saito et al. 2020), by C3D that was taught UCF-101.

exp of the mean KL divergence of a video's classes from the classes of all, in `splits` parts of the videos,
and the mean and standard deviation of these. As StyleGAN-V measures it, with TGANv2's C3D.
"""

from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from .extract import Extractor, Features
from .metric import Evidence, Metric, with_interval
from .weights import WeightFile

CLASSES = 101
TINY = 1e-30  # of a probability, whose logarithm is taken


def load(path: Path, device: torch.device) -> Features:
    """C3D as TorchScript; it resizes by itself and gives probabilities.

    Raises:
        RuntimeError: its numbers are none.
    """
    network = torch.jit.load(path, map_location=device).eval()

    def features(frames: np.ndarray) -> np.ndarray:
        video = torch.from_numpy(frames).to(device).float()
        given = network(rearrange(video, "t h w c -> 1 c t h w").contiguous()).float()
        if given.min() < 0 or (given.sum(1) - 1).abs().max() > 1e-3:
            raise RuntimeError("its numbers are no probabilities")
        return given.cpu().numpy()

    return features


def inception_scores(probabilities: np.ndarray, splits: int) -> np.ndarray:
    """The score of each of `splits` parts of probabilities `[n classes]`, in their order: `[splits]`.

    Raises:
        ValueError: fewer videos than parts.
    """
    n = len(probabilities)
    if n < splits:
        raise ValueError(
            f"an Inception score in {splits} splits needs so many videos, got {n}; say --splits."
        )
    probabilities = probabilities.astype(np.float64)
    bounds = [place * n // splits for place in range(splits + 1)]
    parts = [probabilities[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
    return np.array([_score(part, np.ones(len(part))) for part in parts])


def _score(part: np.ndarray, counts: np.ndarray) -> float:
    """Of probabilities `[n classes]`, each counted as often as `counts` `[n]` says."""
    shares = counts / counts.sum()
    mean = shares @ part
    divergences = (part * (np.log(np.maximum(part, TINY)) - np.log(np.maximum(mean, TINY)))).sum(1)
    return float(np.exp(shares @ divergences))


def figure(evidence: Evidence) -> dict:
    """The mean of the splits' scores, their standard deviation, and an interval of the mean.

    For the interval the videos are drawn again, and split anew.
    """
    probabilities, splits = np.concatenate(evidence.generated), evidence.protocol.splits
    scores, n = inception_scores(probabilities, splits), len(probabilities)

    def resampled(counts: np.ndarray, number: int) -> float:
        drawn = np.repeat(np.arange(n), counts)
        return float(inception_scores(probabilities[drawn], splits).mean())

    made = with_interval(float(scores.mean()), resampled, n, evidence)
    return made | {"deviation": float(scores.std()), "splits": splits}


C3D = Extractor(
    "C3D UCF-101",
    CLASSES,
    "the videos' own size, resized as TorchScript does it; probabilities",
    load,
    (WeightFile("c3d_ucf101.pt", "https://www.dropbox.com/s/jxpu7avzdc9n97q/c3d_ucf101.pt?dl=1"),),
)
INCEPTION_SCORE = Metric("is", "IS", "higher", C3D, "clip", figure, videos="inception_videos")

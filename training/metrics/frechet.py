"""The Frechet distance between two Gaussians, in float64 and by eigenvalues.

||m1 - m2||^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)        (Dowson and Landau 1982; Heusel et al. 2017)

The last root's trace is the sum of the roots of eigenvalues of a symmetric matrix, which are known to be no
less than 0; no root of a product that is not symmetric is taken, hence no imaginary part is thrown away.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """mean `[d]` and covariance `[d d]` (divided by n - 1) of n samples, float64."""

    n: int
    mean: Tensor
    covariance: Tensor


def moments(features: Tensor, counts: Tensor | None = None) -> Moments:
    """Those of samples `[n d]`, each counted as often as `counts` `[n]` says, in the samples' memory.

    Raises:
        ValueError: fewer than two samples, or numbers that are not finite.
    """
    features = features.double()
    n = len(features) if counts is None else int(counts.sum())
    if n < 2:
        raise ValueError(f"a Frechet distance needs 2 samples or more a side, got {n}; give more videos.")
    if not torch.isfinite(features).all():
        raise ValueError("features are not finite; look at the weights and the videos.")
    weights = torch.ones(len(features), 1).to(features) if counts is None else counts[:, None].to(features)
    mean = (weights * features).sum(0) / n
    centred = features - mean
    return Moments(n, mean, centred.T @ (weights * centred) / (n - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared distance, in the square of the features' unit; 0 for equal moments, symmetric."""
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    inner = root @ b.covariance @ root
    common = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * common
    return float((a.mean - b.mean).square().sum() + spread.clamp(min=0))

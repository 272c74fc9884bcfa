"""The Frechet distance between two Gaussians, in float64 and by eigenvalues.

||m1 - m2||^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)        (Dowson and Landau 1982; Heusel et al. 2017)

With factors C = F' F the last root's trace is the sum of the singular values of F1 F2', which are roots of
eigenvalues of a symmetric matrix: no root is taken of a product that is not symmetric, hence no imaginary
part is thrown away, and fewer samples than features make it cheaper instead of unstable.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """mean `[d]` of n samples, and a factor `[k d]`, k <= d, of their covariance, factor' factor; float64."""

    n: int
    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, n: int, mean: Tensor, covariance: Tensor) -> "Moments":
        """By a covariance `[d d]`."""
        values, vectors = torch.linalg.eigh(covariance)
        return cls(n, mean, (vectors * values.clamp(min=0).sqrt()).T)


def moments(features: Tensor, counts: Tensor | None = None) -> Moments:
    """Those of samples `[n d]`, each counted as often as `counts` `[n]` says, in the samples' memory.

    The covariance is divided by n - 1.

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
    scaled = (features - mean) * (weights / (n - 1)).sqrt()
    if len(scaled) <= len(mean):
        return Moments(n, mean, scaled)
    return Moments.of(n, mean, scaled.T @ scaled)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared distance, in the square of the features' unit; 0 for equal moments, symmetric."""
    if len(a.factor) > len(b.factor):
        a, b = b, a
    product = a.factor @ b.factor.T
    common = torch.linalg.eigvalsh(product @ product.T).clamp(min=0).sqrt().sum()
    spread = a.factor.square().sum() + b.factor.square().sum() - 2 * common
    return float((a.mean - b.mean).square().sum() + spread.clamp(min=0))

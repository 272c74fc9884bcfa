"""Intervals by bootstrap: what a figure would be for other videos of the same kind, and as many of them."""

from collections.abc import Callable

import numpy as np

LEVEL = 0.95


def interval(
    figure: Callable[[np.ndarray, int], float], value: float, n: int, resamples: int, seed: int
) -> tuple[float, float] | None:
    """The 95 % interval of a figure of n videos; None = it needs 2 of them and 2 resamples.

    Frechet distances grow when samples repeat, so their resampled figures lie above the figure itself. What
    is taken of them is their spread alone: the distances of the 2.5 and 97.5 percentiles from the median,
    laid around `value`. It is no interval for the limit of many videos.

    figure: how often each video counts `[n]`, and the resample's number, to the figure.
    """
    if n < 2 or resamples < 2:
        return None
    rng = np.random.default_rng([seed, n])
    drawn = [figure(np.bincount(rng.integers(0, n, n), minlength=n), number) for number in range(resamples)]
    tail = 50 * (1 - LEVEL)
    low, middle, high = np.percentile(drawn, [tail, 50, 100 - tail])
    return value + low - middle, value + high - middle

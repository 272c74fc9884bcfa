"""What FVD, FID and CLIP-FID share: how far generated videos are from real ones, and the floor of that."""

import numpy as np

from .frechet import frechet_distance
from .metric import Evidence, with_interval
from .real import stack


def distance_figure(evidence: Evidence) -> dict:
    """The Frechet distance with its interval, for which both sides' videos are drawn again, and its floor.

    Of real statistics without videos only the generated ones are. The floor is the distance between two
    samples of real videos: what a perfect generator would get from as many.

    Raises:
        ValueError: fewer than two videos on one side.
    """
    generated, real = stack(evidence.generated, evidence.device), evidence.real
    value = frechet_distance(real.moments, generated.moments())

    def resampled(counts: np.ndarray, number: int) -> float:
        side = real.moments
        if real.rows is not None:
            rng = np.random.default_rng([evidence.protocol.seed, number])
            side = real.rows.moments(np.bincount(rng.integers(0, real.n, real.n), minlength=real.n))
        return frechet_distance(side, generated.moments(counts))

    figure = with_interval(value, resampled, generated.n, evidence)
    return figure | {"n_real": real.n, "rows": len(generated.rows), "floor": real.floor}

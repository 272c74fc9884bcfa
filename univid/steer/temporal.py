"""Temporal guidance: away from what the network says of every frame alone."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TemporalGuidance:
    """e + s (e_full - e_alone), where e is the guided answer and the other two are those of one branch.

    The branch is that of all conditions: the others are what guidance goes away from, and what they say of
    motion is not what was asked for. So it takes one more call a step, of the clips, not of all branches.

    scale: s, at least 0. alone: the denoiser in which every frame is a clip of its own, where no layer over
        time acts.
    """

    scale: float
    alone: Callable[..., Tensor]

    def __call__(self, guided: Tensor, full: Tensor, x: Tensor, sigma: Tensor, cond) -> Tensor:
        """guided, full, x `[b c t h w]`; cond: of the branch that answered `full`."""
        return guided + self.scale * (full - self.alone(x, sigma, cond))

"""All that a user changes about a model's runs, in one value."""

import dataclasses
import math
from dataclasses import dataclass

from .dynamics import Dynamics
from .reuse import Reuse
from .windows import FrameWindows


@dataclass(frozen=True, kw_only=True)
class Steering:
    """How a network runs other than it was trained to; as it is here, it runs as it was, bit for bit.

    windows: in which attention over time sees a longer clip; None = all of it at once.
    dynamics: livelier motion. temporal_guidance: s of `TemporalGuidance`, 0 = none.
    reuse: deep blocks that are run in some steps only.

    Raises:
        ValueError: temporal guidance that is negative or not finite.
    """

    windows: FrameWindows | None = None
    dynamics: Dynamics | None = None
    temporal_guidance: float = 0.0
    reuse: Reuse | None = None

    def __post_init__(self):
        if not 0 <= self.temporal_guidance < math.inf:
            raise ValueError(
                f"temporal guidance must be a finite number of at least 0, got {self.temporal_guidance}."
            )

    def check(self, frames: int) -> None:
        """Refuse, by a ValueError, what a clip of so many frames cannot have."""
        if self.windows is not None:
            self.windows.check(frames)

    def referable(self, frames: int) -> int:
        """Among how many frames PSTAttn's reference frames are chosen: a window's, or all of the clip."""
        own = self.windows is not None and self.windows.references == "window"
        return self.windows.length if own else frames

    def at(self, progress: float) -> "Steering":
        """What of it acts at a sampling progress 0..1."""
        if self.dynamics is None or self.dynamics.acts(progress):
            return self
        return dataclasses.replace(self, dynamics=None)

    @property
    def reuses(self) -> bool:
        """Whether any step reuses anything."""
        return self.reuse is not None and self.reuse.every > 1

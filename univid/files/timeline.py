"""When the frames of a video appear, and which of them are shown at the moments that are asked for."""

import math
from dataclasses import dataclass

import numpy as np

from .media import Unreadable

MIN_OWN_RATE = 0.9  # of the wanted frame rate; a slower clip would show too many frames twice
UNKNOWN_RATE = 25.0
USUAL = 0.3, 1.7  # a gap between frames is a usual one within these of the median, as clocks jitter both ways


@dataclass(frozen=True)
class Timeline:
    """The frames of a clip that count.

    times: when each appears, in seconds after the clip's first frame, ascending `[n]`, n > 0. tolerance: how
    much later than meant a time may stand there, in seconds. last: how long the last frame is shown; 0 = not
    known. origin: the first frame's timestamp. keys: the times of key frames and the timestamps that find
    them, ascending; without any, frames are counted from the file's beginning, and `skipped` of them come
    before times[0].
    """

    times: np.ndarray
    tolerance: float
    last: float = 0.0
    origin: int = 0
    keys: tuple[tuple[float, int], ...] = ()
    skipped: int = 0

    @property
    def span(self) -> float:
        """Seconds from the first frame to the last."""
        return float(self.times[-1] - self.times[0])

    @property
    def rate(self) -> float:
        """Frames per second; infinite if there is but one frame."""
        return (len(self.times) - 1) / self.span if len(self.times) > 1 else math.inf

    def available(self, fps: float | None) -> int:
        """How many frames there are at `fps`; None = all."""
        if fps is None:
            return len(self.times)
        if self.rate < MIN_OWN_RATE * fps:
            return 1
        return min(len(self.times), math.floor((self.span + self.tolerance) * fps) + 1)

    def choose(self, frames: int, fps: float, window: float) -> np.ndarray:
        """Indices into `times` of `frames` frames at `fps`, ascending; at a denser rate in a shorter clip.

        window: 0 = begin as early as possible, 1 = as late as possible.

        Raises:
            Unreadable: too few frames.
        """
        if len(self.times) < frames:
            raise Unreadable(f"{len(self.times)} frames in {self.span:.2f} s, {frames} are needed")
        if frames > 1 and self.rate < MIN_OWN_RATE * fps:
            raise Unreadable(f"{self.rate:.3g} frames per second, {fps:g} are needed")
        span = min((frames - 1) / fps, self.span)
        # from a frame on, so that at the clip's own rate the grid of times lies on its frames
        begin = self.times[self._shown_at(self.times[0] + window * (self.span - span))]
        return self._shown_at(begin + np.linspace(0, span, frames))

    def usual_rate(self, declared: float | None) -> float:
        """Frames per second where the clip is at its usual pace, pauses and bursts left aside.

        declared: what the file says; it counts where the times, which are rounded, do not say otherwise.
        """
        gaps = np.diff(self.times)
        if not len(gaps):
            return 1 / self.last if self.last > 0 else declared or UNKNOWN_RATE
        ratios = gaps / np.median(gaps)
        usual = float(gaps[(ratios >= USUAL[0]) & (ratios <= USUAL[1])].mean())
        if declared and abs(1 / declared - usual) * len(gaps) <= 0.75 * self.tolerance:
            return declared
        return 1 / usual

    def length(self, rate: float) -> int:
        """How many frames the clip lasts at `rate`; a single one is a picture, however long it is shown."""
        if len(self.times) == 1:
            return 1
        return max(1, round((self.span + max(self.last, 1 / rate)) * rate))

    def evenly(self, frames: int, rate: float) -> np.ndarray:
        """Indices into `times` of the frame shown at each of the first `frames` moments at `rate`.

        A frame may come half a step late, so that where a clip is even but for its clock each frame is taken.
        """
        moments = self.times[0] + np.arange(frames) / rate
        return np.searchsorted(self.times, moments + 0.5 / rate, side="right") - 1

    def _shown_at(self, times: np.ndarray) -> np.ndarray:
        """Indices of the frames shown at these times."""
        return np.searchsorted(self.times, times + self.tolerance, side="right") - 1

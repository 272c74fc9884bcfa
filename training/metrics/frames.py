"""How a clip behaves from frame to frame, read off its pixels alone: no weights, no text, no other clips.

Every metric takes one clip, uint8 `[t h w 3]`, and gives one number. None of them knows the frame rate, so
only clips of one rate compare. The optical flow is DIS (Kroeger et al. 2016, "Fast Optical Flow using Dense
Inverse Search") as OpenCV has it, at full resolution, on grey frames.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 16  # pixels: the flow of less is a guess
CELLS = 8  # in which flicker looks for changes of brightness, along each side
LARGEST = 0.05  # share of the pixels by which motion is judged
SEEN = 0.5  # least share of the pixels that has to be seen in both frames of a pair


@dataclass(frozen=True, eq=False)
class Pair:
    """Two neighbouring frames and what the flow between them says.

    flow: `[h w 2]` float32, pixels (x, y) from the first to the second. difference: `[h w 3]` float32, the
    first minus the second along the flow, in levels of 0 to 255. seen: `[h w]` bool, pixels of the first
    that are in the second, too.
    """

    flow: np.ndarray
    difference: np.ndarray
    seen: np.ndarray


def warp_error(frames: np.ndarray) -> float:
    """E_warp of Lai et al. 2018 ("Learning Blind Video Temporal Consistency", section 4), 0 is best.

    For each two neighbours, the second frame is fetched along the flow from the first, bilinearly, and the
    mean of the squared differences is taken over the pixels that are seen in both and the three channels,
    with levels of 0..1; then the mean over the pairs. Not seen are pixels whose flow leaves the frame, does
    not lead back (forward and backward flow disagree) or has a motion boundary, by the bounds of Ruder et
    al. 2016, equations 5 and 6. Theirs is FlowNet 2's flow, ours DIS. A pair that has less than half its
    pixels in common, a cut say, is compared over all of them: else what is lost would be forgiven.

    Raises:
        ValueError: not uint8 `[t h w 3]`, fewer than two frames, or a side below 16 pixels.
    """
    return float(np.mean([_mean(pair, np.square(pair.difference / 255)) for pair in _pairs(frames)]))


def steadiness(frames: np.ndarray) -> float:
    """How much of a picture stays itself while it moves: 1 is best, nothing but noise has about 0.7.

    1 minus the mean absolute difference of neighbours along the flow, over the pixels seen in both and with
    levels of 0..1, averaged over the pairs: `warp_error` with the difference's size instead of its square.

    Raises:
        ValueError: as `warp_error`.
    """
    return 1 - float(np.mean([_mean(pair, np.abs(pair.difference / 255)) for pair in _pairs(frames)]))


def motion(frames: np.ndarray) -> float:
    """How fast what moves most moves, in percent of the frame's shorter side from one frame to the next.

    The mean length of the longest twentieth of the flow, averaged over the pairs, as VBench has it in its
    dynamic degree (Huang et al. 2024; theirs is RAFT's flow, in pixels, and only held against a bound): so a
    small thing that moves before a still background counts as moving.

    Raises:
        ValueError: as `warp_error`.
    """
    frames = _checked(frames, 2, SIDE)
    lengths = [np.linalg.norm(flow, axis=-1).ravel() for flow in _flows(frames)]
    count = max(1, round(LARGEST * lengths[0].size))
    longest = [np.partition(one, -count)[-count:].mean() for one in lengths]
    return 100 * float(np.mean(longest)) / min(frames.shape[1:3])


def change(frames: np.ndarray) -> float:
    """The mean absolute difference of neighbouring frames, in levels of 0 to 255, averaged over the pairs.

    VBench's temporal flickering is 1 - change / 255. Motion counts here as well: compare clips of one kind.

    Raises:
        ValueError: not uint8 `[t h w 3]`, or fewer than two frames.
    """
    frames = _checked(frames, 2)
    pairs = zip(frames, frames[1:], strict=False)
    return float(np.mean([cv2.absdiff(one, other).mean(dtype=np.float64) for one, other in pairs]))


def flicker(frames: np.ndarray) -> float:
    """How much patches of the picture pulse: 0 for a still clip and an even fade, in levels of 0 to 255.

    The frame is divided into 8 x 8 cells; of each cell's mean colour, its distance from the middle of the
    frames before and after, as a mean over cells, channels and the frames that have both neighbours. A
    brightness that goes up and down by `a` around its mean has 2 a. What moves evenly hardly counts.

    Raises:
        ValueError: not uint8 `[t h w 3]`, or fewer than three frames.
    """
    frames = _checked(frames, 3)
    size = tuple(min(CELLS, side) for side in frames.shape[2:0:-1])
    cells = np.stack([cv2.resize(f.astype(np.float32), size, interpolation=cv2.INTER_AREA) for f in frames])
    return float(np.abs(cells[1:-1] - (cells[:-2] + cells[2:]) / 2).mean(dtype=np.float64))


METRICS: dict[str, Callable[[np.ndarray], float]] = {
    metric.__name__: metric for metric in (steadiness, warp_error, motion, change, flicker)
}


def _checked(frames: np.ndarray, least: int, side: int = 1) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"expected a clip as uint8 [t h w 3], got {frames.dtype} {list(frames.shape)}.")
    if len(frames) < least:
        raise ValueError(f"expected at least {least} frames, got {len(frames)}; take longer clips.")
    if min(frames.shape[1:3]) < side:
        height, width = frames.shape[1:3]
        raise ValueError(
            f"expected frames of at least {side} x {side} pixels, got {height} x {width}; take larger ones."
        )
    return frames


def _mean(pair: Pair, values: np.ndarray) -> float:
    enough = pair.seen.mean() >= SEEN
    return float((values[pair.seen] if enough else values).mean(dtype=np.float64))


def _pairs(frames: np.ndarray) -> Iterator[Pair]:
    frames = _checked(frames, 2, SIDE)
    for first, second, forward, backward in zip(
        frames, frames[1:], _flows(frames), _flows(frames, backward=True), strict=False
    ):
        height, width = first.shape[:2]
        place = forward + np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
        fetched = _at(second.astype(np.float32), place)
        inside = ((place >= 0) & (place <= [width - 1, height - 1])).all(-1)
        seen = inside & _leads_back(forward, _at(backward, place)) & ~_boundary(forward)
        yield Pair(forward, first - fetched, seen)


def _flows(frames: np.ndarray, backward: bool = False) -> Iterator[np.ndarray]:
    """From each frame to the next, or from the next one back."""
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    estimator.setFinestScale(0)  # the preset stops at half the resolution
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    for one, other in zip(grey, grey[1:], strict=False):
        yield estimator.calc(other, one, None) if backward else estimator.calc(one, other, None)


def _at(image: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The image `[h w c]` at places `[h w 2]` (x, y), bilinear; outside it its edge goes on."""
    x, y = place[..., 0], place[..., 1]
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _leads_back(forward: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Ruder et al. 2016, equation 5; back: the backward flow where the forward one leads."""
    lengths = np.square(forward).sum(-1) + np.square(back).sum(-1)
    return np.square(forward + back).sum(-1) <= 0.01 * lengths + 0.5


def _boundary(flow: np.ndarray) -> np.ndarray:
    """Ruder et al. 2016, equation 6: where the flow changes more than a motion that is smooth."""
    slopes = sum(np.square(slope).sum(-1) for slope in np.gradient(flow, axis=(0, 1)))
    return slopes > 0.01 * np.square(flow).sum(-1) + 0.002

"""Reads a clip of the core grammar back from its pixels: colour, shape, background, motion, steadiness.

No network and no caption: saturated hue against a neutral background gives a soft mask a frame, and the
mask's centre, area and outline give the rest. Lengths are in units of the side, x to the right and y down.
"""

import colorsys
from dataclasses import dataclass

import numpy as np

from training.metrics.frames import flicker

from .shapes import AREA, DIRECTIONS, GREYS, HUES, SHAPES, Scene, coverage

PEAK_CHROMA = 0.25  # a frame shows something where max - min over RGB reaches this (0.855 in true clips)
AREA_RANGE = (0.008, 0.35)  # of the frame; true shapes cover 0.019 to 0.20
MIN_FIT = 0.5  # a mask that overlaps no shape better than this (IoU) is no shape; true clips reach 0.9
MIN_FRAMES = 0.75  # share of the frames that must show something
HUE_TOLERANCE = 25  # degrees; neighbouring hues are 43 to 68 apart
TRAVEL, GROWTH = 0.36, np.log(0.20 / 0.13)  # the least that a true clip moves, and changes its log radius
STILL = 1 / 3  # less than this share of the above is no motion
MAX_JITTER, MAX_PULSE = (
    0.02,
    0.08,
)  # how far centre (sides) and radius (relative) may leave their line in time


@dataclass(frozen=True)
class Reading:
    """What the scorer saw; a word is None where it saw none that the grammar has.

    moves: whether the shape travels or changes size at all, in whatever direction.
    pairs: of neighbouring frames whether colour and shape agree and centre and radius lie on one straight
        line in time, `[t-1]`.
    jitter: mean distance of the centre from that line.
    change: the largest mean absolute difference of two neighbouring frames, in levels of 0..255.
    flicker: that of `training.metrics.frames`, likewise; nan of fewer than three frames.
    positions: centres (x, y) `[t 2]`, nan where a frame shows nothing.
    radii: of a circle of equal area `[t]`, nan where a frame shows nothing.
    """

    found: bool
    color: str | None
    shape: str | None
    background: str | None
    motion: str | None
    moves: bool
    pairs: np.ndarray
    jitter: float
    flicker: float
    change: float
    positions: np.ndarray
    radii: np.ndarray

    @property
    def steadiness(self) -> float:
        """The share of `pairs` that hold, 0..1; of a single frame whether anything was found."""
        return float(np.mean(self.pairs)) if len(self.pairs) else float(self.found)


def read(video: np.ndarray) -> Reading:
    """Read a clip, uint8 `[t h w 3]` with h = w, t >= 1.

    Raises:
        ValueError: another layout or type.
    """
    if video.ndim != 4 or video.shape[3] != 3 or video.shape[1] != video.shape[2] or video.dtype != np.uint8:
        raise ValueError(f"expected uint8 frames [t h w 3] with h = w, got {video.dtype} {list(video.shape)}")
    pixels = video.astype(np.float32) / 255
    backdrop, plain = _backdrop(pixels)
    colors, masks, vivid = _foreground(pixels, backdrop)
    positions, areas = _moments(masks)
    fits = _fits(masks, positions, areas)  # [s t]
    seen = plain & vivid & (areas > AREA_RANGE[0]) & (areas < AREA_RANGE[1]) & (fits.max(0) > MIN_FIT)

    positions = np.where(seen[:, None], positions, np.nan)
    radii = np.where(seen, np.sqrt(areas / np.pi), np.nan)
    change = float(255 * np.abs(np.diff(pixels, axis=0)).mean((1, 2, 3)).max(initial=0))
    pulse = flicker(video) if len(video) > 2 else np.nan
    if seen.mean() < MIN_FRAMES:
        none = np.zeros(len(video) - 1, bool)
        return Reading(False, None, None, None, None, False, none, np.nan, pulse, change, positions, radii)

    center_line, radius_line = _line(positions, seen), _line(radii[:, None], seen)
    travel = center_line[-1] - center_line[0]
    growth = float(np.log(np.maximum(radius_line[-1], 1e-3) / np.maximum(radius_line[0], 1e-3))[0])
    motion = _motion(travel, growth)
    off_center = np.linalg.norm(positions - center_line, axis=1)
    off_radius = np.abs(radii / np.maximum(radius_line[:, 0], 1e-3) - 1)
    words = [(_color(color), int(fit)) for color, fit in zip(colors, fits.argmax(0), strict=True)]
    steady = seen & (off_center < MAX_JITTER) & (off_radius < MAX_PULSE)
    same = [words[k] == words[k + 1] for k in range(len(words) - 1)]
    pairs = steady[:-1] & steady[1:] & np.array(same, bool)
    return Reading(
        found=True,
        color=_color(colors[seen].mean(0)),
        # frames weigh by their area: outlines of larger shapes are read more surely
        shape=SHAPES[int(np.average(fits[:, seen], axis=1, weights=areas[seen]).argmax())],
        background=_background(np.median(backdrop[seen], axis=0)),
        motion=motion,
        moves=bool(np.linalg.norm(travel) / TRAVEL >= STILL or abs(growth) / GROWTH >= STILL),
        pairs=pairs,
        jitter=float(np.nanmean(off_center)),
        flicker=pulse,
        change=change,
        positions=positions,
        radii=radii,
    )


def agreement(reading: Reading, scene: Scene) -> dict[str, bool]:
    """Which words of the scene the reading confirms, and `all` four; nothing found is wrong everywhere."""
    words = ("color", "shape", "background", "motion")
    right = {word: reading.found and getattr(reading, word) == getattr(scene, word) for word in words}
    return {**right, "all": all(right.values())}


def distance(reading: Reading, picture: Reading) -> float:
    """How near a clip comes to a picture's position, in sides: the least over its frames, inf if none.

    picture: the reading of the picture as a clip of one frame.
    """
    apart = np.linalg.norm(reading.positions - picture.positions[0], axis=1)
    return float(np.nanmin(apart)) if np.isfinite(apart).any() else float("inf")


def _backdrop(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The background's colour `[t 3]`, off the frame's border, and whether the border is plain `[t]`."""
    size = pixels.shape[1]
    width = max(1, size // 32)
    border = np.ones((size, size), bool)
    border[width:-width, width:-width] = False
    ring = pixels[:, border]  # [t n 3]
    level = np.median(ring, axis=1)
    return level, np.median(np.abs(ring - level[:, None]), axis=(1, 2)) < 0.08


def _foreground(pixels: np.ndarray, backdrop: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour `[t 3]`, soft mask `[t h w]` and whether there is anything vivid `[t]`, a frame.

    Against a neutral background the colour's own direction, less grey, is linear in coverage:
    pixel = grey + alpha * (colour - grey). The mask is steepened around alpha = 1/2, which takes away noise
    and slight blur, not area.
    """
    pixels = pixels - backdrop[:, None, None]
    chroma = pixels.max(3) - pixels.min(3)
    peak = np.quantile(chroma, 0.99, axis=(1, 2))  # [t]
    core = (chroma >= 0.8 * peak[:, None, None]).astype(np.float32)
    color = np.einsum("thw,thwc->tc", core, pixels) / np.maximum(core.sum((1, 2)), 1)[:, None]
    direction = color - color.mean(1, keepdims=True)
    scale = np.maximum((color * direction).sum(1), 1e-6)
    alpha = np.einsum("thwc,tc->thw", pixels, direction / scale[:, None])
    return color + backdrop, np.clip(2 * alpha - 0.5, 0, 1), peak > PEAK_CHROMA


def _moments(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres `[t 2]` as (x, y) and areas `[t]` of masks `[t h w]`."""
    size = masks.shape[1]
    axis = (np.arange(size) + 0.5) / size
    total = np.maximum(masks.sum((1, 2)), 1e-6)
    center = np.stack([masks.sum(1) @ axis, masks.sum(2) @ axis], axis=1) / total[:, None]
    return center, total / size**2


def _fits(masks: np.ndarray, positions: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Soft IoU `[s t]` of each mask with each ideal shape of the same centre and area."""
    fits = []
    for shape in SHAPES:
        poses = np.column_stack([positions, np.sqrt(areas / AREA[shape])])
        ideal = coverage(shape, poses, masks.shape[1])
        union = np.maximum(masks, ideal).sum((1, 2))
        fits.append(np.minimum(masks, ideal).sum((1, 2)) / np.maximum(union, 1e-6))
    return np.stack(fits)


def _line(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The straight line in time `[t n]` nearest to `values` `[t n]` in the frames that were seen."""
    times = np.arange(len(values))
    basis = np.stack([np.ones(len(times)), times], axis=1)
    return basis @ np.linalg.lstsq(basis[seen], values[seen], rcond=None)[0]


def _motion(travel: np.ndarray, growth: float) -> str | None:
    """The word for a travel (x, y) and a change of log radius: whichever is larger for what true clips do."""
    travelled, grown = np.abs(travel).max() / TRAVEL, abs(growth) / GROWTH
    if max(travelled, grown) < STILL:
        return None
    if grown > travelled:
        return "grows" if growth > 0 else "shrinks"
    return max(DIRECTIONS, key=lambda word: float(travel @ np.array(DIRECTIONS[word])))


def _color(rgb: np.ndarray) -> str | None:
    """The word for a colour's hue, None too far from all."""
    hue = 360 * colorsys.rgb_to_hsv(*np.clip(rgb, 0, 1).tolist())[0]
    apart = {name: abs((hue - true + 180) % 360 - 180) for name, true in HUES.items()}
    nearest = min(apart, key=apart.get)
    return nearest if apart[nearest] <= HUE_TOLERANCE else None


def _background(rgb: np.ndarray) -> str | None:
    """The word for a grey level, None for a tinted background."""
    if rgb.max() - rgb.min() > 0.2:
        return None
    return min(GREYS, key=lambda name: abs(GREYS[name] - float(rgb.mean())))

"""Clips whose truth is known: one coloured shape that moves or changes size on a plain background.

Positions, radii and distances are in units of the side, x to the right and y down. Every clip is a pure
function of (seed, index): no state, no files, any order, any number of workers.
"""

import colorsys
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

HUES = {"red": 0, "yellow": 58, "green": 125, "cyan": 185, "blue": 228, "purple": 292}  # degrees
GREYS = {"black": 0.05, "gray": 0.45, "white": 0.93}
DIRECTIONS = {  # (x, y)
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
}

COLORS = tuple(HUES)
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = (*DIRECTIONS, "grows", "shrinks")
BACKGROUNDS = tuple(GREYS)

RGB = {name: np.array(colorsys.hsv_to_rgb(hue / 360, 0.9, 0.95), np.float32) for name, hue in HUES.items()}

REACH = 1.2  # the farthest point of a shape of radius 1 (the triangle's tip)
BAR, WIDTH = 1.05, 0.38  # half the length and half the width of the cross's two bars, at radius 1
HALF_SIDE = 0.89  # of the square of radius 1: as large as the circle
AREA = {  # of a shape of radius 1
    "circle": np.pi,
    "square": 4 * HALF_SIDE**2,
    "triangle": 0.75 * 3**0.5 * REACH**2,
    "cross": 8 * BAR * WIDTH - 4 * WIDTH**2,
}
MOVING_RADIUS = (0.13, 0.21)
SMALL_RADIUS, LARGE_RADIUS = (0.10, 0.13), (0.20, 0.25)  # from one to the other when it grows or shrinks
DISTANCE = (0.36, 0.46)  # how far a moving shape travels
MARGIN = 0.015  # left free along the frame; 2 * (REACH * 0.21 + MARGIN) + 0.46 < 1: there is always room


@dataclass(frozen=True)
class Scene:
    """What a clip shows, in the words of the grammar."""

    color: str
    shape: str
    motion: str
    background: str

    @property
    def caption(self) -> str:
        return f"a {self.color} {self.shape} {self.motion} on a {self.background} background"

    @property
    def still_caption(self) -> str:
        """The caption of a single frame, which shows no motion."""
        return f"a {self.color} {self.shape} on a {self.background} background"


SCENES = tuple(Scene(*words) for words in product(COLORS, SHAPES, MOTIONS, BACKGROUNDS))

# 14 of the 144 (color, shape, motion) triples are never trained on. Drawn once; no two share two of their
# words, so each word stays common in training, and so does each pair of words.
_held_out = json.loads(Path(__file__).with_name("held_out.json").read_text("utf-8"))
HELD_OUT = frozenset(tuple(triple) for triple in _held_out)


def is_held_out(scene: Scene) -> bool:
    """Whether the scene's (color, shape, motion) is kept from training, on any background."""
    return (scene.color, scene.shape, scene.motion) in HELD_OUT


SEEN_SCENES = tuple(scene for scene in SCENES if not is_held_out(scene))
HELD_OUT_SCENES = tuple(scene for scene in SCENES if is_held_out(scene))


@dataclass(frozen=True)
class Track:
    """Where the shape is: centre and radius `(x, y, radius)` at the clip's first and last frame."""

    start: np.ndarray
    end: np.ndarray

    @property
    def center(self) -> np.ndarray:
        """The middle `(x, y)` of the path."""
        return (self.start + self.end)[:2] / 2

    def at(self, times: np.ndarray) -> np.ndarray:
        """Centres and radii `[t 3]` at `times` `[t]`, 0 = first frame, 1 = last frame."""
        return self.start + times[:, None] * (self.end - self.start)


def random_track(scene: Scene, rng: np.random.Generator) -> Track:
    """A track of the scene's motion on which the whole shape stays inside the frame."""
    if scene.motion in DIRECTIONS:
        radius = rng.uniform(*MOVING_RADIUS)
        travel = rng.uniform(*DISTANCE) * np.array(DIRECTIONS[scene.motion])
        margin = REACH * radius + MARGIN
        start = rng.uniform(margin - np.minimum(travel, 0), 1 - margin - np.maximum(travel, 0))
        return Track(np.array([*start, radius]), np.array([*(start + travel), radius]))
    small, large = rng.uniform(*SMALL_RADIUS), rng.uniform(*LARGE_RADIUS)
    margin = REACH * large + MARGIN
    center = rng.uniform(margin, 1 - margin, size=2)
    start, end = (small, large) if scene.motion == "grows" else (large, small)
    return Track(np.array([*center, start]), np.array([*center, end]))


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Distance of the points to the outline of a shape around the origin, negative inside; arrays broadcast.

    Exact inside and near edges, too small beyond corners, which half a pixel of anti-aliasing does not show.
    """
    if shape == "circle":
        return np.sqrt(x * x + y * y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - HALF_SIDE * radius
    if shape == "triangle":  # equilateral, tip up, its centroid at the origin
        return np.maximum(y, 0.75**0.5 * np.abs(x) - 0.5 * y) - 0.5 * REACH * radius
    if shape == "cross":  # a plus sign: two bars
        x, y = np.abs(x), np.abs(y)
        return np.maximum(np.maximum(x, y) - BAR * radius, np.minimum(x, y) - WIDTH * radius)
    raise ValueError(f"a shape must be one of {', '.join(SHAPES)}, got {shape!r}")


def coverage(shape: str, poses: np.ndarray, size: int) -> np.ndarray:
    """How much of each pixel the shape covers, 0..1 `[t h w]`, at `poses` `[t 3]` = (x, y, radius)."""
    pixels = np.arange(size, dtype=np.float32) + 0.5
    x, y, radius = (poses * size).astype(np.float32).T[:, :, None, None]  # [t 1 1] each, in pixels
    distance = signed_distance(shape, pixels - x, pixels[:, None] - y, radius)  # [t h w]
    return np.clip(0.5 - distance, 0, 1)


def render(scene: Scene, poses: np.ndarray, size: int) -> np.ndarray:
    """Frames uint8 `[t h w 3]` of the scene's shape at `poses` `[t 3]`."""
    blend = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    palette = GREYS[scene.background] + blend * (RGB[scene.color] - GREYS[scene.background])  # [256 3]
    palette = np.rint(255 * palette).astype(np.uint8)
    return palette.take(np.rint(255 * coverage(scene.shape, poses, size)).astype(np.intp), axis=0)


def draw(scene: Scene, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
    """A clip of the scene on a random track, uint8 `[t h w 3]`."""
    return render(scene, random_track(scene, rng).at(np.linspace(0, 1, frames)), size)


def scene_and_track(
    index: int, *, seed: int, scenes: Sequence[Scene] | None = None
) -> tuple[Scene, Track, np.random.Generator]:
    """What `clip` with the same arguments shows, and the generator after that."""
    rng = np.random.default_rng([seed, index])
    scenes = SEEN_SCENES if scenes is None else scenes
    scene = scenes[rng.integers(len(scenes))]
    return scene, random_track(scene, rng), rng


def clip(
    index: int, *, seed: int, frames: int = 12, size: int = 64, scenes: Sequence[Scene] | None = None
) -> tuple[np.ndarray, Scene]:
    """Clip number `index` of the endless set `seed`: uint8 `[t h w 3]` and its scene.

    scenes: what to draw from; None = SEEN_SCENES, so that nothing held out is trained on by accident.
    """
    scene, track, _ = scene_and_track(index, seed=seed, scenes=scenes)
    return render(scene, track.at(np.linspace(0, 1, frames)), size), scene


def image(
    index: int, *, seed: int, frames: int = 12, size: int = 64, scenes: Sequence[Scene] | None = None
) -> tuple[np.ndarray, Scene]:
    """One frame, at a random time, of `clip` with the same arguments: uint8 `[h w 3]` and its scene."""
    scene, track, rng = scene_and_track(index, seed=seed, scenes=scenes)
    return render(scene, track.at(rng.choice(np.linspace(0, 1, frames), 1)), size)[0], scene


def batch(
    indices: Iterable[int],
    *,
    seed: int,
    frames: int = 12,
    size: int = 64,
    scenes: Sequence[Scene] | None = None,
    stills: bool = False,
) -> tuple[Tensor, list[str]]:
    """Clips uint8 `[b t h w 3]` and their captions.

    stills: single frames `[b 1 h w 3]`, as `image` draws them, and their still captions instead.
    """
    sample = image if stills else clip
    samples = [sample(index, seed=seed, frames=frames, size=size, scenes=scenes) for index in indices]
    videos, drawn = zip(*samples, strict=True)
    videos = torch.from_numpy(np.stack(videos))
    if stills:
        return videos[:, None], [scene.still_caption for scene in drawn]
    return videos, [scene.caption for scene in drawn]


def to_video(clips: Tensor) -> Tensor:
    """uint8 `[b t h w 3]` -> float32 video `[b 3 t h w]` in -1..1."""
    return rearrange(clips, "b t h w c -> b c t h w").float() / 127.5 - 1

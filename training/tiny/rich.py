"""Richer clips than the core grammar: rotation, two objects, textured objects on photographs, camera pans.

Same convention as `shapes`: a clip is a pure function of (seed, index). The photographs and textures are
those that scikit-image ships. A new kind is one function and one line in KINDS.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import skimage

from . import shapes
from .shapes import BACKGROUNDS, COLORS, DIRECTIONS, GREYS, RGB, SEEN_SCENES, Scene

PHOTOS = {
    "a cat": "chelsea",
    "a cup of coffee": "coffee",
    "an astronaut": "astronaut",
    "a rocket": "rocket",
    "galaxies": "hubble_deep_field",
}
TEXTURES = {"brick": "brick", "grass": "grass", "gravel": "gravel"}
SPAN = 2  # a photograph's or texture's shorter side, in sides of the clip: the room to pan in


@dataclass(frozen=True)
class RichScene:
    """What a clip shows: its kind, its caption, and the caption of a single frame."""

    kind: str
    caption: str
    still_caption: str


def clip(index: int, *, seed: int, frames: int = 12, size: int = 64) -> tuple[np.ndarray, RichScene]:
    """Clip number `index` of the endless set `seed`: uint8 `[t h w 3]` and its scene."""
    rng = np.random.default_rng([seed, index])
    kind = rng.choice(list(KINDS))
    video, caption, still_caption = KINDS[kind](rng, np.linspace(0, 1, frames), size)
    return np.rint(255 * video).astype(np.uint8), RichScene(str(kind), caption, still_caption)


def _turning(rng: np.random.Generator, times: np.ndarray, size: int) -> tuple[np.ndarray, str, str]:
    """A shape that turns in place; not the circle, on which nobody sees it."""
    color, background = rng.choice(COLORS), rng.choice(BACKGROUNDS)
    shape = rng.choice(("square", "triangle", "cross"))
    way = rng.choice(("clockwise", "counterclockwise"))
    radius = rng.uniform(0.16, 0.25)
    center = rng.uniform(1.26 * radius, 1 - 1.26 * radius, size=2)  # 1.26: the square's corner
    turn = np.radians(rng.uniform(120, 180)) * (1 if way == "clockwise" else -1)
    angles = rng.uniform(0, 2 * np.pi) + turn * times
    mask = _mask(shape, np.tile([*center, radius], (len(times), 1)), size, angles)
    video = _over(np.float32(GREYS[background]), mask, RGB[color])
    scene = f"a {color} {shape}", f"on a {background} background"
    return video, f"{scene[0]} turns {way} {scene[1]}", " ".join(scene)


def _two_objects(rng: np.random.Generator, times: np.ndarray, size: int) -> tuple[np.ndarray, str, str]:
    """Two shapes of different colours that never touch; each is a scene that training may see."""
    first, second = (SEEN_SCENES[i] for i in rng.choice(len(SEEN_SCENES), 2, replace=False))
    while second.color == first.color:
        second = SEEN_SCENES[rng.integers(len(SEEN_SCENES))]
    second = Scene(second.color, second.shape, second.motion, first.background)
    check = np.linspace(0, 1, 25)  # whether they touch must not depend on the number of frames
    while True:
        tracks = [_smaller(shapes.random_track(scene, rng)) for scene in (first, second)]
        a, b = (track.at(check) for track in tracks)
        if (np.hypot(*(a - b).T[:2]) > shapes.REACH * (a + b).T[2]).all():
            break
    video = np.float32(GREYS[first.background])
    for scene, track in zip((first, second), tracks, strict=True):
        video = _over(video, shapes.coverage(scene.shape, track.at(times), size), RGB[scene.color])
    nouns = [f"a {scene.color} {scene.shape}" for scene in (first, second)]
    ground = f"on a {first.background} background"
    caption = f"{nouns[0]} {first.motion} and {nouns[1]} {second.motion} {ground}"
    return video, caption, f"{nouns[0]} and {nouns[1]} {ground}"


def _textured(rng: np.random.Generator, times: np.ndarray, size: int) -> tuple[np.ndarray, str, str]:
    """A shape cut out of a dyed texture moves over a still photograph; the texture moves with it."""
    texture, photo = rng.choice(list(TEXTURES)), rng.choice(list(PHOTOS))
    moving = [scene for scene in SEEN_SCENES if scene.motion in DIRECTIONS]
    scene = moving[rng.integers(len(moving))]
    poses = shapes.random_track(scene, rng).at(times)
    surface = _picture(TEXTURES[texture], size)
    surface = np.clip(surface / surface.mean(), 0.3, 1.5) / 1.5 * RGB[scene.color]
    # the crop's corner in the texture: it runs against the shape, so that the texture sticks to the shape
    corners = (SPAN / 2 - poses[:, :2]) * size
    picture = _picture(PHOTOS[photo], size)
    ground = _windows(picture, _corner(rng, picture, np.zeros(2), size)[None], size)
    video = _over(ground, shapes.coverage(scene.shape, poses, size), _windows(surface, corners, size))
    noun = f"a {scene.color} {texture} {scene.shape}"
    return video, f"{noun} {scene.motion} over {photo}", f"{noun} over {photo}"


def _panning(rng: np.random.Generator, times: np.ndarray, size: int) -> tuple[np.ndarray, str, str]:
    """The camera moves over a still photograph."""
    photo, way = rng.choice(list(PHOTOS)), rng.choice(list(DIRECTIONS))
    travel = rng.uniform(0.4, 0.8) * size * np.array(DIRECTIONS[way])
    picture = _picture(PHOTOS[photo], size)
    corners = _corner(rng, picture, travel, size) + times[:, None] * travel
    video = _windows(picture, corners, size)
    return video, f"the camera {way} over {photo}", f"a picture of {photo}"


KINDS = {"turning": _turning, "two objects": _two_objects, "textured": _textured, "panning": _panning}


def _smaller(track: shapes.Track) -> shapes.Track:
    """The same way with three quarters of the radius, to leave room for another shape."""
    return shapes.Track(track.start * [1, 1, 0.75], track.end * [1, 1, 0.75])


def _mask(shape: str, poses: np.ndarray, size: int, angles: np.ndarray) -> np.ndarray:
    """`shapes.coverage` of shapes turned clockwise by `angles` `[t]` in radians."""
    pixels = np.arange(size, dtype=np.float32) + 0.5
    x, y, radius = (poses * size).astype(np.float32).T[:, :, None, None]
    dx, dy = pixels - x, pixels[:, None] - y
    cos, sin = (wave(angles).astype(np.float32)[:, None, None] for wave in (np.cos, np.sin))
    return np.clip(
        0.5 - shapes.signed_distance(shape, cos * dx + sin * dy, cos * dy - sin * dx, radius), 0, 1
    )


def _over(ground: np.ndarray, mask: np.ndarray, paint: np.ndarray) -> np.ndarray:
    """Paint over ground where the mask `[t h w]` is, `[t h w 3]`."""
    return ground + mask[..., None] * (paint - ground)


@lru_cache(maxsize=32)
def _picture(name: str, size: int) -> np.ndarray:
    """A picture of scikit-image, float32 RGB `[h w 3]` in 0..1, its shorter side SPAN * size pixels."""
    picture = getattr(skimage.data, name)()
    picture = skimage.color.gray2rgb(picture) if picture.ndim == 2 else picture
    scale = SPAN * size / min(picture.shape[:2])
    height, width = (round(side * scale) for side in picture.shape[:2])
    return skimage.transform.resize(picture, (height, width), anti_aliasing=True).astype(np.float32)


def _corner(rng: np.random.Generator, picture: np.ndarray, travel: np.ndarray, size: int) -> np.ndarray:
    """The corner (x, y) in pixels of a window that can travel that far and stays within the picture."""
    room = np.array(picture.shape[1::-1]) - size - 1  # one pixel more for the interpolation
    return rng.uniform(-np.minimum(travel, 0), room - np.maximum(travel, 0))


def _windows(picture: np.ndarray, corners: np.ndarray, size: int) -> np.ndarray:
    """Crops `[t size size 3]` whose upper left corners `[t 2]` (x, y) lie between pixels: bilinear."""
    crops = []
    for corner in corners:
        (x, y), (right, down) = corner.astype(int), (corner % 1).astype(np.float32)
        crop = picture[y : y + size + 1, x : x + size + 1]
        crop = crop[:-1] + down * (crop[1:] - crop[:-1])
        crops.append(crop[:, :-1] + right * (crop[:, 1:] - crop[:, :-1]))
    return np.stack(crops)

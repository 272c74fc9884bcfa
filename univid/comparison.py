"""Where the frames of two files differ."""

import contextlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np

from .files.media import Unreadable
from .messages import shown
from .video import open_video


def unlike_frames(a: str, b: str) -> str | None:
    """The first frame in which two files differ, and how much, in words; None = in none.

    Raises:
        ValueError: a file that cannot be read.
    """
    with _frames(a) as first, _frames(b) as second:
        for number, pair in enumerate(zip_longest(first, second), start=1):
            if any(frame is None for frame in pair):
                longer = a if pair[1] is None else b
                return f"the first {number - 1} frames are equal, and {shown(longer)} has more"
            if pair[0].shape != pair[1].shape:
                sizes = [f"{frame.shape[1]} x {frame.shape[0]}" for frame in pair]
                return f"the frames' sizes differ: {sizes[0]} in {shown(a)}, {sizes[1]} in {shown(b)}"
            apart = np.abs(pair[0].astype(np.int16) - pair[1])
            if apart.any():
                return (
                    f"frame {number} is the first that differs: by {apart.max()} of 255 at most and "
                    f"{apart.mean():.3g} on average, in {apart.any(-1).mean():.1%} of its pixels{_why(a, b)}"
                )
    return None


def _why(a: str, b: str) -> str:
    kinds = [Path(path).suffix.lower() or "a folder" for path in (a, b)]
    if kinds[0] == kinds[1]:
        return ""
    return f"; the files are of two kinds, {kinds[0]} and {kinds[1]}, which lose different detail"


@contextlib.contextmanager
def _frames(path: str) -> Iterator[Iterator[np.ndarray]]:
    """The frames of a video, a folder or a picture, `[h w 3]`, one by one."""
    if Path(path).is_dir():
        yield map(
            _picture, sorted(Path(path).glob("frame_*.png"), key=lambda frame: (len(frame.name), frame))
        )
    elif Path(path).suffix.lower() == ".png":
        yield iter([_picture(Path(path))])
    else:
        with open_video(path) as video:
            yield video.frames


def _picture(path: Path) -> np.ndarray:
    from .files import picture as door

    try:
        return door.read_picture(path)
    except Unreadable as error:
        raise ValueError(f"{shown(path)} cannot be read as a picture: {error}; take another copy.") from error

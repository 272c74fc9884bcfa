"""Clips longer than a model makes at once, in windows of frames, each of which continues the one before."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Frames(Protocol):
    """A clip's frames, wherever they are: `[a:b]` gives uint8 `[b-a h w 3]`."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> np.ndarray: ...


@dataclass(frozen=True)
class Window:
    """Some frames of a result that are made at once.

    start, end: of its frames in the result. new: the first that is not made yet when its turn comes.
    known: frames of the result within it that are there before, ascending.
    """

    start: int
    end: int
    new: int
    known: tuple[int, ...] = ()

    @property
    def frames(self) -> int:
        return self.end - self.start


def interpolated(frames: int, factor: int) -> int:
    """How many frames `frames` become: `factor - 1` new ones between each two."""
    return factor * (frames - 1) + 1 if frames else 0


def interpolation(frames: int, factor: int, longest: int) -> Iterator[Window]:
    """Windows between known frames, every `factor`th of the result (Show-1 3.4).

    A window has as many of them as fit into `longest` frames, at least two; its last one is the first of the
    next window.
    """
    step = factor * max(1, (longest - 1) // factor)
    last = interpolated(frames, factor) - 1
    for start in range(0, last, step):
        end = min(start + step, last) + 1
        yield Window(start, end, start + 1 if start else 0, tuple(range(start, end, factor)))


def carried(longest: int, known: int | None, more: int | None) -> tuple[int, int]:
    """How many of the last frames a window is shown, and how many frames are added.

    None = a third of the window, and as many as it has beside them.

    Raises:
        ValueError: no more frames, or as many known ones as a window has.
    """
    known = max(1, longest // 3) if known is None else known
    if more is not None and more < 1:
        raise ValueError(f"expected at least 1 more frame, got {more}.")
    if not 1 <= known < longest:
        raise ValueError(
            f"known must be from 1 to {longest - 1}, fewer frames than a window has, got {known}."
        )
    return known, longest - known if more is None else more


def extension(frames: int, more: int, known: int, longest: int) -> Iterator[Window]:
    """Windows of at most `longest` frames that add `more` to `frames`, after up to `known` that are there."""
    done, total = frames, frames + more
    while done < total:
        start = max(0, done - known)
        end = min(total, start + longest)
        yield Window(start, end, done, tuple(range(start, done)))
        done = end


def sliding(frames: int, longest: int, overlap: int | None = None) -> Iterator[Window]:
    """Windows of at most `longest` frames; each begins with `overlap` that the one before has made.

    overlap: None = an eighth of a window.
    """
    overlap = max(1, longest // 8) if overlap is None else overlap
    end = min(frames, longest)
    yield Window(0, end, 0)
    while end < frames:
        start, new = end - overlap, end
        end = min(frames, start + longest)
        yield Window(start, end, new, tuple(range(start, new)))

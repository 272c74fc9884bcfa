"""A chain of stages that streams: what each has made lies as pictures in a work folder.

So a chain that was stopped, however, goes on at the window it was in, with the frames it would have had.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from . import memory
from .cascade import Stage
from .files import output
from .messages import shown
from .model import UniVid
from .windows import Frames

SETTINGS = "chain.json"


class FrameFolder:
    """Frames as files frame_000001.png and so on, of which the first ones are there; see `windows.Frames`."""

    def __init__(self, folder: Path):
        self.folder = folder
        names = {path.name for path in folder.glob("frame_*.png")}
        self.number = 0
        while self._path(self.number).name in names:
            self.number += 1

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, part: slice) -> np.ndarray:
        places = range(*part.indices(self.number))
        pictures = [_read(self._path(place)) for place in places]
        return np.stack(pictures) if pictures else np.empty((0, 0, 0, 3), np.uint8)

    def write(self, first: int, frames: Frames | Iterator[np.ndarray]) -> None:
        """Frames `[h w 3]` from the place `first` on; each is there as a whole or not at all."""
        from .files import encode as door

        for place, frame in enumerate(frames, start=first):
            with output.new_file(self._path(place)) as temporary:
                door.encode_picture(frame, temporary)
            self.number = max(self.number, place + 1)

    def _path(self, place: int) -> Path:
        return self.folder / f"frame_{place + 1:06d}.png"


def _read(path: Path) -> np.ndarray:
    from .files import encode as door

    try:
        return door.read_own(path)
    except OSError as error:
        raise ValueError(
            f"{shown(path)} cannot be read ({error}); delete it, and it is made again."
        ) from error


class Blank:
    """Black frames, of which only the number and the size count."""

    def __init__(self, number: int, height: int, width: int):
        self.number, self.size = number, (height, width)

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.zeros((len(range(*part.indices(self.number))), *self.size, 3), np.uint8)


@dataclass(frozen=True)
class Link:
    """A stage of a chain. build: the stage for a model and the frames of the one before.

    model: with its weights, or without, where they are not needed.
    """

    name: str
    model: Callable[[bool], UniVid]
    build: Callable[[UniVid, Frames], Stage]


@dataclass(frozen=True)
class Planned:
    """What a stage will make: frames of height x width, how many a second, in how many windows.

    needed: bytes of a window beside the weights.
    """

    name: str
    frames: int
    height: int
    width: int
    fps: float
    windows: int
    needed: int

    def __str__(self) -> str:
        return (
            f"{self.name:12}{self.frames:>7,} frames  {self.width:>5} x {self.height:<5}{self.fps:>6g} fps"
            f"{self.windows:>6,} windows of {self.needed / memory.GB:.1f} GB"
        )


def plan(
    links: Sequence[Link], source: Frames, fps: float, dtype: torch.dtype, device: torch.device
) -> list[Planned]:
    """What each link will make of a source of so many frames a second, on a device; no weights are read.

    dtype: of the weights.

    Raises:
        ValueError: as the stages.
    """
    found = []
    for link in links:
        stage = link.build(link.model(False), source)
        fps *= stage.speed
        found.append(
            Planned(
                link.name, stage.frames, stage.height, stage.width, fps, len(stage.windows),
                stage.needed(dtype, device),
            )
        )  # fmt: skip
        source = Blank(stage.frames, stage.height, stage.width)
    return found


Watcher = Callable[[Planned, int], None]  # (stage, windows done), before each window and at the end


class Work:
    """The work folder of a chain. settings: all that its frames hang on, as JSON has it.

    Raises:
        ValueError: it holds another chain, or something else.
    """

    def __init__(self, folder: Path, settings: Mapping):
        self.folder, self.names, path = folder, [], folder / SETTINGS
        settings = json.loads(json.dumps(settings))
        if not path.exists():
            output.check_folder(folder)
            folder.mkdir(parents=True, exist_ok=True)
            with output.new_file(path) as temporary:
                temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
            return
        try:
            there = json.loads(path.read_text("utf-8"))
            unlike = sorted(
                key for key in there.keys() | settings.keys() if there.get(key) != settings.get(key)
            )
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{shown(path)} cannot be read; delete {shown(folder)}, or name another."
            ) from error
        if unlike:
            raise ValueError(
                f"{shown(folder)} holds the work of another chain, with another {', '.join(unlike)}; give "
                "what it was begun with, name another work folder, or delete it."
            )

    def frames(self, number: int, name: str) -> FrameFolder:
        """Those of the stage `number`; 0 = of the source."""
        self.names.append(f"{number}_{name}")
        folder = self.folder / self.names[-1]
        folder.mkdir(exist_ok=True)
        return FrameFolder(folder)

    def remove(self) -> None:
        """Delete what was written here, and the folder unless something else lies in it."""
        for folder in (self.folder / name for name in self.names):
            _remove(folder, "frame_*.png")
        _remove(self.folder, SETTINGS)


def _remove(folder: Path, written: str) -> None:
    """Delete the files of that name, those that a killed run left half written, and the folder if empty."""
    for pattern in (written, f"{output.PREFIX}*"):
        for path in folder.glob(pattern):
            path.unlink()
    with contextlib.suppress(OSError):  # something else lies there
        folder.rmdir()


def run(
    links: Sequence[Link],
    planned: Sequence[Planned],
    source: Frames,
    work: Work,
    watch: Watcher | None = None,
) -> FrameFolder:
    """Make what is not there yet of every link; the last one's frames."""
    watch = watch or (lambda planned, done: None)
    for number, (link, what) in enumerate(zip(links, planned, strict=True), start=1):
        made = work.frames(number, link.name)
        if len(made) < what.frames:
            stage = link.build(link.model(True), source)
            for done, window in enumerate(stage.windows):
                watch(what, done)
                if len(made) < window.end:
                    made.write(window.new, stage.make(window, made))
            watch(what, len(stage.windows))
            del stage
        source = made
    return source

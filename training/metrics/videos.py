"""A folder of videos to be judged, whoever made them: what is in it, what each was asked for, and its frames.

A video is a file that univid reads (mp4, webm, gif, mov ...), a .npy of uint8 `[t h w 3]`, or a folder of
pictures, its frames in the order of their numbers. What was asked for stands in a manifest.jsonl beside them,
`{"file": "name in the folder", "prompt": ...}` on each line, or in a NAME.txt.
"""

import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from univid.files.media import Unreadable
from univid.files.regular import open_regular
from univid.messages import shown
from univid.video import open_video

from ..data.members import CAPTION_BYTES, EXTENSIONS
from . import manifest

CLIPS = frozenset(EXTENSIONS["clip"]) & frozenset(
    ("mp4", "mov", "webm", "mkv", "avi", "gif", "m4v", "mpg", "mpeg", "ts", "wmv", "flv", "3gp", "ogv")
)
PICTURES = frozenset(("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff"))
ARRAY = "npy"
PROMPT = "txt"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Video:
    """One video of a folder; nothing of it is read yet.

    path: of its file or of the folder of its frames. name: in the folder, with slashes, without the suffix.
    prompt: what was asked for; None = nobody says. fps: of pictures and arrays, which do not say themselves.
    picture: what was asked for beside the prompt, the manifest's `image`; None = none.
    """

    path: Path
    name: str
    prompt: str | None = None
    fps: float = math.nan
    picture: Path | None = None

    def read(self) -> tuple[np.ndarray, float]:
        """Its frames uint8 `[t h w 3]`, at least one, and frames per second; nan = nobody says.

        Raises:
            ValueError: it cannot be read; or its frames have several sizes.
        """
        if self.path.is_dir():
            return _read_pictures(self.path), self.fps
        if _suffix(self.path.name) == ARRAY:
            return _read_array(self.path), self.fps
        with open_video(self.path) as video:
            try:
                return np.stack(list(video.frames)), video.fps
            except MemoryError as error:
                raise ValueError(f"{shown(self.path)} takes more memory than there is; cut it.") from error


def find_videos(folder: Path) -> list[Video]:
    """The videos of a folder and of those in it, by name; hidden ones are left out.

    Raises:
        ValueError: no folder, no video in it, two that differ by their suffix alone, or a manifest that
            cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"expected a folder of videos, got {shown(folder)}, which is none; give one.")
    rows = {row["file"]: row for row in manifest.read(folder)}
    found: dict[str, Video] = {}
    for path in _walk(folder, top=True):
        file = path.relative_to(folder).as_posix()
        name = file if path.is_dir() else os.path.splitext(file)[0]
        if name in found:
            raise ValueError(
                f"{shown(folder)} holds two videos called {shown(name)}, which count twice; move one away."
            )
        row = rows.pop(file, {})
        prompt = row.get("prompt", _read_prompt(path.with_name(f"{Path(name).name}.{PROMPT}")))
        picture = folder / row["image"] if "image" in row else None
        found[name] = Video(path, name, prompt, float(row.get("fps", math.nan)), picture)
    if not found:
        raise ValueError(f"{shown(folder)} holds no video{_instead(folder)}.")
    if rows:
        log.warning(
            "%s names %d videos that are not there, the first: %s",
            shown(folder / manifest.NAME), len(rows), shown(next(iter(rows))),
        )  # fmt: skip
    return [found[name] for name in sorted(found)]


def _walk(folder: Path, top: bool = False) -> Iterator[Path]:
    """Files that are videos, and folders, but the top one, that hold pictures and no videos."""
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ValueError(f"{shown(folder)} cannot be read ({error.strerror}); check its rights.") from error
    videos = [path for path in inside if _suffix(path.name) in CLIPS | {ARRAY} and not path.is_dir()]
    yield from videos
    if not top and not videos and any(_suffix(path.name) in PICTURES for path in inside):
        yield folder
        return
    for path in inside:
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _instead(folder: Path) -> str:
    """What to do about a folder without videos."""
    if any(_suffix(path.name) in PICTURES for path in folder.iterdir()):
        return ", but pictures: if they are the frames of one, give the folder above it"
    return f"; videos are .{', .'.join(sorted(CLIPS))}, .{ARRAY} or folders of pictures"


def _read_prompt(path: Path) -> str | None:
    if not path.is_file():
        return None
    with open_regular(path) as file:
        text = file.read(CAPTION_BYTES + 1)
    try:
        if len(text) > CAPTION_BYTES:
            raise ValueError(f"{shown(path)} is too long for a prompt; shorten it.")
        return text.decode("utf-8-sig").strip() or None
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown(path)} is not UTF-8; save it as UTF-8.") from error


def _read_pictures(folder: Path) -> np.ndarray:
    from univid.files.picture import read_picture

    paths = [path for path in folder.iterdir() if _suffix(path.name) in PICTURES]
    frames = []
    for path in sorted((path for path in paths if not path.name.startswith(".")), key=_by_number):
        try:
            frames.append(read_picture(path))
        except Unreadable as error:
            raise ValueError(f"{shown(path)} cannot be read as a frame: {error}; write it again.") from error
        if frames[-1].shape != frames[0].shape:
            raise ValueError(f"{shown(folder)} cannot be read as a video: its frames have several sizes.")
    return np.stack(frames)


def _read_array(path: Path) -> np.ndarray:
    try:
        with open_regular(path) as file:
            frames = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, MemoryError) as error:
        raise ValueError(f"{shown(path)} cannot be read as an array ({error}); save it again.") from error
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise ValueError(
            f"expected uint8 frames [t h w 3] in {shown(path)}, got {frames.dtype} {list(frames.shape)}; "
            "save them as such."
        )
    return frames


def _by_number(path: Path) -> list:
    """So that frame_10 comes behind frame_9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()

"""What the doors for pictures and videos share: opening regular files alone, and the bound on sizes.

Nothing waits for a pipe or reads a device, and nothing is decoded that would fill the memory.
"""

import io
from pathlib import Path
from typing import BinaryIO, Protocol

from .regular import irregular


class Unreadable(Exception):
    """Something that cannot be used; the text says why, a few plain words that go on after a colon."""


class Openable(Protocol):
    """What is opened as a Path is; a part of a larger file."""

    def open(self, mode: str = "r") -> BinaryIO: ...


Media = bytes | Path | Openable
MAX_SIDE = 2**16  # resizing a longer line takes more memory than its pixels


def open_media(media: Media) -> BinaryIO:
    """The bytes of a picture or a video, or the regular file that holds them, open for reading.

    Raises:
        Unreadable: nothing is there or nothing is in it, it is no regular file, or it may not be read.
    """
    if isinstance(media, bytes):
        file = io.BytesIO(media)
    else:
        if isinstance(media, Path):
            check_regular(media)
        try:
            file = media.open("rb")
        except OSError as error:
            raise Unreadable(_refusal(error)) from error
    if not file.read(1):
        file.close()
        raise Unreadable("it is empty")
    file.seek(0)
    return file


def check_regular(path: Path) -> None:
    """Refuse what is no regular file, nor a link to one.

    Raises:
        Unreadable: a folder, a pipe, a socket or a device; or nothing is there.
    """
    try:
        kind = irregular(path)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise Unreadable(_refusal(error)) from error
    if kind:
        raise Unreadable(f"it is {kind}, not a file")


def _refusal(error: Exception) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "it does not exist"
    if isinstance(error, PermissionError):
        return "it may not be read by this user"
    reason = getattr(error, "strerror", None)
    return f"the system does not open it ({reason})" if reason else "no file can have this name"


def check_size(height: int, width: int, most: int) -> None:
    """Refuse what is too large to decode.

    Raises:
        Unreadable: more than `most` pixels, or more than MAX_SIDE in a line.
    """
    if height * width > most:
        raise Unreadable(f"{width} x {height} is more than {most / 1e6:.0f} megapixels")
    if max(height, width) > MAX_SIDE:
        raise Unreadable(f"{width} x {height} is more than {MAX_SIDE} pixels a side")

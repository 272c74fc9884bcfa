"""Plain files: opened for reading, looked at again before a part of them is read, and small ones of JSON."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..messages import shown

JSON_LIMIT = 4 * 2**20  # bytes; the index of a model in pieces takes 0.3 MB, a config 2 KB


@contextmanager
def open_regular(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a regular file to read its bytes; pipes and devices, which may never end, are refused.

    Raises:
        ValueError: absent, protected, a folder, a pipe, a device, or an error of the disk while it is read.
    """
    try:
        if kind := irregular(path):
            raise ValueError(f"{shown(path)} cannot be read, because it is {kind}; give a file.")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise ValueError(
            f"{shown(path)} cannot be read ({error.strerror or error}); check the name."
        ) from error


def irregular(path: str | os.PathLike) -> str | None:
    """What a path leads to instead of a regular file, with its article; None = it is one.

    Raises:
        OSError: nothing is there, or it may not be looked at. ValueError: no file can have this name.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        return None
    return "a folder" if stat.S_ISDIR(mode) else "a pipe or device"


class Steady:
    """A regular file that has to stay as it is while parts of it are read, each through a handle of its own.

    size: in bytes.

    Raises:
        ValueError: as `open_regular`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        with open_regular(path) as file:
            self._seen = _identity(file)
        self.size = self._seen[0]

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """A handle that is closed at the end.

        Raises:
            ValueError: the file is another one by now, or as `open_regular`.
        """
        with open_regular(self.path) as file:
            if _identity(file) != self._seen:
                raise self.changed()
            yield file

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from `offset` on; no part of the file is mapped.

        Raises:
            ValueError: the file changed meanwhile.
        """
        with self.open() as file:
            file.seek(offset)
            if file.readinto(buffer) != len(buffer):
                raise self.changed()

    def changed(self) -> ValueError:
        """What to raise when the file is not what it was."""
        return ValueError(f"{shown(self.path)} was changed while it was read; try again.")


def read_json(path: str | os.PathLike) -> dict:
    """A JSON object of a few megabytes at most.

    Raises:
        ValueError: as `open_regular`, too large, or no JSON object.
    """
    with open_regular(path) as file:
        text = file.read(JSON_LIMIT + 1)
    if len(text) > JSON_LIMIT:
        raise ValueError(
            f"{shown(path)} is larger than {JSON_LIMIT:,} bytes, which no such file is; take another."
        )
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(path)} is no JSON that can be read; download or copy it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{shown(path)} holds no JSON object; download or copy it again.")
    return content


def _identity(file: BinaryIO) -> tuple[int, ...]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev

"""The door for hashes, and notes of them in the user's cache folder: that of a checkpoint takes seconds."""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

from ..messages import shown
from . import output
from .regular import open_regular, read_json

NOTES = "hashes.json"
LARGE = 2**25  # bytes; what is smaller is hashed sooner than it is noted
MOST_NOTES = 1000
CHUNK = 2**20


def cache_folder() -> Path:
    """The user's own folder for what can be made again: $XDG_CACHE_HOME/univid, or ~/.cache/univid."""
    home = os.path.expanduser("~")
    if not os.path.isabs(home):  # of a user whom the system does not know, as containers have them
        home = tempfile.gettempdir()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(home, ".cache")) / "univid"  # empty is as not set


def sha256(path: str | os.PathLike) -> str:
    """The hash of a file's bytes, 64 letters; that of a folder is of its files' names and hashes.

    Raises:
        ValueError: as `open_regular`.
    """
    path = Path(path)
    found = hashlib.sha256()
    if path.is_dir():
        for name in sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()):
            found.update(f"{noted_sha256(path / name)}  {name}\n".encode("utf-8", "surrogateescape"))
        return found.hexdigest()
    with open_regular(path) as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()


def noted_sha256(path: str | os.PathLike) -> str:
    """As `sha256`; a large file's is taken from the notes while its path, size and time are those noted.

    Raises:
        ValueError: as `open_regular`.
    """
    before = _identity(path)
    if before is None or before[0] < LARGE:
        return sha256(path)
    key, notes = str(Path(path).resolve()), _read_notes()
    if (there := notes.get(key)) and there[:2] == before:
        return there[2]
    found = sha256(path)
    if _identity(path) == before:
        _write_notes({key: [*before, found], **{name: note for name, note in notes.items() if name != key}})
    return found


def _identity(path: str | os.PathLike) -> list[int] | None:
    """Size and time of a file; None = of a folder, or of nothing."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return None if Path(path).is_dir() else [found.st_size, found.st_mtime_ns]


def _read_notes() -> dict[str, list]:
    """The notes that can be read; others are made again."""
    try:
        notes = read_json(cache_folder() / NOTES)
    except ValueError:
        return {}
    return {
        path: note
        for path, note in notes.items()
        if isinstance(note, list) and list(map(type, note)) == [int, int, str] and is_sha256(note[2])
    }


def _write_notes(notes: dict[str, list]) -> None:
    kept = dict(list(notes.items())[:MOST_NOTES])
    # Where nothing can be written, the hash is made again the next time.
    with contextlib.suppress(ValueError), output.new_file(cache_folder() / NOTES) as temporary:
        temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def is_sha256(text: object) -> bool:
    """Whether something is such a hash."""
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def short(sha256: str) -> str:
    """As much of a hash as tells files apart."""
    return shown(sha256[:12])

"""A folder of pictures or clips as one shard: captions in files of the same name, or in one metadata.jsonl.

    cat.mp4  cat.txt  cat.json (optional: its numbers), or metadata.jsonl, a sample on each line:
    {"file": "cat.mp4", "caption": "a cat wakes up", "start": 2.5, "end": 6}
"start" and "end" are seconds and can be left out, so can "caption" when there is a cat.txt.
"""

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .members import (
    EXTENSIONS,
    MEDIA,
    Facts,
    collect,
    json_key,
    measure,
    parse_caption,
    parse_json,
    size_in_json,
)
from .samples import BadSample, Raw
from .tars import digest, save_first

METADATA = "metadata.jsonl"
SIZES = ".sizes.json"  # {file: [bytes, time of change, width, height]}, so that no file is opened twice
THREADS = 8


@dataclass(frozen=True)
class Row:
    """One sample: a file, relative to the folder, or a part of it. caption: None = in a file of its own."""

    file: str
    caption: str | None = None
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class FolderIndex:
    """The n samples of a folder. files: the names of all files in it, of whatever kind."""

    path: Path
    rows: tuple[Row, ...]
    files: frozenset[str]
    facts: Facts

    def found(self) -> Counter[str]:
        """How many files have each suffix."""
        return Counter(suffix for file in self.files if (suffix := _suffix(file)))

    def media(self, kind: str) -> np.ndarray:
        """Which samples are pictures, or clips: bool `[n]`."""
        return np.array([_suffix(row.file) in EXTENSIONS[kind] for row in self.rows], bool)

    def captions(self, where: str) -> int:
        """How many samples have a caption."""
        key = json_key(where)
        texts = 0 if key is None else self.facts.texts.get(key, 0)
        beside = (key is None and _beside(row.file, where) in self.files for row in self.rows)
        held = (row.caption is not None for row in self.rows)
        return texts + sum(a or b for a, b in zip(beside, held, strict=True))

    def read(self, sample: int, kind: str, caption: str) -> Raw:
        """Sample number `sample`; its medium stays on the disk.

        Raises:
            BadSample: its caption is missing or cannot be read.
        """
        row = self.rows[sample]
        key = f"{self.path.absolute().name}/{row.file}"
        if (row.start, row.end) != (0, None):
            key += f":{row.start:g}-{'' if row.end is None else f'{row.end:g}'}"
        try:
            text, meta = (
                (self.path / name).read_bytes() if name in self.files else None
                for name in (_beside(row.file, caption), _beside(row.file, "json"))
            )
            meta = parse_json(meta)
            if row.caption is None:
                words = parse_caption(caption, text, meta)
            else:
                words = parse_caption("json:caption", None, {"caption": row.caption})
        except OSError as error:
            raise BadSample(f"{key}: {error.strerror or error}") from error
        except BadSample as error:
            raise BadSample(f"{key}: {error}") from error
        return Raw(key, self.path / row.file, _suffix(row.file), words, row.start, row.end, meta)


def open_folder(path: Path, kind: str, cache: Path) -> FolderIndex:
    """The pictures or clips of a folder and of those in it, by name; or the rows of its metadata.jsonl.

    The media's sizes are read once and kept, in the folder itself or else in `cache`.

    Raises:
        ValueError: a line of metadata.jsonl is wrong.
    """
    files = list_files(path)
    if METADATA in files:
        rows = _read_rows(path / METADATA, frozenset(files))
    else:
        rows = [Row(file) for file in files]
    rows = [row for row in rows if _suffix(row.file) in EXTENSIONS[kind]]
    sizes = _sizes(path, sorted({row.file for row in rows}), cache)

    def size(sample: int, meta: dict) -> tuple[int, int]:
        width, height = sizes[rows[sample].file]
        return (width, height) if width else size_in_json(meta)

    held = frozenset(files)
    beside = (_beside(row.file, "json") for row in rows)
    jsons = (_read_or_none(path / name) if name in held else None for name in beside)
    return FolderIndex(path, tuple(rows), held, collect(len(rows), jsons, size))


def list_files(path: Path) -> list[str]:
    """All files in a folder and below it, relative to it, by name; hidden ones left out.

    Raises:
        OSError: it cannot be listed.
    """

    def fail(error: OSError):
        raise error

    names = []
    for folder, below, files in os.walk(path, onerror=fail):
        below[:] = [name for name in below if not name.startswith(".")]
        inside = Path(folder).relative_to(path)
        names += [(inside / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(names)


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1][1:].lower()


def _beside(file: str, suffix: str) -> str:
    return f"{os.path.splitext(file)[0]}.{suffix}"


def _read_or_none(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _read_rows(path: Path, files: frozenset[str]) -> list[Row]:
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8; save it as UTF-8.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(_read_row(line, files))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def _read_row(line: str, files: frozenset[str]) -> Row:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is not json ({error}).") from error
    known = [field.name for field in dataclasses.fields(Row)]
    if not isinstance(fields, dict) or not isinstance(fields.get("file"), str):
        raise ValueError('expected an object with a "file", such as {"file": "cat.mp4", "caption": "a cat"}.')
    if unknown := fields.keys() - set(known):
        raise ValueError(f"the fields are {', '.join(known)}; got {', '.join(sorted(unknown))}.")
    row = Row(**fields)
    row = dataclasses.replace(row, file=os.path.normpath(row.file).replace(os.sep, "/"))
    if row.file not in files:
        raise ValueError(f"there is no file {fields['file']!r} in this folder.")
    if _suffix(row.file) not in MEDIA:
        raise ValueError(f"{row.file!r} is neither a picture nor a clip ({', '.join(sorted(MEDIA))}).")
    if not isinstance(row.caption, str | None):
        raise ValueError(f'"caption" must be text, got {row.caption!r}.')
    if not _is_time(row.start) or (row.end is not None and not _is_time(row.end)):
        raise ValueError(f'"start" and "end" are seconds from 0 on, got {row.start!r} and {row.end!r}.')
    if row.end is not None and row.start >= row.end:
        raise ValueError(f'"start" must be before "end", got {row.start:g} and {row.end:g}.')
    return row


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _sizes(path: Path, files: Sequence[str], cache: Path) -> dict[str, tuple[int, int]]:
    """(width, height) of media in the folder; (0, 0) = unreadable."""
    places = (path / SIZES, cache / f"{digest(path)}{SIZES}")
    known = next((sizes for place in places if (sizes := _load_sizes(place)) is not None), {})
    stamps = {}
    for file in files:
        try:
            stat = (path / file).stat()
        except OSError:  # a link to nowhere
            continue
        stamps[file] = [stat.st_size, stat.st_mtime_ns]
    fresh = [file for file, stamp in stamps.items() if known.get(file, [])[:2] != stamp]
    with ThreadPoolExecutor(THREADS) as pool:
        measured = pool.map(lambda file: measure(path / file, _suffix(file)), fresh)
        for file, size in zip(fresh, tqdm(measured, "sizes", len(fresh), delay=3), strict=True):
            known[file] = [*stamps[file], *size]
    if fresh:
        save_first(places, lambda file: file.write(json.dumps(known).encode()))
    return {file: tuple(known[file][2:]) if file in stamps else (0, 0) for file in files}


def _load_sizes(place: Path) -> dict[str, list[int]] | None:
    try:
        sizes = json.loads(place.read_bytes())
    except (OSError, ValueError):
        return None
    right = isinstance(sizes, dict) and all(isinstance(s, list) and len(s) == 4 for s in sizes.values())
    return sizes if right else None

"""A folder of pictures or clips as one shard: captions in files of the same name, or in one metadata.jsonl.

    cat.mp4  cat.txt  cat.json (optional: its numbers), or metadata.jsonl, a sample on each line:
    {"file": "cat.mp4", "caption": "a cat wakes up", "start": 2.5, "end": 6}
"start" and "end" are seconds and can be left out, so can "caption" when there is a cat.txt. Cameras that
write CAT.MP4 may have CAT.TXT, or cat.txt, beside it.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from univid.messages import shown

from .members import (
    CAPTION_BYTES,
    EXTENSIONS,
    JSON_BYTES,
    KEPT_BYTES,
    MEDIA,
    SIDECARS,
    UNKNOWN,
    Facts,
    collect,
    is_side,
    json_key,
    measure,
    parse_caption,
    parse_json,
    read_small,
    size_in_json,
)
from .samples import BadSample, Raw
from .tars import digest, save_first

METADATA = "metadata.jsonl"
SIZES = ".sizes.json"  # {file: [bytes, time of change, width, height]}, so that no file is opened twice
THREADS = 8
LONGEST = 2**20  # bytes of a line of metadata.jsonl
LATEST = 10_000_000  # seconds, at which a part of a clip may begin or end: four months
log = logging.getLogger(__name__)


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

    def beside(self, file: str, suffix: str) -> str | None:
        """The file of the same name with another suffix; None if there is none.

        Any case will do, but not the name that belongs to another medium: a.mp4 and A.MP4 are two clips.
        """
        exact = _beside(file, suffix)
        if exact in self.files:
            return exact
        own = os.path.splitext(file)[0]
        for name in self._folded.get(exact.casefold(), ()):
            stem = os.path.splitext(name)[0]
            if stem == own or stem not in self._stems:
                return name
        return None

    @functools.cached_property
    def _folded(self) -> dict[str, list[str]]:
        """The names of captions and jsons by their small letters."""
        names = defaultdict(list)
        for name in sorted(self.files):
            if _suffix(name) not in MEDIA:
                names[name.casefold()].append(name)
        return dict(names)

    @functools.cached_property
    def _stems(self) -> frozenset[str]:
        return frozenset(os.path.splitext(name)[0] for name in self.files if _suffix(name) in MEDIA)

    def captions(self, where: str) -> int:
        """How many samples have a caption."""
        key = json_key(where)
        texts = 0 if key is None else self.facts.texts.get(key, 0)
        beside = (key is None and self.beside(row.file, where) is not None for row in self.rows)
        held = (row.caption is not None for row in self.rows)
        return texts + sum(a or b for a, b in zip(beside, held, strict=True))

    def unknown(self, where: str) -> Counter[str]:
        """How many files of each suffix have a caption, and are of no kind that is known."""
        where = where if json_key(where) is None else "json"
        known = MEDIA | SIDECARS | {where}
        others = [file for file in self.files if _suffix(file) not in known]
        return Counter(_suffix(file) for file in others if self.beside(file, where) is not None)

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
            text = self._read_beside(row, caption, CAPTION_BYTES)
            meta = parse_json(self._read_beside(row, "json", JSON_BYTES))
            if row.caption is None:
                words = parse_caption(caption, text, meta)
            else:
                words = parse_caption("json:caption", None, {"caption": row.caption})
        except OSError as error:
            raise BadSample(f"{key}: {error.strerror or error}") from error
        except BadSample as error:
            raise BadSample(f"{key}: {error}") from error
        return Raw(key, self.path / row.file, _suffix(row.file), words, row.start, row.end, meta)

    def _read_beside(self, row: Row, suffix: str, most: int) -> bytes | None:
        name = self.beside(row.file, suffix)
        return None if name is None else read_small(self.path / name, most)

    def places(self) -> list[list]:
        """What tells the samples apart, wherever the folder lies: JSON values."""
        return [[row.file, row.start, row.end] for row in self.rows]


def open_folder(path: Path, kind: str, cache: Path) -> FolderIndex:
    """The pictures or clips of a folder and of those in it, by name; or the rows of its metadata.jsonl.

    The media's sizes are read once and kept, in the folder itself or else in `cache`.

    Raises:
        ValueError: a line of metadata.jsonl is wrong.
    """
    files = list_files(path)
    _warn_of_others(path)
    metadata = next((file for file in files if file.lower() == METADATA), None)
    if metadata is not None:
        rows = list(_read_rows(path / metadata, frozenset(files)))
    else:
        rows = [Row(file) for file in files]
    rows = [row for row in rows if _suffix(row.file) in EXTENSIONS[kind]]
    sizes = _sizes(path, sorted({row.file for row in rows}), cache)

    def size(sample: int, meta: dict) -> tuple[int, int]:
        width, height = sizes[rows[sample].file]
        return (width, height) if width else size_in_json(meta)

    index = FolderIndex(path, tuple(rows), frozenset(files), collect(0, (), size))
    beside = (index.beside(row.file, "json") for row in rows)
    jsons = (None if name is None else _read_or_none(path / name) for name in beside)
    return dataclasses.replace(index, facts=collect(len(rows), jsons, size))


def list_files(path: Path) -> list[str]:
    """All files in a folder and below it, relative to it, by name; hidden ones left out.

    Also links to nowhere, which are bad samples; but nothing that may never end, as pipes and devices.

    Raises:
        OSError: it cannot be listed.
    """
    return sorted(name for name, regular in _walk(path) if regular)


@functools.cache
def _warn_of_others(path: Path) -> None:
    """Say once what `list_files` leaves out."""
    for name in sorted(name for name, regular in _walk(path) if not regular):
        log.warning("%s is no regular file and is passed over", shown(path / name))


def _walk(path: Path) -> Iterator[tuple[str, bool]]:
    """The names of all that is no folder, and whether it is a file or could have been one."""
    folders = [""]
    while folders:
        inside = folders.pop()
        with os.scandir(path / inside) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{inside}{entry.name}/")
                continue
            try:
                regular = entry.is_file() or not os.path.exists(entry.path)
            except OSError:  # a link in a circle
                regular = True
            if regular or not os.path.isdir(entry.path):
                yield f"{inside}{entry.name}", regular


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1][1:].lower()


def _beside(file: str, suffix: str) -> str:
    return f"{os.path.splitext(file)[0]}.{suffix}"


def _read_or_none(path: Path) -> bytes | None:
    try:
        return read_small(path, JSON_BYTES)
    except (OSError, BadSample):
        return None


def _read_rows(path: Path, files: frozenset[str]) -> Iterator[Row]:
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
            try:
                if len(line) > LONGEST:
                    raise ValueError(f"the line has more than {LONGEST:,} bytes; shorten it.")
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield _read_row(text, files)
            except UnicodeDecodeError as error:
                raise ValueError(f"{shown(path)}, line {number}: not UTF-8; save it as UTF-8.") from error
            except ValueError as error:
                raise ValueError(f"{shown(path)}, line {number}: {error}") from error


def _read_row(line: str, files: frozenset[str]) -> Row:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not json from its character {error.pos + 1} on; correct it.") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits
        raise ValueError("this is not json that can be read; correct the line.") from error
    known = [field.name for field in dataclasses.fields(Row)]
    if not isinstance(fields, dict) or not isinstance(fields.get("file"), str):
        raise ValueError('expected an object with a "file", such as {"file": "cat.mp4", "caption": "a cat"}.')
    if unknown := fields.keys() - set(known):
        raise ValueError(f"the fields are {', '.join(known)}; got {shown(', '.join(sorted(unknown)))}.")
    row = Row(**fields)
    row = dataclasses.replace(row, file=os.path.normpath(row.file).replace(os.sep, "/"))
    if row.file not in files:
        raise ValueError(f"there is no file {_words(fields['file'])} in this folder; correct its name.")
    if _suffix(row.file) not in MEDIA:
        raise ValueError(
            f"{_words(row.file)} is neither a picture nor a clip, by its suffix; correct its name."
        )
    if not isinstance(row.caption, str | None):
        raise ValueError(f'"caption" must be text, got {_words(row.caption)}.')
    if len(row.caption or "") > CAPTION_BYTES:
        raise ValueError(f'"caption" has more than {CAPTION_BYTES:,} characters; shorten it.')
    if not _is_time(row.start) or (row.end is not None and not _is_time(row.end)):
        raise ValueError(
            f'"start" and "end" are seconds from 0 on, got {_words(row.start)} and {_words(row.end)}; '
            f"give numbers up to {LATEST:,}."
        )
    if row.end is not None and row.start >= row.end:
        raise ValueError(f'"start" must be before "end", got {row.start:g} and {row.end:g}.')
    return row


def _words(value: Any) -> str:
    """A value as a message may show it."""
    if isinstance(value, int) and abs(value) > 10**18:  # printing it may take an hour, or be refused
        return "a number of more than 18 digits"
    return repr(shown(value, 60)) if isinstance(value, str) else shown(value, 60)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LATEST


def _sizes(path: Path, files: Sequence[str], cache: Path) -> dict[str, tuple[int, int]]:
    """(width, height) of media in the folder; (0, 0) = unreadable."""
    places = (path / SIZES, cache / f"{digest(path)}{SIZES}")
    known = next((sizes for place in places if (sizes := _load_sizes(place)) is not None), {})
    stamps = {}
    for file in files:
        with contextlib.suppress(OSError):  # a link to nowhere
            held = (path / file).stat()
            stamps[file] = [held.st_size, held.st_mtime_ns]
    fresh = [file for file, stamp in stamps.items() if known.get(file, [])[:2] != stamp]
    with ThreadPoolExecutor(THREADS) as pool:
        measured = pool.map(lambda file: measure(path / file, _suffix(file)), fresh)
        for file, size in zip(fresh, tqdm(measured, "sizes", len(fresh), delay=3), strict=True):
            known[file] = [*stamps[file], *size]
    if fresh:
        save_first(places, lambda file: file.write(json.dumps(known).encode()))
    return {file: tuple(known[file][2:]) if file in stamps else UNKNOWN for file in files}


def _load_sizes(place: Path) -> dict[str, list[int]] | None:
    """What is kept of earlier openings; None if there is nothing, or nothing of ours."""
    try:
        sizes = json.loads(read_small(place, KEPT_BYTES)) if place.is_file() else None
    except (OSError, BadSample, ValueError, RecursionError):
        return None
    if not isinstance(sizes, dict):
        return None
    return {file: entry for file, entry in sizes.items() if _is_entry(entry)}


def _is_entry(entry: Any) -> bool:
    """Whether something is [bytes, time of change, width, height]."""
    if not isinstance(entry, list) or len(entry) != 4 or not all(type(number) is int for number in entry):
        return False
    return all(map(is_side, entry[2:])) or tuple(entry[2:]) == UNKNOWN

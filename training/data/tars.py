"""Tar shards in WebDataset layout: an index of where each sample's members lie, so that any can be read.

img2dataset and video2dataset write them: 000123.jpg (or .mp4), 000123.txt, 000123.json one behind the other.
The index is made by one walk over the tar and kept beside it.
"""

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import tarfile
import threading
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

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
    split_name,
)
from .samples import BadSample, Raw

VERSION = 1  # of the index files; others are made anew
UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)  # of a file that NumPy wrote
BLOCK = 512  # a tar consists of these; zeros mark its end
# NumPy parses its headers with `ast`, which in Python 3.11 now and then fails in threads (cpython 106905).
ONE_AT_A_TIME = threading.Lock()
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TarIndex:
    """The n samples of a tar.

    keys: bytes `[n]`. members: int64 `[m 4]`, (sample, suffix, offset, bytes), by sample. suffixes: of all
    members. damage: what is wrong with the tar, "" = nothing.
    """

    path: Path
    keys: np.ndarray
    members: np.ndarray
    suffixes: tuple[str, ...]
    facts: Facts
    damage: str

    def found(self) -> Counter[str]:
        """How many samples have a member of each suffix."""
        counts = np.bincount(self.members[:, 1], minlength=len(self.suffixes)).tolist()
        return Counter(dict(zip(self.suffixes, counts, strict=True)))

    def media(self, kind: str) -> np.ndarray:
        """Which samples have a picture, or a clip: bool `[n]`."""
        wanted = [i for i, suffix in enumerate(self.suffixes) if suffix in EXTENSIONS[kind]]
        held = np.zeros(len(self.keys), bool)
        held[self.members[np.isin(self.members[:, 1], wanted), 0]] = True
        return held

    def captions(self, where: str) -> int:
        """How many samples have a caption."""
        key = json_key(where)
        return self.found()[where] if key is None else self.facts.texts.get(key, 0)

    def read(self, sample: int, kind: str, caption: str) -> Raw:
        """Sample number `sample`, which has a medium of this kind.

        Raises:
            BadSample: it cannot be read, or has no caption.
        """
        key = f"{self.path.name}:{self.keys[sample].decode(errors='replace')}"
        start, stop = np.searchsorted(self.members[:, 0], (sample, sample + 1))
        places = {
            self.suffixes[s]: (offset, size) for _, s, offset, size in self.members[start:stop].tolist()
        }
        extension = next(extension for extension in EXTENSIONS[kind] if extension in places)
        try:
            # Opened anew each time: 20 us on a local disk, and no open file to share between processes.
            with open(self.path, "rb", buffering=0) as file:
                media, text, meta = (
                    _bytes(file, *places[suffix]) if suffix in places else None
                    for suffix in (extension, caption, "json")
                )
            meta = parse_json(meta)
            return Raw(key, media, extension, parse_caption(caption, text, meta), meta=meta)
        except OSError as error:
            raise BadSample(f"{key}: {error.strerror or error}") from error
        except BadSample as error:
            raise BadSample(f"{key}: {error}") from error


def _bytes(file: BinaryIO, offset: int, size: int) -> bytes:
    data = os.pread(file.fileno(), size, offset)
    if len(data) < size:
        raise BadSample(f"{len(data)} of {size} bytes are there")
    return data


def open_tar(path: Path, cache: Path) -> TarIndex:
    """The index of a tar: from beside it or from the folder `cache`, else made and kept there.

    It is made anew when the tar's size or time of change is another than then.

    Raises:
        OSError: the file cannot be read.
        tarfile.TarError: it is not an uncompressed tar, or holds no whole sample.
    """
    stat = path.stat()
    stamp = [VERSION, stat.st_size, stat.st_mtime_ns]
    places = (path.with_suffix(".index.npz"), cache / f"{digest(path)}.index.npz")
    for place in places:
        if (index := _load(place, path, stamp)) is not None:
            return index
    index = scan(path)
    save_first(places, lambda file: _save(file, index, stamp))
    return index


def digest(path: Path) -> str:
    """A file name that stands for a path, for what is kept elsewhere."""
    return hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:24]


def save_first(places: Sequence[Path], write: Callable[[BinaryIO], None]) -> None:
    """Write a file, whole or not at all, to the first of several places that lets us; to none is no error.

    Several processes may do so at once, hence a temporary name of each one's own.
    """
    for place in places:
        temporary = place.with_name(f".partial_{uuid.uuid4().hex}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                write(file)
            os.replace(temporary, place)
            return
        except OSError as error:
            log.debug("%s cannot be written: %s", place, error)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    _warn(places[0].parent)


@functools.cache
def _warn(folder: Path) -> None:
    log.warning("nothing can be written in %s, nor elsewhere; indices are made anew each time", folder)


def pack(value: Any) -> np.ndarray:
    """A value as json in an array, uint8 `[bytes]`, for what cannot be an array in a file of arrays."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _save(file: BinaryIO, index: TarIndex, stamp: list[int]) -> None:
    facts = index.facts
    head = {
        "stamp": stamp,
        "suffixes": index.suffixes,
        "names": facts.names,
        "texts": facts.texts,
        "damage": index.damage,
    }
    np.savez(
        file,
        head=pack(head),
        keys=index.keys,
        members=index.members,
        sizes=facts.sizes,
        numbers=facts.numbers,
    )


def _load(place: Path, path: Path, stamp: list[int]) -> TarIndex | None:
    try:
        data = io.BytesIO(place.read_bytes())
        with ONE_AT_A_TIME, np.load(data) as file:
            head = json.loads(file["head"].tobytes())
            if head["stamp"] != stamp:
                return None
            facts = Facts(file["sizes"], tuple(head["names"]), file["numbers"], head["texts"])
            return TarIndex(
                path, file["keys"], file["members"], tuple(head["suffixes"]), facts, head["damage"]
            )
    except UNREADABLE:
        return None  # not there, or not ours: one is made


def scan(path: Path) -> TarIndex:
    """The index of a tar, from one walk over its headers and json members.

    Raises: as `open_tar`.
    """
    with open(path, "rb") as file:
        samples, cut = _walk(file)
        if not samples:
            raise tarfile.ReadError("it is cut within its first sample" if cut else "it holds no samples")
        suffixes = {
            suffix: i for i, suffix in enumerate({s: None for held in samples.values() for s in held})
        }
        members = [
            (sample, suffixes[suffix], *place)
            for sample, held in enumerate(samples.values())
            for suffix, place in held.items()
        ]
        held = list(samples.values())

        def jsons() -> Iterator[bytes | None]:
            for places in held:
                offset, length = places.get("json", (0, 0))
                yield os.pread(file.fileno(), length, offset) if length else None

        def size(sample: int, meta: dict) -> tuple[int, int]:
            known, media = size_in_json(meta), MEDIA & held[sample].keys()
            if any(known) or not media:
                return known
            suffix = min(media)
            return measure(Member(file, *held[sample][suffix]), suffix)

        facts = collect(len(held), jsons(), size)
    keys = np.array([key.encode("utf-8", "surrogateescape") for key in samples], dtype=np.bytes_)
    damage = f"cut or damaged after {len(samples)} whole samples, the only ones taken" if cut else ""
    return TarIndex(path, keys, np.array(members, np.int64), tuple(suffixes), facts, damage)


def _walk(file: BinaryIO) -> tuple[dict[str, dict[str, tuple[int, int]]], bool]:
    """(offset, size) of the members of every whole sample, by key and suffix; whether the tar is cut."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    length, end, last, in_member = os.fstat(file.fileno()).st_size, 0, None, False
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isreg() or member.issparse():
                    end = member.offset_data
                    continue
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                name = split_name(member.name)
                if name is None:
                    continue
                last = name[0]
                in_member = member.offset_data + member.size > length
                if in_member:
                    break
                # As tar does on unpacking, a later member replaces an earlier one of its name.
                samples.setdefault(last, {})[name[1]] = (member.offset_data, member.size)
    except tarfile.TarError:
        if not samples:
            raise
    cut = os.pread(file.fileno(), BLOCK, end) != bytes(BLOCK)
    if cut and last in samples:  # it is whole when it has all that the first one has
        if in_member or not samples[next(iter(samples))].keys() <= samples[last].keys():
            del samples[last]
    return samples, cut


class Member:
    """A stretch of an open file, opened as a Path is, so that of a clip little is read but its header."""

    def __init__(self, file: BinaryIO, offset: int, size: int):
        self.place = file, offset, size

    def open(self, mode: str = "rb") -> BinaryIO:
        return io.BufferedReader(Window(*self.place))


class Window(io.RawIOBase):
    """A stretch of a file as a file of its own."""

    def __init__(self, file: BinaryIO, offset: int, size: int):
        super().__init__()
        self.descriptor, self.offset, self.size, self.position = file.fileno(), offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self.size - self.position))
        data = os.pread(self.descriptor, count, self.offset + self.position)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

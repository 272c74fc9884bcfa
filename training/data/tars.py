"""Tar shards in WebDataset layout: an index of where each sample's members lie, so that any can be read.

img2dataset and video2dataset write them: 000123.jpg (or .mp4), 000123.txt, 000123.json one behind the other.
The index is made by one walk over the tar and kept beside it.
"""

import functools
import hashlib
import io
import json
import logging
import os
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from univid.files.output import new_file
from univid.messages import shown

from .members import (
    CAPTION_BYTES,
    EXTENSIONS,
    JSON_BYTES,
    KEPT_BYTES,
    MEDIA,
    MEDIUM_BYTES,
    SIDECARS,
    Facts,
    check_small,
    collect,
    json_key,
    measure,
    parse_caption,
    parse_json,
    read_small,
    size_in_json,
    split_name,
)
from .samples import BadSample, Raw
from .walk import Window, read_at, walk

VERSION = 2  # of the index files; others are made anew
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
        return self._holding(EXTENSIONS[kind])

    def _holding(self, names: Collection[str]) -> np.ndarray:
        """Which samples have a member of any of these suffixes: bool `[n]`."""
        wanted = [i for i, suffix in enumerate(self.suffixes) if suffix in names]
        held = np.zeros(len(self.keys), bool)
        held[self.members[np.isin(self.members[:, 1], wanted), 0]] = True
        return held

    def captions(self, where: str) -> int:
        """How many samples have a caption."""
        key = json_key(where)
        return self.found()[where] if key is None else self.facts.texts.get(key, 0)

    def unknown(self, where: str) -> Counter[str]:
        """How many samples with a caption have no medium of a known kind, by what they have instead."""
        where = where if json_key(where) is None else "json"
        held = [self._holding(names) for names in ({where}, MEDIA)]
        lacking = np.flatnonzero(held[0] & ~held[1])
        suffixes = self.members[np.isin(self.members[:, 0], lacking), 1].tolist()
        known = SIDECARS | {where}
        return Counter(self.suffixes[i] for i in suffixes if self.suffixes[i] not in known)

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
                    _bytes(file, suffix, *places[suffix], most) if suffix in places else None
                    for suffix, most in (
                        (extension, MEDIUM_BYTES),
                        (caption, CAPTION_BYTES),
                        ("json", JSON_BYTES),
                    )
                )
            meta = parse_json(meta)
            return Raw(key, media, extension, parse_caption(caption, text, meta), meta=meta)
        except OSError as error:
            raise BadSample(f"{key}: {error.strerror or error}") from error
        except BadSample as error:
            raise BadSample(f"{key}: {error}") from error


def _bytes(file: BinaryIO, suffix: str, offset: int, size: int, most: int) -> bytes:
    check_small(suffix, size, most)
    data = read_at(file, offset, size)
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

    Several processes may do so at once.
    """
    for place in places:
        try:
            with new_file(place) as temporary, open(temporary, "xb") as file:
                write(file)
            return
        except ValueError as error:
            log.debug("%s", error)
    _warn(places[0].parent)


@functools.cache
def _warn(folder: Path) -> None:
    log.warning("nothing can be written in %s, nor elsewhere; indices are made anew each time", shown(folder))


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
    """The index that is kept at `place`; None if there is none, or none that could be ours."""
    kept = load_arrays(place)
    try:
        head = json.loads(kept["head"].tobytes())
        if head["stamp"] != stamp:
            return None
        facts = Facts(kept["sizes"], tuple(head["names"]), kept["numbers"], head["texts"])
        index = TarIndex(path, kept["keys"], kept["members"], tuple(head["suffixes"]), facts, head["damage"])
        return index if _sound(index, stamp[1]) else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def load_arrays(place: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that NumPy wrote; {} if there is none, or whatever else is there."""
    try:
        if not place.is_file():
            return {}
        data = read_small(place, KEPT_BYTES)
        with ONE_AT_A_TIME, np.load(io.BytesIO(data)) as file:
            if sum(part.file_size for part in file.zip.infolist()) > len(data):
                return {}  # compressed, which ours are not: a few bytes could fill the memory
            return {name: file[name] for name in file.files}
    except Exception as error:  # zip, NumPy and `ast` have many ways to say that a file is damaged
        log.debug("%s is not ours: %s", place, error)
        return {}


def _sound(index: TarIndex, length: int) -> bool:
    """Whether an index can be that of a tar of so many bytes."""
    keys, members, facts = index.keys, index.members, index.facts
    words = (*index.suffixes, *facts.names, *facts.texts, index.damage)
    if not all(isinstance(word, str) for word in words) or keys.dtype.kind != "S":
        return False
    if not all(isinstance(count, int) for count in facts.texts.values()):
        return False
    shapes = {"sizes": (len(keys), 2), "numbers": (len(keys), len(facts.names)), "members": (len(members), 4)}
    kinds = {"sizes": np.int32, "numbers": np.float64, "members": np.int64}
    for name, array in {"sizes": facts.sizes, "numbers": facts.numbers, "members": members}.items():
        if array.shape != shapes[name] or array.dtype != kinds[name]:
            return False
    sample, suffix, offset, size = members.T
    ranges = ((sample, len(keys)), (suffix, len(index.suffixes)), (size, length + 1), (offset, length + 1))
    inside = all(((0 <= values) & (values < end)).all() for values, end in ranges)
    return bool(inside and (np.diff(sample) >= 0).all() and (offset + size <= length).all())


def scan(path: Path) -> TarIndex:
    """The index of a tar, from one walk over its headers and json members.

    Raises: as `open_tar`.
    """
    if not path.is_file():
        raise tarfile.ReadError("it is no regular file")
    with open(path, "rb") as file:
        samples, cut = _samples(file)
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
                yield read_at(file, offset, length) if 0 < length <= JSON_BYTES else None

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


def _samples(file: BinaryIO) -> tuple[dict[str, dict[str, tuple[int, int]]], bool]:
    """(offset, size) of the members of every whole sample, by key and suffix; whether the tar is cut."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    entries, cut = walk(file)
    named = [(entry, name) for entry in entries if (name := split_name(entry.name)) is not None]
    for entry, (key, suffix) in named:
        if entry.whole:
            # As tar does on unpacking, a later member replaces an earlier one of its name.
            samples.setdefault(key, {})[suffix] = (entry.offset, entry.size)
    last = named[-1][1][0] if named else None
    if cut and last in samples:  # it is whole when it has all that the first one has
        if not named[-1][0].whole or not samples[next(iter(samples))].keys() <= samples[last].keys():
            del samples[last]
    return samples, cut


class Member:
    """A stretch of an open file, opened as a Path is, so that of a clip little is read but its header."""

    def __init__(self, file: BinaryIO, offset: int, size: int):
        self.place = file, offset, size

    def open(self, mode: str = "rb") -> BinaryIO:
        return io.BufferedReader(Window(*self.place))

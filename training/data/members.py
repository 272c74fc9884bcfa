"""What the files of one sample say: its medium's size, its caption, the numbers of its json."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from univid.files.media import Media

from .decode import media_size
from .samples import BadSample

PREPARED = "safetensors"
EXTENSIONS = {  # by kind; of several media in one sample the first of these is taken
    "image": (
        "jpg", "jpeg", "png", "webp", PREPARED,
        "jpe", "jfif", "bmp", "tif", "tiff", "ppm", "pgm", "avif",
    ),
    "clip": (
        "mp4", "mov", "webm", "mkv", "avi", "gif", PREPARED,
        "m4v", "mpg", "mpeg", "ts", "mts", "m2ts", "vob", "wmv", "asf", "flv", "f4v", "3gp", "3g2", "ogv",
    ),
}  # fmt: skip
MEDIA = frozenset(extension for extensions in EXTENSIONS.values() for extension in extensions)
SIDECARS = frozenset(("txt", "json", "jsonl", "csv", "parquet", "npz", "npy", "tar", "srt", "vtt", "cls"))
CAPTION_BYTES = 2**16  # a tower reads some 77 words of them
JSON_BYTES = 2**24
MEDIUM_BYTES = 2**31  # of what is read into memory whole: a clip in a tar, a prepared sample
KEPT_BYTES = 2**28  # of what we keep about a shard: a picture takes some 80
DEEPEST = 100  # lists and objects of a json within each other
NAMES = 1000  # numbers, and texts, that the jsons of a shard may have names for; a column is kept of each
LONGEST = 200  # characters of such a name
NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
UNKNOWN = (0, 0)
TURNED = (90, -90, 270, -270)  # degrees


def split_name(name: str) -> tuple[str, str] | None:
    """(key, suffix) of a tar's member, parted at the first dot of its last component, as WebDataset does.

    None: no sample's name. The suffix is in lower case.
    """
    parts = NAME.fullmatch(name)
    return (parts[1], parts[2].lower()) if parts else None


def parse_json(data: bytes | None) -> dict[str, Any]:
    """A sample's json; {} without one.

    Raises:
        BadSample: it is not a json object.
    """
    if data is None:
        return {}
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSample("its json does not parse") from error
    if not isinstance(meta, dict):
        raise BadSample("its json is not an object")
    if _deep(meta):
        raise BadSample(f"its json is nested more than {DEEPEST} deep")
    return meta


def _deep(value: Any) -> bool:
    """Whether a value is nested so deep that not everything that works through it can."""
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for held in level for inner in (held.values() if isinstance(held, dict) else held)]
        level = [inner for inner in level if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def read_small(path: Path, most: int) -> bytes:
    """A file of at most `most` bytes.

    Raises:
        BadSample: it is larger. OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(most + 1)
    check_small(path.suffix[1:], len(data), most)
    return data


def check_small(what: str, size: int, most: int) -> None:
    """Refuse a caption or json that is none, before it fills the memory."""
    if size > most:
        raise BadSample(f"its {what} has more than {most:,} bytes")


def json_key(where: str) -> str | None:
    """The key of the json that SourceConfig.caption names as "json:key"; None when it names a member."""
    return where.removeprefix("json:") if where.startswith("json:") else None


def parse_caption(where: str, text: bytes | None, meta: Mapping[str, Any]) -> str:
    """The caption from the member's `text`, or from the json when `where` is "json:key".

    Raises:
        BadSample: there is none, or it is not text.
    """
    key = json_key(where)
    if key is not None:
        caption = meta.get(key)
    else:
        try:
            caption = None if text is None else text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadSample("caption is not UTF-8") from error
    if caption is None:
        raise BadSample("no caption")
    if not isinstance(caption, str):
        raise BadSample("caption is not text")
    if not caption.strip():
        raise BadSample("caption is empty")
    return caption.strip()


def size_in_json(meta: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height) in pixels as img2dataset writes it, or video2dataset with its FFProbeSubsampler."""
    size = _size(meta.get("width"), meta.get("height"))
    if size != UNKNOWN:
        return size
    probed = meta.get("video_metadata")
    streams = probed.get("streams") if isinstance(probed, dict) else None
    for stream in streams if isinstance(streams, list) else ():
        if isinstance(stream, dict) and stream.get("codec_type") == "video":
            width, height = _size(stream.get("width"), stream.get("height"))
            sides = stream.get("side_data_list")
            sides = sides if isinstance(sides, list) else []
            turned = any(isinstance(s, dict) and s.get("rotation") in TURNED for s in sides)
            return (height, width) if turned else (width, height)
    return UNKNOWN


def _size(width: Any, height: Any) -> tuple[int, int]:
    return (int(width), int(height)) if is_side(width) and is_side(height) else UNKNOWN


def is_side(side: Any) -> bool:
    """Whether a value can be a number of pixels."""
    return isinstance(side, int | float) and not isinstance(side, bool) and 1 <= side < 2**31


def measure(media: Media, extension: str) -> tuple[int, int]:
    """(width, height) in pixels as the medium is shown; (0, 0) = unreadable, or a prepared sample."""
    if extension == PREPARED:
        return UNKNOWN
    try:
        return media_size(media)[::-1]
    except BadSample:
        return UNKNOWN


@dataclass(frozen=True)
class Facts:
    """What is known of n samples without looking at their media.

    sizes: int32 `[n 2]`, (width, height) in pixels, 0 = unknown. names, numbers: float64 `[n names]`, the
    numbers of their json, NaN where a sample has none. texts: the keys of their json that hold words, and in
    how many samples.
    """

    sizes: np.ndarray
    names: tuple[str, ...]
    numbers: np.ndarray
    texts: Mapping[str, int]

    def number(self, name: str) -> np.ndarray:
        """One number of every sample: float64 `[n]`."""
        if name not in self.names:
            return np.full(len(self.sizes), np.nan)
        return self.numbers[:, self.names.index(name)]


def collect(
    number: int, jsons: Iterable[bytes | None], size: Callable[[int, dict], tuple[int, int]]
) -> Facts:
    """The facts of `number` samples from their jsons; `size` tells one's (width, height).

    A json that does not parse says nothing here; it makes the sample a bad one when it is read.
    """
    sizes = np.zeros((number, 2), np.int32)
    columns: dict[str, np.ndarray] = {}
    texts: Counter[str] = Counter()
    for sample, data in enumerate(jsons):
        try:
            meta = parse_json(data)
        except BadSample:
            meta = {}
        sizes[sample] = size(sample, meta)
        for key, value in meta.items():
            if len(key) > LONGEST:
                continue
            # not NaN, no endless integer
            if isinstance(value, int | float) and abs(value) <= sys.float_info.max:
                if key not in columns and len(columns) < NAMES:
                    columns[key] = np.full(number, np.nan)
                if key in columns:
                    columns[key][sample] = value
            elif isinstance(value, str) and value.strip() and (key in texts or len(texts) < NAMES):
                texts[key] += 1
    numbers = np.stack(list(columns.values()), axis=1) if columns else np.zeros((number, 0))
    return Facts(sizes, tuple(columns), numbers, dict(texts))

"""What the files of one sample say: its medium's size, its caption, the numbers of its json."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from univid.files.media import Media

from .decode import media_size
from .samples import BadSample

PREPARED = "safetensors"
EXTENSIONS = {  # by kind; of several media in one sample the first of these is taken
    "image": ("jpg", "jpeg", "png", "webp", PREPARED),
    "clip": ("mp4", "mov", "webm", "mkv", "avi", "gif", PREPARED),
}
MEDIA = frozenset(extension for extensions in EXTENSIONS.values() for extension in extensions)
NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
UNKNOWN = (0, 0)


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
    return meta


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
            turns = (
                [s.get("rotation") for s in sides if isinstance(s, dict)] if isinstance(sides, list) else []
            )
            return (height, width) if {90, -90, 270, -270} & set(turns) else (width, height)
    return UNKNOWN


def _size(width: Any, height: Any) -> tuple[int, int]:
    fits = all(isinstance(side, int | float) and 1 <= side < 2**31 for side in (width, height))
    return (int(width), int(height)) if fits else UNKNOWN


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
            if (
                isinstance(value, int | float) and abs(value) <= sys.float_info.max
            ):  # not NaN, no endless integer
                if key not in columns:
                    columns[key] = np.full(number, np.nan)
                columns[key][sample] = value
            elif isinstance(value, str) and value.strip():
                texts[key] += 1
    numbers = np.stack(list(columns.values()), axis=1) if columns else np.zeros((number, 0))
    return Facts(sizes, tuple(columns), numbers, dict(texts))

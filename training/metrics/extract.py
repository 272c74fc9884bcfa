"""Videos become numbers, each once: what a network says of a video is kept under the hash of its content."""

import contextlib
import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from univid.files.hashes import noted_sha256
from univid.files.output import new_file
from univid.messages import shown
from univid.video import fit, from_uint8, to_uint8

from .protocol import Kind, Protocol
from .videos import Video
from .weights import WeightFile, find_weights

VERSION = 1  # of what is kept: another one when an extractor gives other numbers for the same frames
PROPORTION = 0.02  # by which width / height may differ from that of the first video
log = logging.getLogger(__name__)

Features = Callable[[np.ndarray], np.ndarray]
"""Frames uint8 `[t h w 3]` to features `[k d]`, float32: one row for the clip, or one for each frame."""


@dataclass(frozen=True)
class Extractor:
    """A network with its weights, or anything else that makes numbers of frames.

    files: any one of them will do; none = it needs no weights. width: d of its features. about: what it does
    with the frames. load: the file's path and a device to the function.
    """

    name: str
    width: int
    about: str
    load: Callable[[Path | None, torch.device], Features]
    files: tuple[WeightFile, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """An extractor that is ready. sha256: of its weights."""

    extractor: Extractor
    features: Features
    file: WeightFile | None = None
    sha256: str | None = None

    def json(self) -> dict:
        own = {"network": self.extractor.name, "frames": self.extractor.about}
        if self.file is None:
            return own
        return own | {"weights": {"file": self.file.name, "source": self.file.source, "sha256": self.sha256}}


def load(extractor: Extractor, folder: Path | None, device: torch.device) -> Loaded:
    """The extractor with the weights of a folder, tried on a grey clip.

    Raises:
        ValueError: the file is absent or another one; it does not open, or gives no features of its width.
    """
    found = find_weights(extractor.files, folder) if extractor.files else None
    path = found.path if found else None
    try:
        features = extractor.load(path, device)
        given = _run(features, np.full((16, 64, 64, 3), 128, np.uint8))
    except (RuntimeError, TypeError, AttributeError, KeyError, OSError) as error:
        source = f"; take it from {found.file.source}" if found else ""
        raise ValueError(
            f"{shown(path or extractor.name)} is not what {extractor.name} needs "
            f"({shown(str(error).strip().splitlines()[-1:] or error, 80)}){source}."
        ) from error
    if given.ndim != 2 or given.shape[1] != extractor.width or not np.isfinite(given).all():
        raise ValueError(
            f"{shown(path or extractor.name)} gives features {list(given.shape)}, expected [k "
            f"{extractor.width}] finite numbers of {extractor.name}; take another file."
        )
    return Loaded(extractor, features, found and found.file, found and found.sha256)


@dataclass(frozen=True)
class Job:
    """Features of the first `videos` videos that can be used (None = of all), from frames of one kind."""

    loaded: Loaded
    kind: Kind
    videos: int | None


@dataclass
class Extracted:
    """What came of a folder. features: of each video of `used` `[k d]`, by extractor and kind.

    sizes, rates, lengths: how many videos have each, as text. bad: what could not be used, by name.
    """

    used: list[Video] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    features: dict[tuple[str, Kind], list[np.ndarray]] = field(default_factory=dict)
    sizes: Counter[str] = field(default_factory=Counter)
    rates: Counter[str] = field(default_factory=Counter)
    lengths: Counter[str] = field(default_factory=Counter)
    bad: dict[str, str] = field(default_factory=dict)

    def json(self) -> dict:
        counts = {name: dict(getattr(self, name).most_common()) for name in ("sizes", "rates", "lengths")}
        content = hashlib.sha256("".join(sorted(self.hashes)).encode()).hexdigest()
        return {"used": len(self.used), "content": content, **counts, "bad": self.bad}


def extract(
    videos: Sequence[Video], jobs: Iterable[Job], protocol: Protocol, cache: Path | None, bad_share: float
) -> Extracted:
    """The features that the jobs ask for, of videos in the protocol's order.

    cache: folder of what was extracted before; None = all is made again. bad_share: of the videos looked at
    may be unusable; they are left out and listed.

    Raises:
        ValueError: more are unusable.
    """
    jobs = list(jobs)
    result = Extracted(features={(job.loaded.extractor.name, job.kind): [] for job in jobs})
    limits = [job.videos for job in jobs]
    most = len(videos) if None in limits else min(len(videos), max(limits, default=0))
    order = np.random.default_rng(protocol.seed).permutation(len(videos))
    with tqdm(total=most, desc="videos", delay=3) as bar:
        for place in order:
            if len(result.used) == most:
                break
            video, number = videos[place], len(result.used)
            wanted = [job for job in jobs if job.videos is None or number < job.videos]
            try:
                one = _extract_one(video, wanted, protocol, cache)
            except ValueError as error:
                result.bad[video.name] = str(error)
                log.warning("%s is left out: %s", shown(video.name), error)
                if len(result.bad) > bad_share * most:
                    raise ValueError(
                        f"{len(result.bad)} of {number + len(result.bad)} videos cannot be used, more than "
                        f"{bad_share:.1%} of {most}, the last: {shown(video.name)}: {error}"
                    ) from error
                continue
            for job, features in zip(wanted, one.features, strict=True):
                result.features[job.loaded.extractor.name, job.kind].append(features)
            _count(result, video, one)
            bar.update()
    return result


@dataclass(frozen=True)
class _One:
    """One video: its features by job, what it is, and the sha256 of its content."""

    features: list[np.ndarray]
    facts: np.ndarray  # frames, height, width, fps
    sha256: str


def _count(result: Extracted, video: Video, one: _One) -> None:
    frames, height, width, fps = one.facts
    result.used.append(video)
    result.hashes.append(one.sha256)
    result.sizes[f"{int(width)} x {int(height)}"] += 1
    result.rates["unknown" if math.isnan(fps) else f"{fps:.4g}"] += 1
    result.lengths[str(int(frames))] += 1


def _extract_one(video: Video, jobs: list[Job], protocol: Protocol, cache: Path | None) -> _One:
    sha256 = noted_sha256(video.path)
    places = [_place(cache, video, sha256, job, protocol) for job in jobs]
    kept = [_read(place, job.loaded.extractor.width) for place, job in zip(places, jobs, strict=True)]
    if all(entry is not None for entry in kept) and kept:
        return _One([features for features, _ in kept], kept[0][1], sha256)
    frames, fps = video.read()
    facts = np.array([*frames.shape[:3], fps], np.float64)
    features = []
    for job, place, entry in zip(jobs, places, kept, strict=True):
        if entry is None:
            chosen = frames[protocol.choose(job.kind, len(frames), fps, sha256)]
            made = _run(job.loaded.features, _sized(chosen, protocol.size))
            if not np.isfinite(made).all():
                raise ValueError(f"{job.loaded.extractor.name} gives numbers that are not finite for it.")
            _write(place, made, facts)
            entry = made, facts
        features.append(entry[0])
    return _One(features, facts, sha256)


@torch.inference_mode()
def _run(features: Features, frames: np.ndarray) -> np.ndarray:
    """Features without the shortened numbers that some devices multiply with."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return features(frames).astype(np.float32)


def _sized(frames: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    if size is None or frames.shape[1:3] == size:
        return frames
    return to_uint8(fit(from_uint8(frames), *size))


def _place(cache: Path | None, video: Video, sha256: str, job: Job, protocol: Protocol) -> Path | None:
    """Where the features of a video are kept."""
    if cache is None:
        return None
    rate = None if math.isnan(video.fps) else video.fps
    made = [VERSION, job.loaded.extractor.name, job.loaded.extractor.about, job.loaded.sha256]
    key = json.dumps([*made, sha256, rate, protocol.frames_of(job.kind)])
    name = hashlib.sha256(key.encode()).hexdigest()
    return cache / name[:2] / f"{name}.npz"


def _read(place: Path | None, width: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Features and facts; None = nothing is kept there, or it is damaged."""
    if place is None or not place.is_file():
        return None
    with contextlib.suppress(Exception):  # of zip, of numpy: whatever a damaged file does
        with np.load(place, allow_pickle=False) as kept:
            features, facts = kept["features"], kept["facts"]
        if features.dtype == np.float32 and features.shape[1:] == (width,) and facts.shape == (4,):
            return features, facts
    return None


def _write(place: Path | None, features: np.ndarray, facts: np.ndarray) -> None:
    if place is not None:
        with new_file(place) as temporary, open(temporary, "wb") as file:
            np.savez(file, features=features, facts=facts)


def sizes(videos: Sequence[Video]) -> Iterator[tuple[int, int]]:
    """(height, width) of the videos that can be read."""
    for video in videos:
        with contextlib.suppress(ValueError):
            yield video.read()[0].shape[1:3]


def check_proportions(real: Sequence[Video], generated: Sequence[Video]) -> None:
    """Refuse, before any work is done, real and generated videos that a network would squash differently.

    Raises:
        ValueError: the first of them have different proportions.
    """
    first = [next(sizes(videos), None) for videos in (real, generated)]
    if None in first:
        return  # what is wrong with them is said when they are all looked at
    (h, w), (height, width) = first
    if abs(w * height / (h * width) - 1) > PROPORTION:
        raise ValueError(
            f"real videos are {w} x {h} and generated ones {width} x {height}, and a network would squash "
            "them differently; name --size HEIGHT WIDTH, to which both are cropped."
        )

"""Training data as it lies on disks: which shards there are, which samples count, and in which bucket."""

import glob
import hashlib
import json
import logging
import os
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR

import numpy as np
from tqdm import tqdm

from training import distributed
from univid.files.hashes import cache_folder
from univid.messages import shown

from .config import SourceConfig
from .folders import FolderIndex, list_files, open_folder
from .members import EXTENSIONS, json_key
from .patterns import expand
from .samples import BadSample, Bucket, Raw
from .tars import VERSION, TarIndex, load_arrays, open_tar, pack, save_first

NOUNS = {"image": "picture", "clip": "clip"}
THREADS = 8  # that wait for disks
SHOWN = 6  # suffixes that a message names
HELD = 96  # shards whose index is kept at hand, about 1 MB each: pools of 16 shards in several buckets
Index = TarIndex | FolderIndex
log = logging.getLogger(__name__)


def open_source(
    config: SourceConfig, kind: str, buckets: Sequence[Bucket], *, cache: Path | None = None
) -> "Shards":
    """The pictures (kind "image") or clips ("clip") in the folders and tars that `config` names.

    Tars that nobody has opened before are indexed, the processes of a run sharing the work; so call it in all
    of them at once. One that cannot be read is logged and holds no samples.

    Args:
        buckets: (height, width) in pixels. A sample of unknown size is in the first.
        cache: a folder for indices of read-only folders; None = below the user's own cache folder.

    Raises:
        ValueError: nothing is there, nothing has a caption, nothing passes the thresholds, a threshold is on
            a number that no sample has, or a metadata.jsonl is wrong.
    """
    return Shards(config, kind, tuple(buckets), find_shards(config.paths, kind), cache or cache_folder())


def find_shards(patterns: Sequence[str], kind: str) -> list[Path]:
    """The tars and folders that patterns stand for, in their order, by name within each pattern; each once.

    A folder stands for the tars in it and, as one shard more, for the pictures or clips.

    Raises:
        ValueError: a pattern stands for nothing, or for a file of another kind.
    """
    shards: dict[Path, None] = {}
    for pattern in patterns:
        for path in _expand(pattern):
            if path.is_dir():
                files = list_files(path)
                tars = [path / file for file in files if _is_tar(file)]
                shards |= dict.fromkeys(tars)
                media = tuple(f".{extension}" for extension in EXTENSIONS[kind])
                if not tars or any(file.lower().endswith(media) for file in files):
                    shards[path] = None
            else:
                shards[path] = None
    if not shards:
        raise ValueError(f"expected folders or tars of {NOUNS[kind]}s, got no paths; set data.{kind}s.paths.")
    return list(shards)


def _expand(pattern: str) -> list[Path]:
    whole = os.path.expanduser(pattern)
    if os.path.exists(whole):
        if not os.path.isdir(whole) and not (os.path.isfile(whole) and _is_tar(whole)):
            raise ValueError(
                f"expected a folder or a .tar, uncompressed, got {shown(pattern)!r}; name one of these."
            )
        return [Path(whole)]
    found, missing = [], []
    for name in expand(whole):
        if "*" in name:  # the only wildcard: names with ? and [ stand for themselves
            paths = sorted(glob.glob(glob.escape(name).replace("[*]", "*"), recursive=True))
            found += [path for path in paths if _is_tar(path) or os.path.isdir(path)]
        else:
            (found if os.path.exists(name) else missing).append(name)
    if not found:
        raise ValueError(
            f"expected a folder or tars at {shown(pattern)!r}, got nothing there; correct the path."
        )
    if missing:
        log.warning(
            "%d files of %s are not there, the first is %s", len(missing), shown(pattern), shown(missing[0])
        )
    return [Path(path) for path in found]


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar")


@dataclass
class Tally:
    """What a shard holds, or several do. counts: int64 `[buckets]`, samples that pass the thresholds."""

    counts: np.ndarray
    media: int = 0
    captions: int = 0
    found: Counter[str] = field(default_factory=Counter)  # files or members by suffix
    numbers: Counter[str] = field(default_factory=Counter)  # shards by the names of numbers in their json
    texts: Counter[str] = field(default_factory=Counter)  # samples by the names of words in their json
    problem: str = ""
    lasting: bool = True  # whether the shard stays so as long as nobody writes it

    def add(self, other: "Tally") -> None:
        self.media += other.media
        self.captions += other.captions
        self.found += other.found
        self.numbers += other.numbers
        self.texts += other.texts
        self.problem = self.problem or other.problem
        self.lasting &= other.lasting


class Shards:
    """A source (training.data.samples.Source). Of its shards only the counts are always in memory.

    It can be pickled, and used in several processes; each loads the indices of the shards that it reads.
    """

    def __init__(
        self, config: SourceConfig, kind: str, buckets: tuple[Bucket, ...], paths: list[Path], cache: Path
    ):
        self.config, self.kind, self.buckets, self.paths, self.cache = config, kind, buckets, paths, cache
        named = json_key(config.caption) is None
        self.caption = config.caption.lower() if named else config.caption  # suffixes are in small letters
        self._folders: dict[int, FolderIndex] = {}
        self._problems: dict[int, str] = {}
        self._held: OrderedDict[int, tuple[Index, list[np.ndarray]]] = OrderedDict()
        self._counts = np.zeros((len(buckets), len(paths)), np.int64)
        kept = self._kept()
        if kept is None or not self._load(kept):
            total = self._count()
            self._check(total)
            if kept is not None and total.lasting:
                save_first(
                    (kept,), lambda file: np.savez(file, counts=self._counts, problems=pack(self._problems))
                )
        for shard, problem in self._problems.items():
            log.warning("%s: %s", shown(self.paths[shard]), problem)

    def __getstate__(self):
        return self.__dict__ | {"_held": OrderedDict()}

    def counts(self) -> np.ndarray:
        """Samples of each bucket in each shard, int64 `[buckets shards]`."""
        return self._counts

    def names(self) -> list:
        """What the shards are called, and the files of folders, wherever all of it lies: JSON values."""
        return [
            self._folders[shard].places() if shard in self._folders else "" if path.is_dir() else path.name
            for shard, path in enumerate(self.paths)
        ]

    def read(self, bucket: int, shard: int, index: int) -> Raw:
        """Sample number `index` of a bucket of a shard.

        Raises:
            BadSample: it cannot be read, or has no caption, or the shard has changed since it was counted.
        """
        if not 0 <= index < self._counts[bucket, shard]:
            raise IndexError(
                f"sample {index} of {self._counts[bucket, shard]} in bucket {bucket} of shard {shard}"
            )
        key = f"{self.paths[shard].name}:sample {index} of bucket {bucket}"  # each is a bad sample of its own
        try:
            source, samples = self._open(shard)
        except (OSError, tarfile.TarError) as error:
            raise BadSample(f"{key}: {error}") from error
        if [len(numbers) for numbers in samples] != self._counts[:, shard].tolist():
            raise BadSample(f"{key}: the shard was changed while it was in use")
        return source.read(int(samples[bucket][index]), self.kind, self.caption)

    def _open(self, shard: int) -> tuple[Index, list[np.ndarray]]:
        """A shard's index, and for each bucket the numbers of its samples there."""
        if shard not in self._held:
            source = self._index(shard)
            self._held[shard] = source, self._select(source)
            if len(self._held) > HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(shard)
        return self._held[shard]

    def _index(self, shard: int) -> Index:
        path = self.paths[shard]
        if shard in self._folders:
            return self._folders[shard]
        if not path.is_dir():
            return open_tar(path, self.cache)
        self._folders[shard] = open_folder(path, self.kind, self.cache)
        return self._folders[shard]

    def _select(self, source: Index) -> list[np.ndarray]:
        taken, facts = source.media(self.kind), source.facts
        for name, least in self.config.at_least.items():
            taken = taken & (facts.number(name) >= least)  # not where it is NaN: there is no such number
        for name, most in self.config.at_most.items():
            taken = taken & (facts.number(name) <= most)
        nearest = nearest_buckets(facts.sizes, self.buckets)
        return [np.flatnonzero(taken & (nearest == bucket)) for bucket in range(len(self.buckets))]

    def _kept(self) -> Path | None:
        """The file for the counts of these very tars; None when there is a folder, which changes unseen."""
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                stats = list(pool.map(os.stat, self.paths))
        except OSError:
            return None
        if any(S_ISDIR(stat.st_mode) for stat in stats):
            return None
        config = [self.caption, dict(self.config.at_least), dict(self.config.at_most)]
        tars = [
            [str(path.absolute()), stat.st_size, stat.st_mtime_ns]
            for path, stat in zip(self.paths, stats, strict=True)
        ]
        what = json.dumps([VERSION, config, self.kind, self.buckets, tars])
        return self.cache / f"counts_{hashlib.sha256(what.encode()).hexdigest()[:24]}.npz"

    def _load(self, kept: Path) -> bool:
        arrays = load_arrays(kept)
        counts, problems = arrays.get("counts"), arrays.get("problems")
        if counts is None or problems is None or counts.shape != self._counts.shape:
            return False
        if counts.dtype != np.int64 or (counts < 0).any() or not counts.any():
            return False
        try:
            said = {int(shard): str(text) for shard, text in json.loads(problems.tobytes()).items()}
        except (ValueError, AttributeError, RecursionError):
            return False
        if not all(0 <= shard < len(self.paths) for shard in said):
            return False
        self._counts, self._problems = counts, said
        return True

    def _count(self) -> Tally:
        """Count all shards; what they hold together."""
        number, total = len(self.paths), Tally(self._counts[:, 0])
        # Every process begins elsewhere, and finds what is left already indexed by the others.
        first = distributed.rank() * number // distributed.processes()
        order = [*range(first, number), *range(first)]
        pool = ThreadPoolExecutor(THREADS)
        try:
            tallies = pool.map(self._tally, order)
            quiet = distributed.rank() > 0
            for shard, tally in zip(
                order, tqdm(tallies, "opening shards", number, delay=3, disable=quiet), strict=True
            ):
                self._counts[:, shard] = tally.counts
                total.add(tally)
                if tally.problem:
                    self._problems[shard] = tally.problem
        finally:
            pool.shutdown(cancel_futures=True)  # or Ctrl-C would wait for all the shards
        return total

    def _tally(self, shard: int) -> Tally:
        try:
            source = self._index(shard)
        except (OSError, tarfile.TarError) as error:
            none = np.zeros(len(self.buckets), np.int64)
            reason = error.strerror if isinstance(error, OSError) else None
            problem = f"cannot be read: {reason or error}"
            return Tally(none, problem=problem, lasting=not isinstance(error, OSError))
        facts, damage = source.facts, source.damage if isinstance(source, TarIndex) else ""
        return Tally(
            np.array([len(samples) for samples in self._select(source)]),
            int(source.media(self.kind).sum()),
            source.captions(self.caption),
            source.found(),
            Counter(facts.names),
            Counter(facts.texts),
            "; ".join(filter(None, (damage, _left_out(source.unknown(self.caption))))),
        )

    def _check(self, total: Tally) -> None:
        noun, place = NOUNS[self.kind], f"data.{self.kind}s"
        where = shown(", ".join(self.config.paths), 80)
        if not total.media:
            counts = ", ".join(
                f"{count} .{shown(suffix, 12)}" for suffix, count in total.found.most_common(6)
            )
            raise ValueError(
                f"expected {noun}s (.{', .'.join(EXTENSIONS[self.kind][:SHOWN])} ...) in {where}, "
                f"got {counts or 'nothing'} and no {noun}"
                f"{f' ({total.problem})' if total.problem else ''}; correct {place}.paths."
            )
        if not total.captions:
            key = json_key(self.caption)
            wanted = (
                f'"{shown(key, 40)}" in its json' if key else f"a .{shown(self.caption, 40)} of the same name"
            )
            held = f" The json has words in: {_listed(total.texts)}." if total.texts else ""
            raise ValueError(
                f"expected a caption for every {noun} in {where}, {wanted}, "
                f"got {total.media} {noun}s and no caption; add them, or set {place}.caption.{held}"
            )
        for name in (*self.config.at_least, *self.config.at_most):
            if name not in total.numbers:
                raise ValueError(
                    f"expected {shown(name, 40)!r}, on which {place} sets a threshold, in the json of the "
                    f"samples in {where}, got {_listed(total.numbers) or 'no numbers at all'}; correct the "
                    "threshold's name."
                )
        if not self._counts.any():
            thresholds = shown(f"at_least {dict(self.config.at_least)}, at_most {dict(self.config.at_most)}")
            raise ValueError(
                f"expected some of the {total.media} {noun}s in {where} to pass the thresholds, got none; "
                f"loosen {place}: {thresholds}."
            )


def _listed(names: Counter[str]) -> str:
    return shown(", ".join(sorted(names)), 80)


def _left_out(unknown: Counter[str]) -> str:
    """What has a caption and is of no known kind."""
    most = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
    counts = ", ".join(f"{count} .{shown(suffix, 12)}" for suffix, count in most)
    return f"passed over {counts}, which have captions and a suffix of no known kind" if counts else ""


def nearest_buckets(sizes: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
    """For each (width, height) of `[n 2]` the bucket of the nearest aspect ratio, as factors go: int64 `[n]`.

    Unknown sizes, zeros, are in bucket 0; of equally near ones the first is taken.
    """
    known = (sizes > 0).all(axis=1)
    width, height = np.where(known[:, None], sizes, 1).astype(np.float64).T
    ratios = np.log([bucket_width / bucket_height for bucket_height, bucket_width in buckets])
    distances = np.abs(np.log(width / height)[:, None] - ratios)  # [n buckets]
    return np.where(known, distances.argmin(axis=1), 0)

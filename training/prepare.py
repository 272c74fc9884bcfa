"""Raw shards to shards of latents and tokens, so that training needs no decoder, autoencoder or towers.

One tar for each raw one, with the same samples, by bucket, in their order; `data.prepared` says what a sample
holds. Their folders are paths of a `SourceConfig` as raw ones are. A clip too short for all frames has fewer,
and its json says so: at_least={"frames": 24} leaves it out.
A tar appears under its name only when it is complete; a run that was cut goes on with those that are missing.
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from univid.dtypes import DTYPES, dtype_of
from univid.messages import shown

from . import distributed
from .config import endless_fields
from .data.config import DataConfig, DegradationConfig, SourceConfig
from .data.degradations import poor_copy
from .data.encode import Decoded, Encoder, Window, decode_sample
from .data.manifest import PARTS, Manifest, digests
from .data.output import claimed, list_bad, read_record, records, writing
from .data.prepared import ShardWriter
from .data.samples import BadSample, Bucket
from .data.sources import Shards, open_source
from .stages.base import Encoders, load_base

KINDS = {"images": "image", "clips": "clip"}  # fields of PrepareConfig and folders of `out`: kinds of sources
ENOUGH = 20  # bad samples, before their share may stop a run that is not over
LISTED = 3  # bad samples that an error names
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkConfig:
    """How the work is done: what is stored of a sample stays the same, up to rounding."""

    device: str = "cpu"
    precision: str = "float32"  # of the encoders' weights and arithmetic
    gather: int = 24  # frames, before the encoders begin
    workers: int = 4  # threads that decode, on every rank
    folder_shard: int = 500  # samples of a shard, where the source is a folder
    max_bad_share: float = 0.05  # of samples that cannot be used; more stop the run

    def __post_init__(self):
        if self.precision not in DTYPES.values():
            raise ValueError(f"precision must be one of {tuple(DTYPES.values())}, got {self.precision!r}.")
        if min(self.gather, self.workers, self.folder_shard) < 1:
            raise ValueError(
                f"gather, workers and folder_shard must be at least 1, "
                f"got {self.gather}, {self.workers} and {self.folder_shard}."
            )


@dataclass(frozen=True)
class PrepareConfig:
    """What is turned into latents and tokens, and where they go."""

    base: str  # the checkpoint whose autoencoder and towers encode; "built-in" is the one that ships
    out: Path
    images: SourceConfig | None = None
    clips: SourceConfig | None = None
    buckets: tuple[Bucket, ...] = DataConfig.buckets
    frames: int = 24  # the most of a clip; shorter clips give what they have
    min_frames: int = 8
    fps: float = 8.0
    references: int = 4  # frames of a clip, spread evenly from the first on, whose image tokens are stored
    degradations: DegradationConfig | None = None  # of a poor copy of each sample; none = no such copy
    dtype: str = "float16"  # of what is stored
    work: WorkConfig = field(default_factory=WorkConfig)

    def __post_init__(self):
        DataConfig(  # which checks them
            buckets=self.buckets, min_frames=self.min_frames, max_frames=self.frames, fps=self.fps,
            max_bad_share=self.work.max_bad_share,
        )  # fmt: skip
        if self.images is None and self.clips is None:
            raise ValueError("expected images or clips to prepare, got neither; name a folder or tar shards.")
        if self.dtype not in DTYPES.values():
            raise ValueError(f"dtype must be one of {tuple(DTYPES.values())}, got {self.dtype!r}.")
        if not 1 <= self.references <= self.frames:
            raise ValueError(
                f"references must be between 1 and the {self.frames} frames, got {self.references}."
            )
        if bad := sorted(endless_fields(asdict(self))):
            raise ValueError(f"expected finite numbers, got others for {shown(', '.join(bad))}; change them.")

    @property
    def window(self) -> Window:
        return Window(self.frames, self.min_frames, self.fps, self.references)

    def settings(self) -> dict:
        """All that shapes the data, as JSON values."""
        free = ("base", "out", "work")
        shaping = {name: value for name, value in asdict(self).items() if name not in free}
        if self.degradations is None:  # then data of earlier versions is the same
            del shaping["degradations"]
        for name in KINDS:
            if shaping[name] is not None:
                del shaping[name]["paths"]  # data may be moved
        shaping |= {"precision": self.work.precision, "folder_shard": self.work.folder_shard}
        return json.loads(json.dumps(shaping))


@dataclass(frozen=True)
class Summary:
    """What lies in the folder by now, of all runs and processes.

    bad: samples that could not be used. short: clips with fewer frames than asked for. bytes: of all tars.
    """

    shards: int
    samples: int
    bad: int
    short: int
    bytes: int


def prepare(config: PrepareConfig, *, progress: bool = True) -> Summary:
    """Encode what is not encoded yet. Under torchrun every process takes its share of the shards.

    Raises:
        ValueError: the folder holds data of other settings, another run is at work there, the disk is full,
            more samples are bad than `work.max_bad_share` allows, or base or sources cannot be used.
    """
    sources: dict[str, Shards] = {
        name: open_source(getattr(config, name), kind, config.buckets)
        for name, kind in KINDS.items()
        if getattr(config, name) is not None
    }
    for source in sources.values():
        if within := [path for path in source.paths if config.out.resolve().is_relative_to(path.resolve())]:
            raise ValueError(
                f"{config.out} lies in {within[0]}, which is read; take a folder outside of the raw data."
            )
    model = load_base(config.base, seed=0)
    if lacking := [part for part in PARTS if getattr(model, part) is None]:
        raise ValueError(f"{config.base} lacks {', '.join(lacking)}; take a checkpoint that holds all parts.")
    jobs = [job for name, source in sources.items() for job in _jobs(config.out / name, source, config.work)]
    manifest = Manifest(
        settings=config.settings(),
        weights=digests(model),
        widths={
            "latents": model.config.vae.latent_channels,
            "text": model.config.text.width,
            "image": model.config.vision.width,
        },
        shards={name: _names(source) for name, source in sources.items()},
    )
    earlier = {name: _names(source, folders=True) for name, source in sources.items()}
    with claimed(config.out, manifest, earlier):
        encoders = Encoders(model, dtype_of(config.work.precision))
        encoders.device = torch.device(config.work.device)
        encoder = Encoder(encoders, dtype_of(config.dtype))
        mine = [job for job in jobs[distributed.rank() :: distributed.processes()] if not job.finished()]
        _Run(config, encoder).work(mine, progress and distributed.rank() == 0)
    return _conclude(config, len(jobs))


@dataclass(frozen=True)
class Job:
    """One tar to write: samples `begin` .. `end` - 1 of a raw shard, counted through its buckets in turn."""

    tar: Path
    source: Shards
    shard: int
    begin: int
    end: int

    @property
    def record(self) -> Path:
        """The file beside the tar, written before it: checksum, number of samples, and which were bad."""
        return self.tar.with_suffix(".json")

    @property
    def clips(self) -> bool:
        return self.source.kind == "clip"

    def finished(self) -> bool:
        record = read_record(self.record)
        return record is not None and (self.tar.exists() or not record["samples"])

    def samples(self) -> Iterator[tuple[int, int]]:
        """(bucket, index) of each sample, by bucket: those of one size follow each other."""
        counts = self.source.counts()[:, self.shard].tolist()
        every = ((bucket, index) for bucket, count in enumerate(counts) for index in range(count))
        return islice(every, self.begin, self.end)


def _jobs(folder: Path, source: Shards, work: WorkConfig) -> Iterator[Job]:
    """A tar for each raw tar, several for a large folder; their names sort as the raw shards do."""
    for shard, count in enumerate(source.counts().sum(axis=0).tolist()):
        if not source.paths[shard].is_dir():
            if count:  # of one that cannot be read today nothing is written: it may be mended
                yield Job(folder / f"{shard:05d}.tar", source, shard, 0, count)
            continue
        for part, begin in enumerate(range(0, count, work.folder_shard)):
            end = min(begin + work.folder_shard, count)
            yield Job(folder / f"{shard:05d}_{part:05d}.tar", source, shard, begin, end)


def _names(source: Shards, folders: bool = False) -> str:
    """A digest of what decides which sample goes where: the tars' names, and what folders hold.

    folders: also by the folders' own names, as it was before they could be moved.
    """
    counts = source.counts()
    shards = [
        (p.name if folders or not p.is_dir() else "", counts[:, i].tolist() if p.is_dir() else None)
        for i, p in enumerate(source.paths)
    ]
    return hashlib.sha256(json.dumps(shards).encode()).hexdigest()


class _Run:
    """One process's share of the work. seen, bad: samples of this run so far."""

    def __init__(self, config: PrepareConfig, encoder: Encoder):
        self.config, self.encoder = config, encoder
        self.seen = self.bad = 0

    def work(self, jobs: list[Job], progress: bool) -> None:
        """Write the tars of `jobs`."""
        pool = ThreadPoolExecutor(self.config.work.workers)
        total = sum(job.end - job.begin for job in jobs)
        try:
            with tqdm(total=total, desc="prepare", unit=" samples", disable=not progress) as bar:
                for job in jobs:
                    bar.set_postfix_str(f"{job.source.paths[job.shard].name}, {self.bad} bad")
                    self._write(job, pool, bar)
        finally:
            pool.shutdown(cancel_futures=True)

    def _write(self, job: Job, pool: ThreadPoolExecutor, bar: tqdm) -> None:
        bad: list[str] = []
        samples = short = 0
        with writing(job.tar) as path:
            with open(path, "wb") as file:
                writer = ShardWriter(file, job.source.paths[job.shard].name)
                for group in _groups(self._decoded(job, pool, bar, bad), self.config.work.gather):
                    for decoded, tensors in zip(group, self.encoder(group), strict=True):
                        if not all(tensor.isfinite().all() for tensor in tensors.values()):
                            self._pass_over(f"{decoded.raw.key}: not finite as {self.config.dtype}", bad)
                            continue
                        frames, height, width, _ = decoded.pixels.shape
                        facts = {"width": width, "height": height, "frames": frames}
                        if job.clips:
                            facts["fps"] = self.config.fps
                            short += frames < self.config.frames
                        writer.add(decoded.raw, tensors, facts)
                        samples += 1
                digest = writer.close()
            record = {"sha256": digest, "bytes": path.stat().st_size, "samples": samples, "short": short}
            with writing(job.record) as other:
                text = json.dumps(record | {"bad": bad}, indent=1) + "\n"
                other.write_text(text, encoding="utf-8")
        if not samples:
            job.tar.unlink()

    def _decoded(self, job: Job, pool: ThreadPoolExecutor, bar: tqdm, bad: list[str]) -> Iterator[Decoded]:
        """The good samples of a job; the reasons of the others go to `bad`."""

        def decode(place: tuple[int, int]) -> Decoded | BadSample:
            bucket, index = place
            try:
                raw = job.source.read(bucket, job.shard, index)
            except BadSample as error:
                return error  # whose text begins with the key
            try:
                window = self.config.window if job.clips else None
                return self._degraded(decode_sample(raw, self.config.buckets[bucket], window), job, place)
            except BadSample as error:
                return BadSample(f"{raw.key}: {error}")

        for decoded in _ahead(pool, decode, job.samples(), 2 * self.config.work.workers):
            self.seen += 1
            bar.update()
            if isinstance(decoded, BadSample):
                self._pass_over(str(decoded), bad)
            else:
                yield decoded

    def _degraded(self, decoded: Decoded, job: Job, place: tuple[int, int]) -> Decoded:
        """With its poor copy, drawn by the seed and by where the sample stands in the raw data."""
        if self.config.degradations is None:
            return decoded
        bucket, index = place
        where = f"{job.source.kind} {job.shard} {bucket}"
        return replace(decoded, degraded=poor_copy(decoded.pixels, self.config.degradations, where, index))

    def _pass_over(self, reason: str, bad: list[str]) -> None:
        bad.append(reason)
        self.bad += 1
        if self.bad >= ENOUGH and self.bad > self.config.work.max_bad_share * self.seen:
            path = list_bad(self.config.out, [*records(self.config.out).values(), {"bad": bad}])
            raise _too_many(self.bad, self.seen, path, bad)


def _ahead(pool: ThreadPoolExecutor, function: Callable, items: Iterable, number: int) -> Iterator:
    """Results of `function`, in order, computed up to `number` items ahead."""
    pending = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > number:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _groups(samples: Iterable[Decoded], frames: int) -> Iterator[list[Decoded]]:
    """Consecutive samples of one size, until they have about that many frames together."""
    group: list[Decoded] = []
    for sample in samples:
        size = sample.pixels.shape[1:]
        if group and (size != group[0].pixels.shape[1:] or sum(len(s.pixels) for s in group) >= frames):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def _too_many(bad: int, seen: int, path: Path, reasons: list[str]) -> ValueError:
    last = "; ".join(shown(reason, 50) for reason in reasons[-LISTED:])
    return ValueError(
        f"{bad} of {seen} samples cannot be used, more than work.max_bad_share allows; raise it to go on, or "
        f"mend them and prepare into another folder; {shown(path, 60)} names all, the last are: {last}"
    )


def _conclude(config: PrepareConfig, jobs: int) -> Summary:
    """Sum up what lies in the folder; the process that finds it complete judges it."""
    held = records(config.out).values()
    reasons = [reason for record in held for reason in record["bad"]]
    samples, short, size = (sum(record[key] for record in held) for key in ("samples", "short", "bytes"))
    if reasons:
        path = list_bad(config.out, held)
        seen = samples + len(reasons)
        if len(held) == jobs and len(reasons) > config.work.max_bad_share * seen:
            raise _too_many(len(reasons), seen, path, reasons)
    if short:
        log.warning(
            "%d clips have fewer than %d frames; leave them out of training by data.clips.at_least = "
            '{"frames": %d}, or lower data.max_frames',
            *(short, config.frames, config.frames),
        )
    return Summary(len(held), samples, len(reasons), short, size)

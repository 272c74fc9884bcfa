"""Scores a folder of videos: what can be computed is, and what cannot says what it lacks."""

import json
import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from univid.files.hashes import sha256
from univid.files.output import check_file, new_file
from univid.messages import shown

from . import table
from .bootstrap import LEVEL
from .extract import Extracted, Job, Loaded, check_proportions, extract, load
from .metric import Evidence, Metric
from .protocol import Protocol
from .real import RealSide, read_real, real_side, write_real
from .registry import METRICS
from .videos import Video, find_videos

PACKAGES = ("torch", "numpy", "av", "pillow", "open_clip_torch")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreConfig:
    """real: folder of videos, or file of statistics. weights: folder. out: JSON. save_real: where the
    statistics of the real videos go. cache: folder of features; None = none are kept. bad_share: of videos
    that may be unusable. resamples: of the bootstrap, 0 = no intervals.

    Raises:
        ValueError: a number out of its range, an unknown metric, or nothing to save.
    """

    folder: Path
    out: Path
    metrics: tuple[str, ...]
    protocol: Protocol
    real: Path | None = None
    weights: Path | None = None
    save_real: Path | None = None
    cache: Path | None = None
    bad_share: float = 0.01
    resamples: int = 100
    device: str = "cpu"

    def __post_init__(self):
        if unknown := [name for name in self.metrics if name not in METRICS]:
            raise ValueError(f"the metrics are {', '.join(METRICS)}; got {shown(', '.join(unknown))}.")
        if not self.metrics:
            raise ValueError(f"name at least one metric of {', '.join(METRICS)}.")
        if not 0 <= self.bad_share <= 1:
            raise ValueError(f"bad_share must be from 0 to 1, got {self.bad_share:g}.")
        if self.resamples < 0:
            raise ValueError(f"resamples must be 0 or more, got {self.resamples}.")
        if self.save_real is not None and (self.real is None or not self.real.is_dir()):
            raise ValueError("--save-real keeps the statistics of real videos; name their folder by --real.")


class Scoring:
    """One run over a folder. missing: why a metric is not computed, by its name."""

    def __init__(self, config: ScoreConfig):
        self.config, self.protocol = config, config.protocol
        self.device = torch.device(config.device)
        self.missing: dict[str, str] = {}
        self.loaded: dict[str, Loaded] = {}
        self.sides: dict[str, RealSide] = {}
        self.about: dict = {}

    def run(self) -> dict:
        """All figures, JSON values.

        Raises:
            ValueError: as `find_videos`, `extract` and `check_proportions`; or no metric can be computed.
        """
        config = self.config
        for path in (config.out, config.save_real):
            if path is not None:
                check_file(path, (config.folder, config.real, config.weights))
        videos, real = find_videos(config.folder), self._find_real()
        metrics = self._prepared(videos, real)
        if real and self.protocol.size is None and any(metric.real for metric in metrics):
            check_proportions(real, videos)
        made = self._extract(videos, metrics, 1)
        described = {"folder": str(config.folder), "found": len(videos), **made.json()}
        if real and (needed := [metric for metric in metrics if metric.real]):
            seen = self._extract(real, needed, 2)
            self.about = {"folder": str(config.real), "found": len(real), **seen.json()}
            self._real_sides(seen, needed)
        figures = {}
        for metric in metrics:
            if metric.name not in self.missing:
                self._try(metric, lambda m: figures.update({m.name: self._figure(m, made)}))
        self._require(figures)
        if config.save_real is not None and self.sides:
            about = {"metrics": {name: self._made_by(METRICS[name]) for name in self.sides}}
            write_real(config.save_real, self.sides, about | {"videos": self.about})
        return {
            "videos": described,
            "real": self.about or None,
            "protocol": self.protocol.json(),
            "metrics": figures,
            "missing": self.missing,
            "intervals": {"level": LEVEL, "resamples": config.resamples},
            "versions": {name: version(name) for name in PACKAGES},
        }

    def _find_real(self) -> list[Video] | None:
        """The real videos; None = there are none, or their statistics alone, which are read."""
        path = self.config.real
        if path is None:
            return None
        if path.is_dir():
            return find_videos(path)
        self.sides, about = read_real(path, self.device)
        self.about = {"statistics": str(path), "sha256": sha256(path), **about["videos"]}
        for name in list(self.sides):
            if name in self.config.metrics:
                self._try(METRICS[name], lambda metric: self._check_statistics(metric, about["metrics"]))
        return None

    def _check_statistics(self, metric: Metric, made_by: dict) -> None:
        """Refuse statistics of another network, other frames or another number of videos."""
        expected, got = self._made_by(metric), made_by.get(metric.name)
        asked, n = metric.count(self.protocol), self.sides[metric.name].n
        if got != expected or asked not in (None, n):
            parts = {**(got or {}), "videos": n}.items()
            wanted = {**expected, "videos": asked if asked is not None else n}
            other = next(((key, value) for key, value in parts if wanted.get(key) != value), ("all", None))
            raise ValueError(
                f"{shown(self.config.real)} is of other real features: its {other[0]} is {shown(other[1])}, "
                f"asked is {shown(wanted.get(other[0]))}; make it anew by --save-real."
            )

    def _made_by(self, metric: Metric) -> dict:
        made_by = self._loaded(metric).json() | {"taken": self.protocol.frames_of(metric.kind)}
        return json.loads(json.dumps(made_by))  # as it comes back from a file

    def _loaded(self, metric: Metric) -> Loaded:
        name = metric.extractor.name
        if name not in self.loaded:
            self.loaded[name] = load(metric.extractor, self.config.weights, self.device)
        return self.loaded[name]

    def _try(self, metric: Metric, step) -> None:
        """Do a step for a metric; what is wrong with it is noted, and the others go on."""
        try:
            step(metric)
        except ValueError as error:
            self.missing[metric.name] = str(error)
            log.warning("%s is not computed: %s", metric.name, error)

    def _prepared(self, videos: list[Video], real: list[Video] | None) -> list[Metric]:
        """The metrics whose weights and videos are there."""

        def prepare(metric: Metric) -> None:
            if metric.real and real is None and metric.name not in self.sides:
                raise ValueError(
                    f"{metric.name} needs real videos; name their folder or statistics by --real."
                )
            asked = metric.count(self.protocol) or 2 * metric.real or 1
            for whose, found in (("", videos), ("real ", real if metric.real else None)):
                if found is not None and len(found) < asked:
                    raise ValueError(_too_few(self.protocol, asked, whose, len(found)))
            if metric.prompts and (mute := sum(video.prompt is None for video in videos)):
                raise ValueError(
                    f"{mute:,} of {len(videos):,} videos have no prompt; name each in a manifest.jsonl "
                    "beside the videos, or in a text of its name."
                )
            self._loaded(metric)

        for name in dict.fromkeys(self.config.metrics):
            if name not in self.missing:
                self._try(METRICS[name], prepare)
        ready = [METRICS[name] for name in dict.fromkeys(self.config.metrics) if name not in self.missing]
        self._require(ready)
        return ready

    def _require(self, found) -> None:
        if not found:
            name, reason = next(iter(self.missing.items()))
            raise ValueError(f"none of the metrics can be computed; {name}: {reason}")

    def _extract(self, videos: list[Video], metrics: list[Metric], times: int) -> Extracted:
        """The features for these metrics of up to `times` the protocol's videos."""
        jobs: dict[tuple, Job] = {}
        for metric in metrics:
            key, count = (metric.extractor.name, metric.kind), metric.count(self.protocol)
            jobs[key] = Job(self._loaded(metric), metric.kind, None if count is None else times * count)
        return extract(videos, jobs.values(), self.protocol, self.config.cache, self.config.bad_share)

    def _real_sides(self, seen: Extracted, metrics: list[Metric]) -> None:
        def side(metric: Metric) -> None:
            features = seen.features[metric.extractor.name, metric.kind]
            self.sides[metric.name] = real_side(features, metric.count(self.protocol), self.device)

        for metric in metrics:
            self._try(metric, side)

    def _figure(self, metric: Metric, made: Extracted) -> dict:
        asked = metric.count(self.protocol)
        features = made.features[metric.extractor.name, metric.kind][:asked]
        if asked is not None and len(features) < asked:
            raise ValueError(_too_few(self.protocol, asked, "", len(features)))
        prompts = [video.prompt for video in made.used[: len(features)]]
        loaded, real = self._loaded(metric), self.sides.get(metric.name)
        evidence = Evidence(
            features, prompts, real, loaded.features, self.protocol, self.config.resamples, self.device
        )
        facts = {"title": metric.title, "better": metric.better}
        return facts | metric.figure(evidence) | self._made_by(metric)


def _too_few(protocol: Protocol, asked: int, whose: str, found: int) -> str:
    return (
        f"the protocol {protocol.name} asks for {asked:,} {whose}videos, and {found:,} can be used; make "
        "more, or name --videos or another protocol."
    )


def score(config: ScoreConfig) -> str:
    """Score a folder and write all figures as JSON; the Markdown table of them.

    Raises:
        ValueError: as `Scoring.run`, or the result cannot be written.
    """
    result = Scoring(config).run()
    with new_file(config.out) as temporary:
        temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return table.markdown(result, Path(config.out))

"""The examples of one process, micro-batch by micro-batch, decoded ahead by other processes."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

from training import distributed
from training.config import Recipe
from training.data.config import DataConfig
from training.data.loader import BadSamples, Request, load
from training.data.manifest import Manifest, digests
from training.data.samples import MODALITIES, Example, PreparedExample, Source
from training.data.sources import open_source
from training.data.stream import KINDS, Stream
from training.folder import NAMES
from training.rng import seed_for
from univid.messages import shown
from univid.model import UniVid


@dataclass(frozen=True)
class Batch:
    """Some of a step's samples of one modality. indices: their places in the step's global batch."""

    modality: str
    step: int
    indices: list[int]
    examples: list[Example] | list[PreparedExample]


def open_sources(data: DataConfig, modalities: list[str]) -> dict[str, Source]:
    """The sources that these modalities are read from, by kind: "image", "clip"."""
    configs = {"image": data.images, "clip": data.clips}
    needed = dict.fromkeys(KINDS[modality] for modality in modalities)
    return {kind: open_source(configs[kind], kind, data.buckets) for kind in needed if configs[kind]}


def check_prepared(data: DataConfig, model: UniVid) -> None:
    """Where data is prepared, compare what it was made with to the model and to the data's config.

    Raises:
        ValueError: made with other encoders, or for another network, other buckets or frame rate.
    """
    weights = None
    for source in (data.images, data.clips):
        for path in source.paths if source else ():
            path = Path(path).expanduser()
            if any((folder / Manifest.NAME).is_file() for folder in (path, *path.absolute().parents[:2])):
                weights = weights or digests(model)
                Manifest.read(path).check(model.config.unet, data, weights)


def evidence_of(sources: Mapping[str, Source]) -> dict[str, str]:
    """Words by which to see that there is the same to read, wherever it lies: see `folder.claimed`.

    A sample's place in the run follows from how many there are in each shard and bucket, in which order.

    Raises:
        ValueError: the processes see other numbers of samples.
    """
    seen = {}
    for kind, source in sorted(sources.items()):
        counts = np.ascontiguousarray(source.counts(), dtype="<i8")
        seen[kind] = f"{counts.sum()} samples ({_digest(counts.tobytes())})"
        seen[f"{kind}{NAMES}"] = f"files ({_digest(json.dumps(source.names()).encode())})"
    if len(others := set(distributed.gathered(json.dumps(seen)))) > 1:
        raise ValueError(
            f"expected the same data in all processes, got {shown(' and '.join(sorted(others)), 200)}; "
            "look at the log for what some of them could not read."
        )
    return seen


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


class Feed:
    """A run's examples. It goes on from step to step; asked for another one, it begins there anew.

    loss_weights: by modality; what does not count is not even decoded. folder: of the run, for its list of
        bad samples. evidence: of what there is to read.
    """

    def __init__(self, recipe: Recipe, data: DataConfig, loss_weights: Mapping[str, float], folder: Path):
        self.data, self.seed, self.engine = data, recipe.seed, recipe.engine
        self.batch = {
            modality: recipe.batch[modality]
            for modality in MODALITIES
            if recipe.batch.get(modality) and loss_weights.get(modality, 1.0)
        }
        self.sources = open_sources(data, list(self.batch))
        self.evidence = evidence_of(self.sources)
        self.stream = Stream(data, recipe.seed, self.batch, self.sources)
        self.bad = BadSamples(folder, self.stream, distributed.rank())
        self.plan = [
            (modality, list(own[start : start + micro]))
            for modality, size in self.batch.items()
            for own in [distributed.share(range(size))]
            for micro in [self.engine.micro_batch.get(modality, len(own))]
            for start in range(0, len(own), micro)
        ]
        self.examples: Iterator[list[Example | PreparedExample]] | None = None
        self.next_step = 0

    def __call__(self, step: int) -> Iterator[Batch]:
        """This process's share of a step: pictures first, clips last, in the engine's micro-batches."""
        if self.examples is None or step != self.next_step:
            self.close()
            self.examples = load(
                self.stream,
                self._requests(step),
                workers=self.data.workers,
                ahead=sum(len(indices) for _, indices in self.plan),
                bad=self.bad,
            )
        self.next_step = -1  # a step that is left half-way is not gone on with
        for modality, indices in self.plan:
            yield Batch(modality, step, indices, next(self.examples))
        self.next_step = step + 1

    def close(self) -> None:
        """End the processes that decode."""
        if self.examples is not None:
            self.examples.close()
        self.examples = None

    def local(self, modality: str) -> int:
        """Samples of a modality that this process takes of a step."""
        return self.batch[modality] // distributed.processes()

    def fixed(self, modality: str, size: int) -> list[Example | PreparedExample]:
        """A few samples of a stream of its own, the same ones whenever asked: to judge a network by."""
        data = replace(self.data, augment=False)
        stream = Stream(data, seed_for(self.seed, "validation", 0), {modality: size}, self.sources)
        return [stream.example(modality, 0, index) for index in range(size)]

    def _requests(self, step: int) -> Iterator[Request]:
        for later in count(step):
            for modality, indices in self.plan:
                yield modality, later, indices

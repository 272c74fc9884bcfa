"""What every step of a run shows: which bucket, how many frames, which samples, which part of each.

All of it is a function of (seed, step, index), so a resume restores nothing, and runs on another number of
processes see the same batches.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from training.rng import generator
from univid.messages import shown

from . import buckets, decode
from .config import DataConfig
from .order import Order, keep, numbers
from .samples import MODALITIES, BadSample, Example, PreparedExample, Raw, Source

KINDS = {"image": "image", "frame": "clip", "video": "clip"}  # of the source that a modality is read from
ATTEMPTS = 16  # with half of the samples bad, one position in 65,536 finds no good one
LISTED = 3  # bad samples that an error names
CHUNK = 4096  # steps whose draws are made together


class Stream:
    """The samples of a run, by modality, step and index within the step's global batch.

    batch: samples of a step, by modality. sources: by kind, "image" and "clip".

    Raises:
        ValueError: a modality is unknown, lacks its source, or has no sample at all.
    """

    def __init__(
        self, config: DataConfig, seed: int, batch: Mapping[str, int], sources: Mapping[str, Source]
    ):
        self.config, self.seed, self.sources = config, seed, sources
        self.batch = {modality: size for modality, size in batch.items() if size}
        self.orders: dict[str, list[Order | None]] = {}
        self.draws: dict[str, Draws] = {}
        for modality in self.batch:
            counts = self._counts(modality)  # [buckets shards]
            frames = (config.min_frames, config.max_frames) if modality == "video" else (1, 1)
            self.draws[modality] = Draws(counts.sum(axis=1), frames, seed=seed, stream=f"{modality} shapes")
            self.orders[modality] = [  # one name: the buckets read from the same few shards at a time
                Order(row, seed=seed, stream=f"{modality} order", pool=config.pool) if row.any() else None
                for row in counts
            ]

    def _counts(self, modality: str) -> np.ndarray:
        if modality not in MODALITIES:
            raise ValueError(f"the modalities of a batch are {', '.join(MODALITIES)}; got {modality!r}.")
        kind = KINDS[modality]
        if kind not in self.sources:
            raise ValueError(
                f'a batch with samples of "{modality}" needs a source of {kind}s, and there is none; '
                f'set data.{kind}s.paths, or "{modality}" to 0 in the batch.'
            )
        counts = self.sources[kind].counts()
        if not counts.any():
            raise ValueError(
                f'no {kind} can be used for the samples of "{modality}" of a batch; look at data.{kind}s: '
                "its paths, and the thresholds at_least and at_most."
            )
        return counts

    def size(self, modality: str) -> int:
        """Samples of one epoch, of all buckets."""
        return sum(order.size for order in self.orders[modality] if order)

    def shape(self, modality: str, step: int) -> tuple[int, int]:
        """(index of the bucket, number of frames) of all samples of a modality in a step."""
        return self.draws[modality](step)[:2]

    def example(self, modality: str, step: int, index: int) -> Example | PreparedExample:
        """Sample number `index` of a step, or, when that one is bad, the first good one of its candidates.

        Raises:
            ValueError: none of the candidates is good.
        """
        bucket, frames, earlier = self.draws[modality](step)
        order = self.orders[modality][bucket]
        place = earlier * self.batch[modality] + index
        passed_over = []
        for attempt in range(min(ATTEMPTS, order.size)):
            shard, number = order.at(place, attempt)
            key = ""  # what a source raises begins with it
            try:
                raw = self.sources[KINDS[modality]].read(bucket, shard, number)
                key = f"{raw.key}: "
                example = self._shown(raw, modality, bucket, frames, step * self.batch[modality] + index)
            except BadSample as error:
                passed_over.append(f"{key}{error}")
            else:
                return dataclasses.replace(example, passed_over=tuple(passed_over))
        raise ValueError(
            f'sample {index} of step {step} of "{modality}" and all its {len(passed_over) - 1} replacements '
            "are bad; mend them, or remove them for a run of another name: "
            f"{'; '.join(shown(reason, 60) for reason in passed_over[:LISTED])}"
        )

    def _shown(
        self, raw: Raw, modality: str, bucket: int, frames: int, position: int
    ) -> Example | PreparedExample:
        """The part of a sample that the one at the global `position` shows."""
        window, x, y, reference = 0.0, 0.5, 0.5, 0.0
        if self.config.augment:
            rng = generator(self.seed, f"{modality} parts", position)
            window, x, y, reference = torch.rand(4, generator=rng).tolist()
        first, size = self.config.reference == "first", self.config.buckets[bucket]
        if raw.extension == "safetensors":
            from .prepared import read_prepared  # and with it the encoders, which raw media do without

            example = read_prepared(raw, modality, frames, window, None if first else reference, size)
            if self.config.degradations is not None and example.degraded is None:
                raise BadSample("without a poor copy of it")
            return example
        if modality == "image":
            pixels = decode.decode_image(raw.media, cover=size)
        else:
            part = {"start": raw.start, "end": raw.end, "window": window, "cover": size}
            pixels = decode.decode_clip(raw.media, frames=frames, fps=self.config.fps, **part)
        pixels = buckets.fit(pixels, size, x, y)
        degraded = None
        if self.config.degradations is not None:
            from .degradations import poor_copy

            degraded = poor_copy(pixels, self.config.degradations, f"{self.seed} {modality}", position)
        return Example(raw.key, raw.caption, pixels, 0 if first else int(reference * frames), degraded)


class Draws:
    """The bucket and the number of frames of every step.

    A bucket is drawn with probability proportional to its samples, so the epochs of all go at one pace.
    sizes: samples of each bucket `[buckets]`. frames: the fewest and the most, all equally likely.
    """

    def __init__(self, sizes: np.ndarray, frames: tuple[int, int], *, seed: int, stream: str):
        self.shares = np.cumsum(sizes) / sizes.sum()
        self.frames, self.seed, self.stream = frames, seed, stream
        self._before = [np.zeros(len(sizes), dtype=np.int64)]  # steps of each bucket before each chunk
        self._chunks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, step: int) -> tuple[int, int, int]:
        """(bucket, number of frames, how many earlier steps drew this bucket)."""
        chunk, offset = divmod(step, CHUNK)
        while len(self._before) <= chunk:
            drawn, _ = self._chunk(len(self._before) - 1)
            self._before.append(self._before[-1] + np.bincount(drawn, minlength=len(self.shares)))
        drawn, frames = self._chunk(chunk)
        bucket = int(drawn[offset])
        earlier = int(self._before[chunk][bucket]) + int(np.count_nonzero(drawn[:offset] == bucket))
        return bucket, int(frames[offset]), earlier

    def _chunk(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """Buckets and numbers of frames of the steps of a chunk."""
        if chunk not in self._chunks:
            raw = numbers(self.seed, self.stream, chunk, 2 * CHUNK).reshape(2, CHUNK)
            uniform = (raw[0] >> np.uint64(11)) * 2.0**-53  # [0, 1), all bits that a float64 holds
            fewest, most = self.frames
            frames = fewest + (raw[1] % np.uint64(most - fewest + 1)).astype(np.int64)
            keep(self._chunks, chunk, (self.shares.searchsorted(uniform, side="right"), frames))
        return self._chunks[chunk]

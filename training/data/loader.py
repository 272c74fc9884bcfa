"""Samples decoded ahead by other processes, in the order in which the run asks for them."""

import json
import logging
import math
import multiprocessing
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, tee
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from univid.messages import shown
from univid.signals import SIGNALS

from .samples import Example, PreparedExample
from .stream import Stream

Request = tuple[str, int, Sequence[int]]  # modality, step, and which samples of the step's global batch
MOST_AHEAD = 256  # samples; each holds up to three of the files that a process may have open, often 1,024
LISTED = 3  # bad samples that an error names
ENOUGH = 1000  # samples before which a share of bad ones says little
log = logging.getLogger(__name__)


def load(
    stream: Stream,
    requests: Iterable[Request],
    *,
    workers: int,
    ahead: int = 64,
    bad: "BadSamples | None" = None,
) -> Iterator[list[Example | PreparedExample]]:
    """The samples of every request, in order, the same ones for any number of `workers`.

    workers: processes that decode, at most one a core; 0 = this one, when a sample is asked for. ahead:
    samples that they keep ready in all, best those of one step on this rank: then they work while the
    network does.

    Raises:
        ValueError: no good sample at some position, or more bad samples than `bad` allows.
        RuntimeError: a worker was killed.
    """
    # A worker takes single samples, not requests: a micro-batch of two clips keeps two workers busy.
    asked, sent = tee(requests)
    samples = ((modality, step, index) for modality, step, indices in sent for index in indices)
    workers = min(workers, os.cpu_count() or 1)
    examples = _explained(_begin(_data_loader(stream, samples, workers, ahead)))
    for modality, step, indices in asked:
        loaded = list(islice(examples, len(indices)))
        if bad is not None:
            bad.count(modality, step, loaded)
        yield loaded


def _data_loader(
    stream: Stream, samples: Iterator[tuple[str, int, int]], workers: int, ahead: int
) -> DataLoader:
    generator = torch.Generator()  # its own: one more number drawn from the global one would shift dropout
    dataset = _Samples(stream)
    if not workers:
        return DataLoader(dataset, batch_size=None, sampler=samples, generator=generator)
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=samples,
        generator=generator,
        num_workers=workers,
        prefetch_factor=max(2, math.ceil(min(ahead, MOST_AHEAD) / workers)),
        worker_init_fn=_start_worker,
        # Not "fork": it copies a process that by now runs the threads of CUDA, gloo and the checkpoint
        # writer, whose locks nobody opens in the copy. Not "forkserver": a SIGTERM to the process group,
        # which is how torchrun and Slurm announce the end, kills the server, and with it all news of workers.
        multiprocessing_context=multiprocessing.get_context("spawn"),
    )


def _begin(loader: DataLoader) -> Iterator:
    """Start the workers, without the signal handler that DataLoader sets with them.

    It raises the news of a worker's death wherever the main process happens to be, in the middle of saving a
    state, say. Without it they come, some seconds later, when the next sample is asked for.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)  # there DataLoader sets none either
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, handler)


class _Samples(Dataset):
    """A stream as a map from (modality, step, index) to the example."""

    def __init__(self, stream: Stream):
        self.stream = stream

    def __getitem__(self, sample: tuple[str, int, int]) -> Example | PreparedExample | ValueError:
        try:
            example = self.stream.example(*sample)
        except ValueError as error:  # carried over as it is; DataLoader would wrap it in its traceback
            return error
        if get_worker_info() is not None:
            # Or the thread that sends them does it, and a worker that is ended meanwhile aborts noisily.
            for value in vars(example).values():
                if isinstance(value, Tensor):
                    value.share_memory_()
        return example


def _start_worker(number: int) -> None:
    """Leave Ctrl-C, a closed terminal and the first SIGTERM to the main process, which finishes its step and
    saves.
    """
    for name in {*SIGNALS} - {"SIGTERM"}:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _explained(examples: Iterator) -> Iterator[Example | PreparedExample]:
    while True:
        try:
            example = next(examples)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise RuntimeError(
                "a process that decodes samples was killed, mostly because memory, or shared memory "
                f"(/dev/shm), ran out; lower data.workers, or give the run more of either ({error})."
            ) from error
        if isinstance(example, ValueError):
            raise example
        yield example


class BadSamples:
    """Writes every bad sample into a run's `bad.jsonl`, and ends a run that meets too many.

    A sample that comes back in another epoch counts once, and is written every time. Every process counts
    and writes its own: `bad.jsonl` is that of the first, `bad_1.jsonl` that of the second.
    """

    def __init__(self, folder: Path, stream: Stream, rank: int = 0):
        self.path = folder / (f"bad_{rank}.jsonl" if rank else "bad.jsonl")
        self.max_share = stream.config.max_bad_share
        self.sizes = {modality: stream.size(modality) for modality in stream.batch}
        self.seen: defaultdict[str, int] = defaultdict(int)
        self.found: defaultdict[str, dict[str, str]] = defaultdict(dict)  # reason by key of the sample

    def count(self, modality: str, step: int, examples: Sequence[Example | PreparedExample]) -> None:
        """Take note of what a step's samples passed over.

        Raises:
            ValueError: of the samples seen so far, more than the allowed share is bad.
        """
        reasons = [reason for example in examples for reason in example.passed_over]
        self.seen[modality] += len(examples) + len(reasons)
        if not reasons:
            return
        self._note({"step": step, "modality": modality, "reason": reason} for reason in reasons)
        found = self.found[modality]
        found.update((reason.split(": ")[0], reason) for reason in reasons)
        among = min(max(self.seen[modality], ENOUGH), self.sizes[modality])
        if len(found) > self.max_share * among:
            last = "; ".join(shown(reason, 50) for reason in list(found.values())[-LISTED:])
            raise ValueError(
                f'{len(found)} samples of "{modality}" cannot be used, more than {self.max_share:.0%} of '
                f"{among}; raise options.data.max_bad_share to go on, or mend or remove them for a run of "
                f"another name; {shown(self.path, 60)} names all, the last are: {last}"
            )

    def _note(self, rows: Iterable[dict]) -> None:
        """Write rows into `bad.jsonl`; like every log it may fail without ending the run."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)  # on another machine it may not be there
            # names of files may hold bytes that are no letters
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        except OSError as error:
            log.warning("%s cannot be written (%s)", shown(self.path), error.strerror or error)

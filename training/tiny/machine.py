"""Where the clips of an evaluation are made: in this process, or in several of one thread each."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

import torch
from tqdm import tqdm

from univid.checkpoints import load
from univid.dtypes import DTYPES, dtype_of
from univid.initialization import initialize
from univid.model import UniVid

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Machine:
    """workers: processes of one thread each; 1 = this one, with its threads. dtype: of the weights.

    Raises:
        ValueError: no workers, or an unknown dtype.
    """

    workers: int = 1
    device: str = "cpu"
    dtype: str = "fp32"

    def __post_init__(self):
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")

    @contextmanager
    def mapper(self) -> Iterator:
        """A `map` over the processes, which small networks fill best, or the plain one."""
        if self.workers == 1:
            yield map
            return
        context = multiprocessing.get_context("spawn")  # a fork after torch has started threads can hang
        with ProcessPoolExecutor(
            self.workers, context, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool.map

    def model(self, checkpoint: str, untrained: int | None = None) -> UniVid:
        """The model of a checkpoint; with a seed in `untrained` its U-Net is as training starts from."""
        return _model(checkpoint, untrained, self.device, self.dtype)

    def each(
        self, checkpoint: str, work: Callable[[UniVid, Item], Found], items: Sequence[Item], title: str
    ) -> list[Found]:
        """What `work`, a function of a module, makes of the model and each item, in their order."""
        with self.mapper() as run:
            found = run(partial(_work, self, checkpoint, work), items)
            return list(tqdm(found, desc=title, total=len(items), unit="clip", mininterval=1))


def _work(machine: Machine, checkpoint: str, work: Callable, item):
    return work(machine.model(checkpoint), item)


@lru_cache(maxsize=2)
def _model(checkpoint: str, untrained: int | None, device: str, dtype: str) -> UniVid:
    model = load(checkpoint, device=device, dtype=dtype_of(dtype))
    if untrained is not None:
        initialize(model.unet, untrained)
    return model


def forget_models() -> None:
    """Read checkpoints anew, which may have changed."""
    _model.cache_clear()

"""In which order samples are seen: a function of the position alone, so that nothing needs to be restored.

The order is that of a shuffle buffer, without the buffer's state: shards in a new order every epoch, and the
samples of `pool` consecutive ones shuffled together. Disks and object stores then see a few shards at a time.
"""

import math

import numpy as np

from training.rng import seed_for

KEPT = 2  # epochs, and pools of an epoch, whose order is kept: a step may lie across the end of one


def numbers(seed: int, stream: str, position: int, count: int) -> np.ndarray:
    """Random uint64 `[count]` of one place of the run.

    Raw output of a bit generator, which NumPy keeps the same in all its versions; its shuffles it does not.
    """
    return np.random.PCG64(seed_for(seed, stream, position)).random_raw(count)


def permutation(seed: int, stream: str, position: int, count: int) -> np.ndarray:
    """0 .. count - 1 in random order, int64 `[count]`."""
    return np.argsort(numbers(seed, stream, position, count), kind="stable")


class Order:
    """The endless order of the samples that shards hold; every epoch shows each of them once.

    counts: samples of each shard, int64 `[shards]`; at least one in all. stream: a name, so that the orders
    of one seed differ; orders of the same name take the shards in the same order, whatever each finds there.
    Memory: 48 bytes a shard and 16 bytes a sample of a pool.
    """

    def __init__(self, counts: np.ndarray, *, seed: int, stream: str, pool: int):
        self.counts = np.asarray(counts, dtype=np.int64)
        self.size = int(self.counts.sum())
        if not self.size:
            raise ValueError("expected at least one sample to put in order, got none.")
        self.seed, self.stream, self.pool = seed, stream, pool
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._pools: dict[tuple[int, int], np.ndarray] = {}
        self._stored_starts = _starts(self.counts)

    def at(self, position: int, attempt: int = 0) -> tuple[int, int]:
        """(shard, index within it) of the sample at `position` = epoch * size + place in the epoch.

        attempt: 1, 2 ... up to `size - 1` are what to take when that sample is bad: all different, and
        far apart, so that a shard that cannot be read does not use them up.
        """
        epoch, place = divmod(position, self.size)
        shards, starts = self._epoch(epoch)
        first = int(starts.searchsorted(place, side="right") - 1) // self.pool * self.pool
        begin = int(starts[first])
        number = begin + int(self._pool(epoch, first)[place - begin])
        turn, index = _locate(starts, number)
        shard = int(shards[turn])
        if not attempt:
            return shard, index
        number = self._candidate(int(self._stored_starts[shard]) + index, position, attempt)
        return _locate(self._stored_starts, number)

    def _candidate(self, number: int, position: int, attempt: int) -> int:
        """Strides that share no factor with `size` come to every sample once before they come back."""
        if attempt >= self.size:
            raise ValueError(f"expected an attempt below the {self.size} samples, got {attempt}.")
        stride = seed_for(self.seed, f"{self.stream} candidates", position) % self.size
        while math.gcd(stride, self.size) != 1:
            stride += 1
        return (number + attempt * stride) % self.size

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch in order, and before how many samples each of them starts."""
        if epoch not in self._epochs:
            shards = permutation(self.seed, f"{self.stream} shards", epoch, len(self.counts))
            shards = shards[self.counts[shards] > 0]
            keep(self._epochs, epoch, (shards, _starts(self.counts[shards])))
        return self._epochs[epoch]

    def _pool(self, epoch: int, first: int) -> np.ndarray:
        """The order of the samples of `pool` shards, the `first` of the epoch and those after it."""
        if (epoch, first) not in self._pools:
            starts = self._epoch(epoch)[1]
            count = int(starts[min(first + self.pool, len(starts) - 1)] - starts[first])
            number = epoch * len(self.counts) + first
            keep(self._pools, (epoch, first), permutation(self.seed, f"{self.stream} pool", number, count))
        return self._pools[epoch, first]


def _starts(counts: np.ndarray) -> np.ndarray:
    """Running sum from 0 to that of all, `[n + 1]`."""
    return np.concatenate([[0], np.cumsum(counts)])


def _locate(starts: np.ndarray, number: int) -> tuple[int, int]:
    """In which interval a number lies, and where in it."""
    place = int(starts.searchsorted(number, side="right") - 1)
    return place, number - int(starts[place])


def keep(cache: dict, key, value) -> None:
    """Add to a cache that forgets what was added first."""
    while len(cache) >= KEPT:
        del cache[next(iter(cache))]
    cache[key] = value

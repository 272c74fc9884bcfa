"""Tensors that lie in files: what is known of each before it is read, and how one is read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..messages import shown
from .regular import Steady

NAME_LIMIT = 1000  # characters of a tensor's name
DIMENSIONS = 16
LARGEST = 2**31 - 1  # size along one dimension


@dataclass(frozen=True)
class Entry:
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes begin in a file; stride: in numbers, None = they lie one after another."""

    file: Steady
    offset: int
    stride: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Weights:
    """The tensors of a file, or of the files that a model is split into; none is read yet.

    path: of what was opened. entries: type and shape by name. metadata: the header's strings.
    """

    path: Path
    entries: Mapping[str, Entry]
    places: Mapping[str, Place]
    metadata: Mapping[str, str]

    def __post_init__(self):
        longest = max(map(len, self.entries), default=0)
        if longest > NAME_LIMIT:
            raise ValueError(
                f"{shown(self.path)} has a tensor whose name has {longest:,} characters; take another file."
            )

    def read(self, name: str) -> Tensor:
        """The tensor `name`, in fresh memory of its own size.

        Raises:
            ValueError: its file cannot be read any more, or changed since it was opened.
        """
        entry, place = self.entries[name], self.places[name]
        span = span_of(entry.shape, place.stride)
        numbers = torch.empty(span, dtype=entry.dtype)
        if span:
            place.file.read_into(place.offset, memory_of(numbers))
        if place.stride is None or not span:
            return numbers.view(entry.shape)
        return numbers.as_strided(entry.shape, place.stride).contiguous()


def span_of(shape: tuple[int, ...], stride: tuple[int, ...] | None = None) -> int:
    """How many numbers lie from the first to the last one of a tensor."""
    if stride is None or 0 in shape:
        return math.prod(shape)
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def memory_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as a writable buffer of bytes."""
    flat = tensor.as_strided((tensor.numel(),), (1,))  # one number may have any stride
    return memoryview(flat.view(torch.uint8).numpy())

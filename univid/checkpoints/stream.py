"""Write `.safetensors` one tensor at a time, so that a file larger than the memory passes through.

The format: 8 bytes header length (little endian), a JSON header {name: {dtype, shape, data_offsets}} with an
optional "__metadata__" of strings, then the raw bytes of the tensors without gaps.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ..files import output
from ..files.tensors import Entry, memory_of
from ..files.weights import DTYPE_NAMES
from ..messages import shown

SUFFIX = ".safetensors"


def check(path: output.AnyPath, inputs: Iterable[output.AnyPath | None] = (), size: int = 0) -> None:
    """Refuse, before any work is done, a path at which `write` could not.

    inputs, size: as `output.check_file`.

    Raises:
        ValueError: as `output.check_file`, or another suffix, by which loaders expect another format.
    """
    if Path(path).suffix.lower() != SUFFIX:
        raise ValueError(f"expected a file name ending in {SUFFIX}, got {shown(path)}; give that suffix.")
    output.check_file(path, inputs, size)


def write(
    path: str | os.PathLike,
    entries: Mapping[str, Entry],
    make: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a `.safetensors` file, calling `make(name)` for one tensor after another.

    The file appears under its name only when it is complete; missing folders are made.

    Raises:
        ValueError: as `check`, or a full disk. Whatever `make` raises passes through.
    """
    check(path, size=size_of(entries, metadata))
    with output.new_file(path) as partial:
        write_into(partial, entries, make, metadata)


def write_into(
    path: Path, entries: Mapping[str, Entry], make: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    """As `write`, under the name `path` at once: for a place that is temporary anyway.

    Raises:
        OSError: the place cannot be written, or the disk is full.
    """
    with open(path, "wb") as file:
        file.write(_header(entries, metadata))
        for name, entry in entries.items():
            tensor = make(name)
            assert (tensor.shape, tensor.dtype) == (entry.shape, entry.dtype), name
            file.write(memory_of(tensor.detach().cpu().contiguous()))


def size_of(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> int:
    """Bytes of the file that `write` makes."""
    return len(_header(entries, metadata)) + sum(entry.num_bytes for entry in entries.values())


def _header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict = {"__metadata__": dict(metadata)}
    end = 0
    for name, entry in entries.items():
        start, end = end, end + entry.num_bytes
        header[name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data start aligned
    return len(text).to_bytes(8, "little") + text

"""Read and write `.safetensors` one tensor at a time, so that a file larger than the memory passes through.

The format: 8 bytes header length (little endian), a JSON header {name: {dtype, shape, data_offsets}} with an
optional "__metadata__" of strings, then the raw bytes of the tensors without gaps.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..files import output

HEADER_LIMIT = 16 * 2**20  # bytes; ours takes 0.3 MB, and a larger one is an attack or garbage

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# First bytes of what people mistake for safetensors.
MAGIC = {
    b"PK\x03\x04": "a PyTorch pickle or zip file",
    b"\x80": "a Python pickle",
    b"version https://git-lfs": "a Git LFS pointer instead of the file itself",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
}


@dataclass(frozen=True)
class Entry:
    """One tensor as the header describes it; `offset` counts bytes from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Reader:
    """A `.safetensors` file with its header checked and no tensor read yet.

    Raises:
        ValueError: missing, empty, truncated, of another format, or with a header that makes no sense.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            self.entries, self.metadata = _read_header(self.path)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}); check the name.") from error
        except ValueError as error:
            raise ValueError(f"{path} {error}") from error

    def read(self, name: str) -> Tensor:
        """The tensor `name`, in fresh memory."""
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        with open(self.path, "rb") as file:
            file.seek(entry.offset)
            if file.readinto(_bytes(tensor)) != entry.num_bytes:
                raise ValueError(f"{self.path} became shorter while it was read; try again.")
        return tensor


def write(
    path: str | os.PathLike,
    entries: Mapping[str, Entry],
    make: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a `.safetensors` file, calling `make(name)` for one tensor after another.

    The file appears under its name only when it is complete; missing folders are made.

    Raises:
        ValueError: the place cannot be written, or the disk is full. Whatever `make` raises passes through.
    """
    output.check_file(path, size=size_of(entries, metadata))
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
            file.write(_bytes(tensor.detach().cpu().contiguous()))


def size_of(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> int:
    """Bytes of the file that `write` makes."""
    return len(_header(entries, metadata)) + sum(entry.num_bytes for entry in entries.values())


def _bytes(tensor: Tensor):
    """The memory of a contiguous CPU tensor as a writable buffer."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


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


def _read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Entries and metadata; a ValueError's text continues a sentence that starts with the file's name."""
    with open(path, "rb") as file:
        start = file.read(32)
        if not start:
            raise ValueError("is empty; download or copy it again.")
        length, size = int.from_bytes(start[:8], "little"), path.stat().st_size
        if start[8:9] != b"{":  # asked first: a header of 640 bytes begins as a pickle does
            for magic, what in MAGIC.items():
                if start.startswith(magic):
                    raise ValueError(
                        f"is {what}, which is not read here; expected a .safetensors file, which "
                        "`python -m univid import` makes of a .ckpt, .pth or .bin."
                    )
            raise ValueError("is not a .safetensors file; choose another one.")
        if length > HEADER_LIMIT:
            raise ValueError(
                f"has a header of {length:,} bytes, more than the {HEADER_LIMIT:,} that are accepted."
            )
        file.seek(8)
        text = file.read(length)
    if len(text) < length:
        raise ValueError("is truncated inside its header; download or copy it again.")
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        entries = {name: _entry(value, 8 + length) for name, value in header.items()}
        valid = all(isinstance(value, str) for value in metadata.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("has a damaged .safetensors header; download or copy it again.") from error
    if not valid:
        raise ValueError("has metadata that are not strings; it was not written by a .safetensors library.")
    end = max((entry.offset + entry.num_bytes for entry in entries.values()), default=0)
    if end > size:
        raise ValueError(f"is truncated ({size:,} of {end:,} bytes); download or copy it again.")
    return entries, metadata


def _entry(value: dict, data: int) -> Entry:
    start, end = value["data_offsets"]
    entry = Entry(DTYPES[value["dtype"]], tuple(value["shape"]), data + start)
    sizes = (start, end, *entry.shape)
    if any(type(number) is not int or number < 0 for number in sizes) or end - start != entry.num_bytes:
        raise ValueError("sizes disagree")
    return entry

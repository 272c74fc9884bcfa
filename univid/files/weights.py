"""The door for weights: a .safetensors file, or one of PyTorch.

Its first bytes tell which, not its name. The `safetensors` library checks and describes its files: it refuses
overlaps, holes, and sizes that the file does not have. The bytes of a tensor are then read by themselves,
because a mapped file stays in memory as a whole, and one that is cut while it is mapped ends the process.
"""

import json
import os

import safetensors
import torch

from ..messages import shown
from .pickled import open_pickled
from .regular import Steady
from .tensors import DIMENSIONS, LARGEST, Entry, Place, Weights

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

# First bytes of what people mistake for weights.
OTHERS = {
    b"version https://git-lfs": "is a Git LFS pointer instead of the file itself; download the file.",
    b"\x89HDF": "is an HDF5 file; take the .safetensors version.",
    b"GGUF": "is a GGUF file; take the .safetensors version.",
    b"<": "is a web page; download the file itself.",
}


def open_weights(path: str | os.PathLike) -> Weights:
    """The tensors of one file, described and held against its size; none is read yet.

    Raises:
        ValueError: absent, no regular file, empty, truncated, of another format, damaged, holding more than
            weights, or claiming more than its bytes.
    """
    file = Steady(path)
    with file.open() as handle:
        start = handle.read(32)
    if start[8:9] == b"{" and not start.startswith(b"PK"):  # a header of 640 bytes begins as a pickle does
        return _open_safetensors(file)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return open_pickled(file)
    what = next((what for magic, what in OTHERS.items() if start.startswith(magic)), None)
    if what is None:
        what = "is neither a .safetensors file nor plain weights of PyTorch; take another one."
    raise ValueError(f"{shown(path)} {what if start else 'is empty; download or copy it again.'}")


def _open_safetensors(file: Steady) -> Weights:
    with file.open() as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > min(HEADER_LIMIT, file.size - 8):
            problem = "is truncated inside its header; download or copy it again."
            if length > HEADER_LIMIT:
                problem = (
                    f"has a header of {length:,} bytes, more than the {HEADER_LIMIT:,} that are accepted; "
                    "take another file."
                )
            raise ValueError(f"{shown(file.path)} {problem}")
        text = handle.read(length)
    try:
        with safetensors.safe_open(file.path, "numpy") as opened:
            header = json.loads(text)  # which the library has accepted, but gives in any order
            metadata = header.pop("__metadata__", None) or {}
            slices = {name: opened.get_slice(name) for name in header}
            found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            del slices
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{shown(file.path)} is truncated or damaged, as its header and its {file.size:,} bytes do not "
            "agree; download or copy it again."
        ) from error
    entries, places = {}, {}
    for name, (dtype, shape) in found.items():
        if dtype not in DTYPES or len(shape) > DIMENSIONS or max(shape, default=0) > LARGEST:
            raise ValueError(
                f"{shown(file.path)} has {shown(name)} of type {dtype} and shape {shown(list(shape), 60)}, "
                "which is not read here; take a version with 16- or 32-bit floats."
            )
        entries[name] = Entry(DTYPES[dtype], shape)
        places[name] = Place(file, 8 + length + header[name]["data_offsets"][0])
    return Weights(file.path, entries, places, metadata)

"""PyTorch's own files (.ckpt, .pth, .pt, .bin): a pickle that describes tensors, and their bytes beside it.

Either a zip file of records or, from before PyTorch 1.6, one stream. What the pickle claims is held against
the bytes that are there before memory is taken for it; nothing in the file is mapped, unpacked or run.
"""

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

from ..messages import shown
from .regular import Steady
from .tensors import Entry, Place, Weights, span_of
from .unpickle import PICKLE_LIMIT, Piece, Unfit, damaged, unpickle

SHARING = 2  # a tensor may have two names, but a file does not give many times the bytes that it holds
DEEPSPEED = "_forward_module."  # begins every name in deepspeed's files
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # begin a stream
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a record in a zip file: signature ... lengths of name and extra


class Record(NamedTuple):
    """The bytes of one storage."""

    offset: int
    size: int


def open_pickled(file: Steady) -> Weights:
    """The tensors of the state dict that the file is or holds.

    Raises:
        ValueError: damaged, holding more than weights, or claiming more than its bytes.
    """
    try:
        with file.open() as handle:
            bounded = _Bounded(handle, file.size)
            content, records = (_read_zip if handle.read(2) == b"PK" else _read_stream)(bounded)
        pieces = _state_dict(content)
        places = {
            name: Place(file, _offset(name, piece, records), piece.stride) for name, piece in pieces.items()
        }
        entries = {name: Entry(piece.dtype, piece.shape) for name, piece in pieces.items()}
        given, there = sum(e.num_bytes for e in entries.values()), sum(r.size for r in records.values())
        if given > SHARING * there:
            raise Unfit(f"makes {given:,} bytes of weights out of {there:,}; it is damaged or hostile.")
    except Unfit as error:
        raise ValueError(f"{shown(file.path)} {error}") from error
    return Weights(file.path, entries, places, metadata={})


class _Bounded:
    """A file from which no reader asks for more at once than a pickle, or a zip file's directory, takes."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size
        self.seek, self.tell = file.seek, file.tell
        self.seek(0)

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.size - self.tell())
        count = left if count is None or count < 0 else min(count, left)
        if count > PICKLE_LIMIT:
            raise Unfit(f"has a part of {count:,} bytes beside its weights; it is damaged or hostile.")
        return self.file.read(count)

    def readline(self) -> bytes:
        return self.file.readline(PICKLE_LIMIT)

    def seekable(self) -> bool:
        return True


def _read_zip(file: _Bounded) -> tuple[Any, dict[str, Record]]:
    """The content of `NAME/data.pkl`, and where the records `NAME/data/KEY` lie, by their keys."""
    try:
        found = zipfile.ZipFile(file).infolist()
    except Unfit:
        raise
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, OSError) as error:
        raise damaged() from error
    listed = {info.filename: info for info in found}
    pickles = [name for name in listed if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(listed) < len(found) or len(pickles) != 1:
        raise damaged()
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in listed:
        raise Unfit("is a program (TorchScript) and no plain weights; take a .safetensors version.")
    records = {
        name.removeprefix(folder): _record(file, info)
        for name, info in listed.items()
        if name.startswith((f"{folder}data", f"{folder}byteorder"))
    }
    end = 0
    for record in sorted(records.values()):
        if record.offset < end:
            raise Unfit("has several tensors on the same bytes; it is damaged or hostile, take another one.")
        end = record.offset + record.size
    if "byteorder" in records:
        _check_order(_read(file, records["byteorder"]) == b"little")
    content, _ = unpickle(io.BytesIO(_read(file, records["data.pkl"])))
    return content, {name.removeprefix("data/"): record for name, record in records.items()}


def _record(file: _Bounded, info: zipfile.ZipInfo) -> Record:
    """Where a record's bytes lie; PyTorch writes them as they are."""
    file.seek(info.header_offset)
    header = file.read(LOCAL_HEADER.size)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise Unfit("is compressed or encrypted, as PyTorch writes no weights; unpack it first.")
    if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise damaged()
    _, name, extra = LOCAL_HEADER.unpack(header)
    record = Record(info.header_offset + LOCAL_HEADER.size + name + extra, info.file_size)
    if record.offset + record.size > file.size:
        raise damaged()
    return record


def _read(file: _Bounded, record: Record) -> bytes:
    file.seek(record.offset)
    return file.read(record.size)


def _read_stream(file: _Bounded) -> tuple[Any, dict[str, Record]]:
    """Pickles of a magic number, a version, the machine, the content and the storages' keys, then these."""
    file.seek(0)
    magic, protocol, machine = (unpickle(file)[0] for _ in range(3))
    if (magic, protocol) != (MAGIC, PROTOCOL) or not isinstance(machine, dict):
        raise damaged()
    _check_order(machine.get("little_endian") is True)
    content, storages = unpickle(file)
    keys, _ = unpickle(file)
    if not isinstance(keys, list):
        raise damaged()
    records: dict[str, Record] = {}
    for key in keys:
        if not isinstance(key, str) or key not in storages or key in records:
            raise damaged()
        size = int.from_bytes(file.read(8), "little") * storages[key].dtype.itemsize
        records[key] = Record(file.tell(), size)
        if file.tell() + size > file.size:
            raise Unfit(f"is truncated ({file.size:,} bytes); download or copy it again.")
        file.seek(size, 1)
    return content, records


def _check_order(little: bool) -> None:
    if not little:
        raise Unfit("was written by a machine with another order of bytes; take its .safetensors version.")


def _state_dict(content: Any) -> dict[str, Piece]:
    """The tensors of a checkpoint by their names."""
    found = content if isinstance(content, dict) else {}
    for inside in ("state_dict", "module"):
        if isinstance(found.get(inside), dict):
            found = found[inside]
            break
    return {name.removeprefix(DEEPSPEED): piece for name, piece in found.items() if isinstance(piece, Piece)}


def _offset(name: str, piece: Piece, records: Mapping[str, Record]) -> int:
    """Where a tensor's bytes begin in the file."""
    storage, size = piece.storage, piece.dtype.itemsize
    span = span_of(piece.shape, piece.stride)
    if math.prod(piece.shape) > span:
        raise Unfit(
            f"repeats a few numbers to make {shown(name)}; it is damaged or hostile, take another one."
        )
    start = storage.start * storage.dtype.itemsize + piece.offset * size
    record = records.get(storage.key)
    claimed = (storage.start + storage.numel) * storage.dtype.itemsize
    if record is None or start + span * size > min(record.size, claimed):
        raise Unfit(f"claims more bytes for {shown(name)} than it has; download or copy it again.")
    return record.offset + start

"""A walk over a tar's headers, which believes no number that the file does not bear out.

Python's own tarfile follows whatever sizes and lists a header names: beyond the file's end, backwards, or
into memory. Here every step goes forward and stays within the file.
"""

import io
import tarfile
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512  # a tar consists of these; zeros mark its end
LONGEST = 4096  # bytes of a name, as systems have it
EXTENDED = 2**20  # bytes of a header that describes the next one: its name, its size and little else
DIGITS = 18  # of a size
# Kinds of headers.
REGULAR, OLD, SPARSE, PAX, GLOBAL, LONG_NAME, LONG_LINK = b"07", b"\0", b"S", b"xX", b"g", b"L", b"K"
BARE = b"123456"  # links, devices, folders and pipes: nothing follows


@dataclass(frozen=True)
class Entry:
    """A regular file in a tar: its name, and where its bytes lie. whole: whether all of them are there."""

    name: str
    offset: int
    size: int
    whole: bool


def walk(file: BinaryIO) -> tuple[list[Entry], bool]:
    """The regular files of an uncompressed tar in order, and whether it is cut or damaged behind them.

    Of a tar that ends within a file's bytes, that file is the last entry, and not whole.

    Raises:
        tarfile.ReadError: it is no tar.
    """
    length, at, entries = file.seek(0, io.SEEK_END), 0, []
    if not length:
        raise tarfile.ReadError("empty file")
    said: dict[str, bytes] = {}  # of the next member, by the headers before it
    while (header := read_at(file, at, BLOCK)) != bytes(BLOCK):
        size, kind, data = _size(header), header[156:157], at + BLOCK
        if size is None:
            if not at:
                raise tarfile.ReadError("it is no uncompressed tar")
            return entries, True
        if kind in PAX + GLOBAL + LONG_NAME + LONG_LINK:
            if size > EXTENDED or data + size > length:
                return entries, True
            if kind in LONG_NAME:
                said["path"] = read_at(file, data, size).rstrip(b"\0")
            elif kind in PAX:
                said |= _records(read_at(file, data, size))
            at = _after(data, size)
            continue
        name, size = said.get("path") or _name(header), _number(said.get("size", b""), size)
        if kind == SPARSE:  # its list of pieces may go on in blocks of their own
            more = header[482:483]
            while more.strip(b"\0"):
                more, data = read_at(file, data, BLOCK)[504:505], data + BLOCK
        folder = kind == OLD and name.endswith(b"/")
        if kind in BARE or folder:
            size = 0
        whole = data + size <= length
        if kind in REGULAR + OLD and not folder and len(name) <= LONGEST and "GNU.sparse" not in said:
            entries.append(Entry(name.decode("utf-8", "surrogateescape"), data, size, whole))
        if not whole:
            return entries, True
        at, said = _after(data, size), {}
    return entries, False


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """The bytes of a stretch of a file, as far as they are there."""
    file.seek(offset)
    return file.read(size)


class Window(io.RawIOBase):
    """A stretch of a file as a file of its own."""

    def __init__(self, file: BinaryIO, offset: int, size: int):
        super().__init__()
        self.file, self.offset, self.size, self.position = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self.size - self.position))
        data = read_at(self.file, self.offset + self.position, count)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def _after(offset: int, size: int) -> int:
    """Where the next header lies."""
    return offset + -(-size // BLOCK) * BLOCK


def _size(header: bytes) -> int | None:
    """The size that a header names; None if it is no header."""
    if len(header) < BLOCK:
        return None
    body = header[:148] + b" " * 8 + header[156:]
    signed = sum(body) - 256 * sum(byte > 127 for byte in body)  # as some old tars have it
    if _octal(header[148:156]) not in (sum(body), signed):
        return None
    field = header[124:136]
    if field[0] in (0x80, 0xFF):  # in base 256; the second is below zero
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else None
    return _octal(field)


def _octal(field: bytes) -> int | None:
    text = field.split(b"\0")[0].strip()
    return int(text or b"0", 8) if all(digit in b"01234567" for digit in text) else None


def _number(text: bytes, default: int) -> int:
    return int(text) if text.isdigit() and len(text) <= DIGITS else default


def _name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    return prefix + b"/" + name if prefix else name


def _records(text: bytes) -> dict[str, bytes]:
    """What matters in a pax header, whose lines are "LENGTH KEY=VALUE"."""
    found = {}
    while text:
        length, space, _ = text.partition(b" ")
        count = _number(length, 0)
        if not space or not len(length) + 1 < count <= len(text):
            break
        key, _, value = text[len(length) + 1 : count].removesuffix(b"\n").partition(b"=")
        if key.startswith(b"GNU.sparse"):
            found["GNU.sparse"] = value
        elif key in (b"path", b"size"):
            found[key.decode()] = value
        text = text[count:]
    return found

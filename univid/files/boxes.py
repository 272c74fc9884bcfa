"""What an MP4 or MOV says of its samples, held against its size before FFmpeg takes memory for them.

FFmpeg makes an entry of 24 bytes for each sample that a header speaks of, whether or not the file has room
for it: 3 KB of file made 5 GB.
"""

import io
import re
from typing import BinaryIO

from .media import Unreadable

FIRST = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid", b"sidx")
# name, then version and flags, then the number of samples at this offset behind the name
COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4}
NAMES = re.compile(b"|".join([*COUNTS, b"cmov"]))
CHUNK = 2**20
OVERLAP = 16  # of chunks: a name and what is read behind it


def has_boxes(file: BinaryIO) -> bool:
    """Whether a file, read from its beginning, is of the family of MP4."""
    file.seek(0)
    return file.read(8)[4:] in FIRST


def check_boxes(file: BinaryIO) -> None:
    """Refuse a file whose headers speak of more samples than it has bytes.

    Raises:
        Unreadable: it does; or a header is compressed, so that nobody can tell.
    """
    size, samples, position = file.seek(0, io.SEEK_END), 0, 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        length = {0: size - position, 1: int.from_bytes(head[8:], "big")}.get(length, length)
        if length < 8:
            break
        if head[4:8] != b"mdat":  # the frames themselves
            samples += _samples(file, position, min(position + length, size))
            if samples > size:
                raise Unreadable(f"its header speaks of {samples} samples in {size} bytes")
        position += length


def _samples(file: BinaryIO, begin: int, end: int) -> int:
    """How many samples the headers in these bytes speak of."""
    samples = 0
    for start in range(begin, end, CHUNK):
        file.seek(start)
        piece = file.read(min(CHUNK + OVERLAP, end - start))
        for found in NAMES.finditer(piece, 0, CHUNK + 3):
            name, at = found[0], found.end()
            if name == b"cmov":
                raise Unreadable("its header is compressed; save it anew")
            samples += int.from_bytes(piece[at + COUNTS[name] : at + COUNTS[name] + 4], "big")
    return samples

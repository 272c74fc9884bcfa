"""The walk over a tar's headers, beside Python's own, and where that one believes what is not there."""

import io
import random
import tarfile

import pytest

from training.data.walk import LONGEST, Window, walk

KINDS = [tarfile.REGTYPE] * 4 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE]
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def header(name: str, size: bytes = b"%011o\0" % 0, kind: bytes = b"0") -> bytes:
    """A header with this size field and kind, and the checksum that fits."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def octal(size: int) -> bytes:
    return b"%011o\0" % size


def binary(size: int) -> bytes:
    return b"\x80" + size.to_bytes(11, "big")


def make_tar(rng: random.Random) -> bytes:
    """Members of all kinds and lengths, by Python's own writer."""
    file, kind = io.BytesIO(), rng.choice(FORMATS)
    options = {"format": kind, "encoding": "utf-8", "errors": "surrogateescape"}
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for number in range(rng.randint(0, 6)):
            name = "/".join("x" * rng.randint(1, 40) for _ in range(rng.randint(1, 2))) + f"{number}.jpg"
            if kind != tarfile.USTAR_FORMAT and rng.random() < 0.3:
                name = "ü\udcff" + "y" * 200 + name
            member = tarfile.TarInfo(name)
            member.type = rng.choice(
                [tarfile.REGTYPE] * 4 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE]
            )
            member.linkname = (
                "z" * rng.randint(0, 150) if member.issym() and kind != tarfile.USTAR_FORMAT else "z"
            )
            member.size = rng.choice([0, 1, 511, 512, 513, 3000]) if member.isreg() else 0
            if kind == tarfile.PAX_FORMAT and rng.random() < 0.3:
                member.pax_headers = {"comment": "ü" * 300}
            tar.addfile(member, io.BytesIO(b"A" * member.size))
    return file.getvalue()


def test_sound_tars_are_walked_as_python_walks_them():
    rng, seen = random.Random(0), 0
    for _ in range(300):
        data = make_tar(rng)
        with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
            expected = [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]
        entries, cut = walk(io.BytesIO(data))
        assert [(entry.name, entry.offset, entry.size) for entry in entries] == expected and not cut
        assert all(entry.whole for entry in entries)
        seen += len(entries)
    assert seen > 300


GOOD = header("g.jpg", octal(3)) + b"abc" + bytes(509)
END = bytes(1024)


@pytest.mark.parametrize(
    "size",
    [binary(2**bits) for bits in (33, 62, 63, 64, 80)] + [binary(2**87 - 1), b"\x80" + b"\xff" * 11]
    + [b"\xff" * 12, b"\xff" + bytes(11), octal(10**9), b"7" * 12, b"9" * 12, b"-0000000001\0"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [b"0", b"\0", b"S", b"x", b"g", b"L", b"K", b"V"])
def test_a_size_that_is_not_there_ends_the_walk(size, kind):
    for before in (b"", GOOD):
        data = before + header("h.jpg", size, kind) + bytes(2048) + GOOD
        try:
            entries, cut = walk(io.BytesIO(data))
        except tarfile.ReadError:
            assert not before
            continue
        assert cut
        whole = [entry.name for entry in entries if entry.whole]
        assert whole[: len(before) // len(GOOD)] == ["g.jpg"] * bool(before)
        assert all(entry.offset + entry.size <= len(data) for entry in entries if entry.whole)


def test_what_describes_the_next_member_is_bounded():
    def pax(records: bytes) -> bytes:
        return header("p", octal(len(records)), b"x") + records + bytes(-len(records) % 512)

    long = b"n" * 300 + b".jpg"
    sized = b"20 size=" + b"9" * 11 + b"\n"
    data = pax(b"%d path=%s\n" % (len(long) + 10, long)) + GOOD + GOOD + END
    entries, cut = walk(io.BytesIO(data))
    assert [entry.name for entry in entries] == [long.decode(), "g.jpg"] and not cut
    data = header("l", octal(len(long) + 1), b"L") + long + bytes(512 - len(long)) + GOOD + END
    assert walk(io.BytesIO(data))[0][0].name == long.decode()
    for records in (sized, b"0 path=x\n", b"99999 path=x\n", b"x path=y\n", b"3 path", b"", b"9" * 400):
        entries, cut = walk(io.BytesIO(pax(records) + GOOD + END))
        assert [entry.name for entry in entries] == ["g.jpg"] and cut == (records == sized)
    huge = b"L" * (LONGEST + 1)
    data = header("l", octal(len(huge)), b"L") + huge + bytes(-len(huge) % 512) + GOOD + GOOD + END
    assert [entry.name for entry in walk(io.BytesIO(data))[0]] == ["g.jpg"]  # the one after it


def test_no_tar_is_said_to_be_none():
    for data, reason in ((b"", "empty file"), (b"PK\3\4" * 500, "no uncompressed tar"), (b"x", "no uncomp")):
        with pytest.raises(tarfile.ReadError, match=reason):
            walk(io.BytesIO(data))
    assert walk(io.BytesIO(END)) == ([], False)


def test_a_window_is_a_file_of_its_own():
    window = io.BufferedReader(Window(io.BytesIO(b"0123456789"), 2, 5))
    assert window.read() == b"23456" and window.seek(-2, io.SEEK_END) == 3 and window.read(9) == b"56"
    assert window.seek(1) == 1 and window.seek(1, io.SEEK_CUR) == 2 and window.read(1) == b"4"

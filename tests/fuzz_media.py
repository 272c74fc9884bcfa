"""Damage pictures and videos at random, and open them: each gives pixels, or is refused in a sentence.

    python -m tests.fuzz_media --minutes 60                  # both doors in turn
    python -m tests.fuzz_media --minutes 5 --door video --seed 7

Sound files of every format that the doors read, and some that they do not, are cut, overwritten, torn apart
and put together anew. Anything but pixels or `Unreadable` is a fault, and so is an input that takes longer
than SLOW seconds; its bytes are kept, and the exit status is 1. A crash of a decoder ends the process: the
input is then the one under --kept, written before it is opened. What is tried depends on the seed alone.
"""

import argparse
import io
import random
import re
import resource
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, features

from univid.files.media import Unreadable
from univid.files.picture import MAX_PIXELS, picture_size, read_picture
from univid.files.video import open_clip

from .clip_files import clip, numbered, sound, ticks

SLOW = 20  # seconds for one input
MEMORY = 3 * 2**30  # bytes beyond what the process had at its start
TELLING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def pictures() -> dict[str, bytes]:
    """Sound pictures by name."""
    rows, columns = np.mgrid[0:40, 0:56]
    pixels = np.stack([6 * rows, 4 * columns, (rows * columns) % 256], -1).astype(np.uint8)
    photo, clear = Image.fromarray(pixels), Image.fromarray(np.dstack([pixels, pixels[..., :1]]))
    grey = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    text.add_text("workflow", "words " * 400, zip=True)
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="8"/>')
    made = {
        "png": (photo, "PNG", {"exif": exif}),
        "png with texts": (photo, "PNG", {"pnginfo": text, "icc_profile": bytes(3000)}),
        "png of 16 bits": (grey, "PNG", {}),
        "png with a palette": (photo.quantize(40), "PNG", {"transparency": 3}),
        "png animation": (photo, "PNG", {"save_all": True, "append_images": [clear]}),
        "jpeg": (photo, "JPEG", {"exif": exif}),
        "jpeg in steps": (photo, "JPEG", {"progressive": True, "icc_profile": bytes(3000)}),
        "jpeg of cmyk": (photo.convert("CMYK"), "JPEG", {}),
        "jpeg pair": (photo, "MPO", {"save_all": True, "append_images": [photo]}),
        "webp": (photo, "WEBP", {"exif": exif}),
        "webp animation": (clear, "WEBP", {"lossless": True, "save_all": True, "append_images": [photo]}),
        "gif": (photo.quantize(16), "GIF", {"save_all": True, "append_images": [photo], "transparency": 2}),
        "bmp": (photo, "BMP", {}),
        "bmp with a palette": (photo.quantize(16), "BMP", {}),
        "tiff": (photo, "TIFF", {"exif": exif}),
        "tiff of lzw": (clear, "TIFF", {"compression": "tiff_lzw"}),
        "tiff of jpeg": (photo, "TIFF", {"compression": "jpeg"}),
        "tiff of fax": (photo.convert("1"), "TIFF", {"compression": "group4"}),
        "tiff of 16 bits": (grey, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "ppm": (photo, "PPM", {}),
    }
    if features.check("avif"):
        made["avif"] = (clear, "AVIF", {"exif": exif, "speed": 10})
    files = {}
    for name, (image, form, options) in made.items():
        file = io.BytesIO()
        image.save(file, form, **options)
        files[name] = file.getvalue()
    return files | {
        "ppm in words": b"P3 2 2 255 1 2 3 4 5 6 7 8 9 10 11 12\n",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }


def videos() -> dict[str, bytes]:
    """Sound videos by name."""
    small = {"times": ticks(25, 20), "frames": [numbered(k, 32, 64) for k in range(20)]}
    made = {
        "mp4": dict(g="6", bf="2"),
        "mp4 turned": dict(g="6", turn=(90,)),
        "mp4 in fragments": dict(g="6", movflags="frag_keyframe+empty_moov"),
        "mov of pictures": dict(container="mov", codec="png", pix_fmt="rgba"),
        "mkv": dict(container="matroska", g="6", bf="2"),
        "mkv of hevc": dict(container="matroska", codec="libx265", **{"x265-params": "log-level=none"}),
        "webm": dict(container="webm", codec="libvpx-vp9", g="6", **{"cpu-used": "8"}),
        "webm of vp8": dict(container="webm", codec="libvpx", g="6"),
        "avi": dict(container="avi", codec="mpeg4", g="6", bf="2"),
        "avi of jpegs": dict(container="avi", codec="mjpeg", pix_fmt="yuvj420p"),
        "gif": dict(container="gif", codec="gif", pix_fmt="rgb8"),
        "ts": dict(container="mpegts", g="6"),
        "mpg": dict(container="mpeg", codec="mpeg2video", g="6"),
        "flv": dict(container="flv", codec="flv", g="6"),
        "wmv": dict(container="asf", codec="wmv2", g="6"),
        "ogv": dict(container="ogg", codec="libvpx", g="6"),
        "h264": dict(container="h264", g="6"),
    }
    files = {name: clip(**small, **options) for name, options in made.items()}
    lists = {
        "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile:///dev/zero\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile /dev/zero\n",
    }
    return files | lists | {"sound": sound(), "cover": sound(cover=True)}


def open_picture(media: bytes) -> None:
    """Read a picture whole and its size, and hold one against the other."""
    size = picture_size(media)
    assert size[0] * size[1] <= MAX_PIXELS
    pixels = read_picture(media)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
    read_picture(media, cover=(8, 8))


def open_video(media: bytes) -> None:
    """Read a video as the library does, and as training does."""
    with open_clip(media) as opened:
        timeline, chosen, rate = opened.evenly(40, (16, 16))
        assert rate > 0 and (np.diff(timeline.times) > 0).all()
        shown = list(opened.pictures(timeline, chosen, (16, 16)))
        assert len(shown) == len(chosen) and all(p.dtype == np.uint8 and p.shape[2] == 3 for p in shown)
    with open_clip(media) as opened:
        timeline = opened.timeline(0.2, 0.7)
        chosen = timeline.choose(min(4, timeline.available(8)), 8, 0.5)
        list(opened.pictures(timeline, chosen, None))
    with open_clip(media) as opened:
        opened.shown_size()


DOORS: dict[str, tuple[Callable[[], dict[str, bytes]], Callable[[bytes], None]]] = {
    "picture": (pictures, open_picture),
    "video": (videos, open_video),
}


def pieces(media: bytes) -> list[tuple[int, int]]:
    """Where the parts of a file begin and end: of a PNG, of MP4's boxes and those in them, of a RIFF."""
    found, heads = [], {b"\x89PNG": (8, ">I4s", 12), b"RIFF": (12, "<4sI", 8)}
    begin, form, more = heads.get(media[:4], (0, ">I4s", 0))
    boxes, todo = more == 0, [(begin, len(media))]
    while todo:
        at, end = todo.pop()
        while at + 8 <= end:
            first, second = struct.unpack_from(form, media, at)
            size, name = (first, second) if isinstance(first, int) else (second, first)
            after = at + size + more
            if after <= at or after > end:
                break
            found.append((at, after))
            if boxes and name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"meta"):
                todo.append((at + 8, after))
            at = after
    return found or [(0, len(media))]


def damaged(media: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A file with one to three kinds of damage."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        data, size = bytearray(media), max(1, len(media))
        at = rng.randrange(size) if rng.random() < 0.5 else rng.randrange(min(size, 400))
        kind = rng.randrange(9)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            for _ in range(rng.choice([1, 4, 20])):
                place = rng.randrange(size)
                data[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 3:  # a number of one, two or four bytes
            width = rng.choice([1, 2, 4])
            number = (rng.choice(TELLING) + rng.choice([-1, 0, 1])) % 256**width
            data[at : at + width] = number.to_bytes(width, rng.choice(["big", "little"]))
        elif kind == 4:
            del data[at : at + rng.choice([1, 8, 100])]
        elif kind == 5:
            data[at:at] = data[at : at + rng.choice([1, 8, 100])] * rng.choice([1, 3, 50])
        elif kind == 6:  # two parts change places
            a, b = sorted(rng.choices(pieces(media), k=2))
            if a[1] <= b[0]:
                data = (
                    media[: a[0]] + media[slice(*b)] + media[a[1] : b[0]] + media[slice(*a)] + media[b[1] :]
                )
        elif kind == 7:  # a part is lost or comes twice
            begin, end = rng.choice(pieces(media))
            data[begin:end] = media[begin:end] * rng.choice([0, 2, 5])
        else:
            other = rng.choice(others)
            data = data[:at] + other[rng.randrange(max(1, len(other))) :]
        media = bytes(data)
    return checked(media) if rng.random() < 0.7 else media


def checked(media: bytes) -> bytes:
    """A PNG with the right checksums, without which its chunks are not looked into."""
    if media[:4] != b"\x89PNG":
        return media
    data = bytearray(media)
    for begin, end in pieces(media):
        data[end - 4 : end] = zlib.crc32(media[begin + 4 : end - 4]).to_bytes(4, "big")
    return bytes(data)


def fuzz(door: str, seconds: float, seed: int, kept: Path) -> tuple[Counter, list[str]]:
    """Open damaged files for some seconds: how many were read and refused, and what was wrong.

    kept: a file for the input at hand; inputs that show a fault are kept beside it.
    """
    make, use = DOORS[door]
    sound_files, rng = make(), random.Random(f"{door} {seed}")
    names, files = list(sound_files), list(sound_files.values())
    counts, faults = Counter(), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resource.setrlimit(resource.RLIMIT_AS, (64 * 2**30, resource.RLIM_INFINITY))
    stop = time.monotonic() + seconds
    while time.monotonic() < stop and len(faults) < 20:
        number = counts.total()
        at = rng.randrange(len(files))
        media = damaged(files[at], files, rng)
        kept.write_bytes(media)
        begun, fault = time.monotonic(), ""
        try:
            use(media)
            counts["read"] += 1
        except Unreadable as error:
            counts["refused"] += 1
            if not re.fullmatch(r"[ -~]{8,160}", str(error)):
                fault = f"an unclear reason: {error!r}"
        except Exception as error:
            counts["failed"] += 1
            fault = f"{type(error).__name__}: {error}"
        if (took := time.monotonic() - begun) > SLOW:
            fault = fault or f"took {took:.0f} s"
        if (grown := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) > MEMORY:
            fault, before = fault or f"took {grown / 1e9:.1f} GB", before + grown
        if fault:
            path = kept.with_name(f"{door}-{seed}-{number}")
            path.write_bytes(media)
            faults.append(f"{names[at]}, {path}: {fault}")
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="for each door")
    parser.add_argument("--door", choices=sorted(DOORS), action="append", help="default: both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=Path, help="a folder for the inputs that show a fault")
    options = parser.parse_args()
    folder = options.kept or Path(tempfile.mkdtemp(prefix="fuzz-media-"))
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    wrong = False
    for door in options.door or sorted(DOORS):
        counts, faults = fuzz(door, 60 * options.minutes, options.seed, folder / f"{door}-now")
        print(
            f"{door}: {counts.total()} tried, {counts['read']} read, {counts['refused']} refused", flush=True
        )
        print(*faults, sep="\n", end="\n" if faults else "", flush=True)
        wrong = wrong or bool(faults)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())

"""Throw broken tars, lists, jsons and caches at training's data, and count what becomes of them.

    python -m tests.fuzz_data                     # a minute
    python -m tests.fuzz_data --minutes 120 --seed 7

Every input has to be read, or refused by a ValueError of one clear line, or counted sample by sample as bad;
whatever else is raised, and whatever takes longer than LONGEST seconds, ends the program with the input's
number, by which it can be made again: `--seed 7 --first NUMBER`.
"""

import argparse
import io
import json
import logging
import os
import random
import shutil
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

from PIL import Image

from training.data import folders, sources
from training.data.config import SourceConfig
from training.data.patterns import expand
from training.data.samples import BadSample

BUCKETS = ((64, 64), (64, 128))
LONGEST = 20.0  # seconds, on a busy machine too
NUMBERS = [0, 1, -1, 2, 511, 512, 2**31 - 1, 2**31, 2**33, 2**62, 2**63, 2**64, 2**80, 2**87 - 1]
TEXTS = ["", "x", "x" * 100_000, "\ud800", "\x1b[2J", "0:03"]
VALUES = [None, True, False, 1.5, 1e300, 1e18, 10**400, float("nan"), float("inf"), [], [[]], {}, {"x": 1}]


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 3)).save(file, "PNG")
    return file.getvalue()


PICTURE = picture()


def scrambled(rng: random.Random, data: bytes) -> bytes:
    """Some bytes changed, a piece cut out, doubled or put elsewhere."""
    data = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        if not data:
            break
        here, there = rng.randrange(len(data)), rng.randrange(len(data))
        length = rng.choice((1, 2, 8, 100, 512, 1024))
        kind = rng.randrange(6)
        if kind == 0:
            data[here] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[here : here + length] = rng.randbytes(length)
        elif kind == 2:
            del data[here : here + length]
        elif kind == 3:
            data[there:there] = data[here : here + length]
        elif kind == 4:
            del data[here:]
        else:
            data[here : here + length] = bytes(length)
    return bytes(data)


def thing(rng: random.Random, depth: int = 0):
    """A JSON value of any kind."""
    kind = rng.randrange(6)
    if kind == 0 and depth < 4:
        return [thing(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 1 and depth < 4:
        return {rng.choice(("a", "width", "", "x" * 300, "\x1b")): thing(rng, depth + 1) for _ in range(2)}
    return rng.choice((*VALUES, *NUMBERS, *TEXTS))


def meta(rng: random.Random) -> bytes:
    """A sample's json, right or not."""
    names = ("width", "height", "aesthetic", "caption", "video_metadata", rng.choice("abc"))
    value = {name: thing(rng) for name in names if rng.random() < 0.5}
    if rng.random() < 0.3:
        sides = [{"rotation": thing(rng)}] if rng.random() < 0.5 else thing(rng)
        stream = {"codec_type": "video", "width": thing(rng), "height": 4, "side_data_list": sides}
        value["video_metadata"] = {"streams": [stream, thing(rng)]}
    text = json.dumps(value).encode()
    return rng.choice((text, text, scrambled(rng, text), b"[" * rng.choice((5, 150, 100_000)), b"9" * 5000))


def header(rng: random.Random, name: str) -> bytes:
    """A tar's header whose checksum fits, and little else."""
    block = bytearray(
        tarfile.TarInfo(name[:90]).tobuf(rng.choice((tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)))
    )
    number = abs(rng.choice(NUMBERS))
    sizes = [b"%011o\0" % min(number, 8**11 - 1), b"\x80" + min(number, 2**87 - 1).to_bytes(11, "big")]
    sizes += [b"\xff" * 12, rng.randbytes(12), b" " * 12, b"\0" * 12]
    block[124:136] = rng.choice(sizes)
    block[156:157] = rng.choice((b"0", b"\0", b"5", b"7", b"S", b"x", b"g", b"L", b"K", b"V", b"D", b"\xff"))
    if rng.random() < 0.2:
        block[345:500] = rng.randbytes(155)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def tar(rng: random.Random) -> bytes:
    """Samples of a picture each, with headers between them that lie, all of it scrambled."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=rng.choice((0, 1, 2))) as out:
        for number in range(rng.randrange(4)):
            if rng.random() < 0.3:
                file.write(header(rng, f"{number}.png") + bytes(rng.choice((0, 512, 1024))))
                out.offset = file.tell()
            members = {"png": PICTURE, "txt": b"words", "json": meta(rng)}
            for suffix, data in members.items():
                if rng.random() < 0.9:
                    info = tarfile.TarInfo(f"{number}.{rng.choice((suffix, suffix, suffix.upper(), 'heic'))}")
                    info.size = len(data)
                    out.addfile(info, io.BytesIO(data))
    return scrambled(rng, file.getvalue())


def fill_folder(rng: random.Random, folder: Path) -> None:
    """Pictures with captions, and a list of them that is wrong somewhere."""
    for number in range(rng.randrange(1, 4)):
        name = f"p{number}.{rng.choice(('png', 'PNG', 'jpg', 'heic', 'ts'))}"
        (folder / name).write_bytes(scrambled(rng, PICTURE))
        (folder / f"p{number}.{rng.choice(('txt', 'TXT', 'Txt'))}").write_bytes(scrambled(rng, b"some words"))
        (folder / f"p{number}.json").write_bytes(meta(rng))
    if rng.random() < 0.3:
        os.mkfifo(folder / rng.choice(("p9.png", "p0.srt", "q.txt")))
    if rng.random() < 0.6:
        lines = []
        for _ in range(rng.randrange(4)):
            row = {"file": rng.choice(("p0.png", "p1.png", "p2.png")), "caption": "words"}
            if rng.random() < 0.7:
                row[rng.choice(("file", "caption", "start", "end", "more"))] = thing(rng)
            lines.append(json.dumps(row).encode())
        text = b"\n".join(lines)
        (folder / rng.choice(("metadata.jsonl", "METADATA.JSONL"))).write_bytes(
            rng.choice((text, scrambled(rng, text), b"\xef\xbb\xbf" + text))
        )


def pattern(rng: random.Random) -> str:
    parts = ["{", "}", ",", "..", "a", "Z", "0", "007", "-3", "9" * 30, "1000000000", "\\", "*"]
    parts += ["{0..3}", "{a,b}"]
    return "".join(rng.choice(parts) for _ in range(rng.choice((3, 8, 40))))


def spoil_caches(rng: random.Random, folder: Path) -> None:
    for path in (*folder.rglob("*.npz"), *folder.rglob("*.sizes.json")):
        data = path.read_bytes()
        if path.suffix == ".json" and rng.random() < 0.5:
            kept = json.loads(data)
            for entry in kept.values():
                entry[rng.randrange(4)] = thing(rng)
            path.write_text(json.dumps(rng.choice((kept, list(kept), thing(rng)))))
        else:
            path.write_bytes(scrambled(rng, data))


def clear(error: Exception) -> None:
    """A refusal is one line that a terminal can show."""
    text = str(error)
    assert text.strip() and len(text) <= 400 and all(c.isprintable() for c in text), text[:300]


def read(paths: list[str], cache: Path, counted: Counter) -> None:
    config = SourceConfig(tuple(paths), at_most={"aesthetic": 5.0} if counted["inputs"] % 7 == 0 else {})
    try:
        source = sources.open_source(config, "image", BUCKETS, cache=cache)
    except ValueError as error:
        clear(error)
        counted["refused"] += 1
        return
    json.dumps(source.names())
    counts = source.counts()
    for bucket in range(counts.shape[0]):
        for shard in range(counts.shape[1]):
            for index in range(int(counts[bucket, shard])):
                try:
                    raw = source.read(bucket, shard, index)
                    assert raw.caption
                    counted["samples"] += 1
                except BadSample:
                    counted["bad samples"] += 1
    counted["read"] += 1


def one(seed: int, number: int, folder: Path, counted: Counter) -> None:
    """Make the input of this number, and read it, twice: the second time with what was kept, spoilt."""
    rng = random.Random(f"{seed} {number}")
    counted["inputs"] += 1
    data, cache = folder / "data", folder / "cache"
    data.mkdir()
    kind = rng.choice(("tar", "tar", "folder", "pattern"))
    if kind == "pattern":
        try:
            assert len(expand(pattern(rng))) <= 1_000_000
        except ValueError as error:
            clear(error)
            counted["refused"] += 1
        return
    if kind == "tar":
        for shard in range(rng.randrange(1, 3)):
            (data / f"{shard}.tar").write_bytes(tar(rng))
        paths = [str(data / "*.tar")] if rng.random() < 0.5 else [str(data)]
    else:
        fill_folder(rng, data)
        paths = [str(data)]
    read(paths, cache, counted)
    spoil_caches(rng, folder)
    read(paths, cache, counted)


def fuzz(seconds: float, seed: int = 0, first: int = 0) -> Counter:
    """Inputs for so many seconds; how many there were, and what became of them."""
    counted, begun, number = Counter(), time.monotonic(), first
    logging.getLogger("training").setLevel(logging.ERROR)
    folders._warn_of_others.cache_clear()
    root = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        while time.monotonic() - begun < seconds:
            folder, started = root / str(number), time.monotonic()
            folder.mkdir()
            try:
                one(seed, number, folder, counted)
            except Exception as error:
                raise AssertionError(f"input {number} of seed {seed}: {error!r}") from error
            taken = time.monotonic() - started
            assert taken < LONGEST, f"input {number} of seed {seed} took {taken:.0f} s"
            shutil.rmtree(folder)
            number += 1
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    options = parser.parse_args()
    counted = fuzz(60 * options.minutes, options.seed, options.first)
    print(", ".join(f"{count:,} {what}" for what, count in counted.items()), file=sys.stdout)


if __name__ == "__main__":
    main()

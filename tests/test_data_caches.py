"""What is kept of the data, beside it and in the cache: made again where it is old, or not ours."""

import json
import os
import shutil

import numpy as np
import pytest
from shards import jpeg, make_folder, opener, pictures, read_all, write_tar

from training.data import tars


@pytest.fixture
def opened(tmp_path):
    return opener(tmp_path / "cache")


def spoilt_sizes(value):
    def spoil(path):
        kept = json.loads(path.read_text())
        for entry in kept.values():
            entry[-2:] = [value, value]
        path.write_text(json.dumps(kept))

    return spoil


SPOILT = {
    f"sizes of {value!r}"[:30]: spoilt_sizes(value) for value in (10**30, -4, 0.5, "x", None, [1], True)
} | {
    "no json": lambda path: path.write_text("{"),
    "a list": lambda path: path.write_text("[1]"),
    "entries that are none": lambda path: path.write_text('{"b.mp4": 5, "a.MP4": [1, 2], "c": {}}'),
    "deep": lambda path: path.write_text("[" * 100_000),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("damage", SPOILT)
def test_kept_sizes_that_are_none_are_measured_again(tmp_path, opened, damage):
    folder = make_folder(tmp_path / "own")
    right = opened(folder, kind="clip").counts().tolist()
    SPOILT[damage](folder / ".sizes.json")
    assert opened(folder, kind="clip").counts().tolist() == right == [[1], [2], [0], [0]]


def test_a_file_that_changed_is_measured_again(tmp_path, opened):
    """By its time of change alone, too: the new one has as many bytes."""
    flat, tall = (jpeg(width, height) for width, height in ((96, 48), (48, 96)))
    longest = max(len(flat), len(tall))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(flat.ljust(longest, b"\0"))
    (folder / "a.txt").write_text("x")
    assert opened(folder).counts().argmax() == 0
    stat = (folder / "a.jpg").stat()
    (folder / "a.jpg").write_bytes(tall.ljust(longest, b"\0"))
    os.utime(folder / "a.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert opened(folder).counts().argmax() == 0  # what is kept is believed
    os.utime(folder / "a.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert opened(folder).counts().argmax() == 3


def test_counts_are_made_anew_when_a_tar_s_time_changes(tmp_path, opened):
    path = write_tar(tmp_path / "0.tar", pictures(6))
    opened(path)
    stat, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(b".jpg\0", b".xyz\0", 1).replace(b".jpg\0", b".xyz\0", 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert opened(path).counts().sum() == 6
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(ValueError, match="cut within its first sample|no uncompressed tar"):
        opened(path)  # the changed names have other checksums


def rewritten(change):
    def spoil(path):
        with np.load(path) as file:
            arrays = dict(file)
        change(arrays)
        np.savez(path, **arrays)

    return spoil


def head(**changes):
    def change(arrays):
        kept = json.loads(arrays["head"].tobytes()) | changes
        arrays["head"] = np.frombuffer(json.dumps(kept).encode(), np.uint8)

    return change


def array(name, value):
    return lambda arrays: arrays.__setitem__(name, value(arrays[name]))


INDICES = {
    "beyond the tar": array("members", lambda a: a + [0, 0, 10**9, 0]),
    "before it": array("members", lambda a: a - [0, 0, 10**9, 0]),
    "sizes below zero": array("members", lambda a: a * [1, 1, 1, -1]),
    "no such sample": array("members", lambda a: a + [10**6, 0, 0, 0]),
    "no such suffix": array("members", lambda a: a + [0, 99, 0, 0]),
    "not in order": array("members", lambda a: a[::-1]),
    "other numbers": array("members", lambda a: a.astype(np.float64)),
    "other shape": array("members", lambda a: a[:, :3]),
    "fewer sizes": array("sizes", lambda a: a[:-1]),
    "fewer columns": array("numbers", lambda a: a[:, :-1]),
    "keys of numbers": array("keys", lambda a: np.arange(len(a))),
    "suffixes of numbers": head(suffixes=[1, 2, 3]),
    "texts of texts": head(texts={"a": "b"}),
    "texts as a list": head(texts=["a"]),
    "names as a number": head(names=5),
    "damage as a list": head(damage=[]),
    "no head": lambda arrays: arrays.pop("head"),
    "no keys": lambda arrays: arrays.pop("keys"),
}


@pytest.mark.parametrize("damage", INDICES)
def test_an_index_that_cannot_be_the_tar_s_is_made_anew(tmp_path, opened, damage):
    path = write_tar(tmp_path / "0.tar", pictures(5))
    right = read_all(opened(path))
    rewritten(INDICES[damage])(tmp_path / "0.index.npz")
    shutil.rmtree(tmp_path / "cache")
    assert read_all(opened(path)) == right


@pytest.mark.parametrize(
    "change",
    [
        array("counts", lambda a: a[:, :0]),
        array("counts", lambda a: a - 100),
        array("counts", lambda a: a * 0),
        array("counts", lambda a: a.astype(np.int32)),
        array("problems", lambda a: np.frombuffer(b"[1]", np.uint8)),
        array("problems", lambda a: np.frombuffer(b'{"x": 1}', np.uint8)),
        array("problems", lambda a: np.frombuffer(b'{"99": "x"}', np.uint8)),
        lambda arrays: arrays.pop("counts"),
    ],
)
def test_kept_counts_that_are_none_are_counted_again(tmp_path, opened, change):
    write_tar(tmp_path / "0.tar", pictures(5))
    right = read_all(opened(tmp_path / "*.tar"))
    (kept,) = (tmp_path / "cache").glob("counts_*.npz")
    rewritten(change)(kept)
    assert read_all(opened(tmp_path / "*.tar")) == right
    kept.write_bytes(b"PK")
    assert read_all(opened(tmp_path / "*.tar")) == right


def test_what_would_fill_the_memory_is_no_file_of_ours(tmp_path, monkeypatch):
    """Ours are not compressed; of others a few bytes may stand for many."""
    place = tmp_path / "0.index.npz"
    np.savez(place, counts=np.zeros(1000))
    assert tars.load_arrays(place).keys() == {"counts"}
    np.savez_compressed(place, counts=np.zeros(1_000_000))
    assert place.stat().st_size < 10_000 and tars.load_arrays(place) == {}
    np.savez(place, counts=np.zeros(1000))
    monkeypatch.setattr(tars, "KEPT_BYTES", 5000)
    assert tars.load_arrays(place) == {}

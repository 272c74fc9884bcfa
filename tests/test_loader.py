"""Samples decoded here or by workers: the same ones, in order; bad ones written down; signals and deaths."""

import io
import itertools
import json
import multiprocessing
import os
import signal
import tarfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from streams import BUCKETS, CLIPS, Pictures, same, stream

from training.data.config import DataConfig, SourceConfig
from training.data.loader import BadSamples, load
from training.data.sources import open_source
from training.data.stream import Stream


def test_bad_samples_are_written_down_and_too_many_stop(tmp_path):
    table = np.array([[40, 60], [0, 0], [0, 0]])
    few = stream(images=Pictures(table, bad=frozenset({"0/0/1", "0/1/7"})), max_bad_share=0.02)
    count = BadSamples(tmp_path, few)
    requests = [("image", step, range(3)) for step in range(100)]  # three epochs: the same two come again
    list(load(few, requests, workers=0, bad=count))
    rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert 4 <= len(rows) <= 12 and {row["reason"].split(":")[0] for row in rows} == {"0/0/1", "0/1/7"}
    assert all(row["modality"] == "image" and 0 <= row["step"] < 100 for row in rows)
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)

    many = stream(images=Pictures(table, bad=frozenset(f"0/1/{i}" for i in range(20))), max_bad_share=0.1)
    count = BadSamples(tmp_path, many, rank=3)
    with pytest.raises(ValueError, match=r"11 samples of .* 10% of 100; .*max_bad_share.*0/1/\d+: "):
        list(load(many, requests, workers=0, bad=count))
    assert (tmp_path / "bad_3.jsonl").exists()
    everything = stream(
        images=Pictures(table, bad=frozenset(f"0/1/{i}" for i in range(20))), max_bad_share=0.2
    )
    list(load(everything, requests, workers=0, bad=BadSamples(tmp_path, everything)))


# Real sources


def write_pictures(folder: Path) -> None:
    """Three tars of eight pictures each, lying, upright and square ones; in the last tar one is cut short."""
    for shard in range(3):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(8):
                width, height = ((128, 64), (64, 128), (64, 64))[number % 3]
                picture = io.BytesIO()
                Image.new("RGB", (width, height), (80 * shard, 30 * number, 0)).save(picture, "PNG")
                cut = 40 if (shard, number) == (2, 4) else None
                for suffix, data in (
                    ("png", picture.getvalue()[:cut]),
                    ("txt", f"picture {shard}{number:04d}".encode()),
                    ("json", json.dumps({"width": width, "height": height}).encode()),
                ):
                    member = tarfile.TarInfo(f"{shard:05d}{number:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def write_clips(folder: Path) -> None:
    for name in ("bikes", "carphone_pristine"):
        (folder / f"{name}.mp4").symlink_to(CLIPS / f"{name}.mp4")
        (folder / f"{name}.txt").write_text(f"a clip of {name}")
    (folder / "empty.mp4").touch()
    (folder / "empty.txt").write_text("nothing")


def test_tars_and_folders_from_the_disk_to_the_examples(tmp_path):
    for name, write in (("tars", write_pictures), ("folder", write_clips)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    config = DataConfig(
        images=SourceConfig((str(tmp_path / "tars" / "{00000..00002}.tar"),)),
        clips=SourceConfig((str(tmp_path / "folder"),)),
        buckets=BUCKETS,
        min_frames=3,
        max_frames=6,
        pool=2,
        max_bad_share=0.5,
    )
    sources = {
        kind: open_source(source, kind, BUCKETS, cache=tmp_path / "cache")
        for kind, source in (("image", config.images), ("clip", config.clips))
    }
    batch = {"image": 12, "frame": 3, "video": 3}
    asked = [(name, step, range(size)) for step in range(4) for name, size in batch.items()]
    asked += [("image", step, range(12)) for step in range(4, 10)]
    one = Stream(config, 3, batch, sources)
    assert one.size("image") == 24 and one.size("video") == one.size("frame") == 3
    before = torch.get_rng_state()
    loaded = list(load(one, asked, workers=1, bad=BadSamples(tmp_path, one)))
    assert torch.equal(torch.get_rng_state(), before)  # another draw would shift the run's dropout
    for here, there in zip(load(one, asked, workers=0), loaded, strict=True):
        assert all(same(a, b) for a, b in zip(here, there, strict=True))
    seen, reasons = defaultdict(set), []
    for (modality, step, _), examples in zip(asked, loaded, strict=True):
        bucket, frames = one.shape(modality, step)
        for example in examples:
            assert tuple(example.pixels.shape) == (frames, *BUCKETS[bucket], 3)
            seen[modality].add(example.caption)
            reasons += example.passed_over
    names = {f"picture {shard}{number:04d}" for shard in range(3) for number in range(8)}
    assert seen["image"] == names - {"picture 20004"}  # every bucket was drawn, and is smaller than the batch
    clips = {f"a clip of {name}" for name in ("bikes", "carphone_pristine")}
    assert seen["video"] | seen["frame"] == clips and seen["video"] and seen["frame"]
    assert {reason.split(": ")[0] for reason in reasons} == {"00002.tar:000020004", "folder/empty.mp4"}
    written = [json.loads(line)["reason"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert written == reasons


# Workers


def requests(first: int, last: int):
    for step in range(first, last):
        yield "image", step, range(3)
        yield "video", step, range(0, 4, 2)
        yield "video", step, range(1, 4, 2)


def small(**config) -> Stream:
    images = Pictures(bad=frozenset({"0/0/1", "2/3/4", "2/3/5", "0/2/2"}))
    return stream({"image": 3, "video": 4}, images=images, **config)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_examples(workers, tmp_path):
    here = list(load(small(), requests(0, 4), workers=0))
    bad = BadSamples(tmp_path, small(max_bad_share=1.0))
    there = list(load(small(), requests(0, 4), workers=workers, bad=bad))
    assert [len(examples) for examples in here] == [3, 2, 2] * 4
    for one, other in zip(here, there, strict=True):
        assert all(same(a, b) for a, b in zip(one, other, strict=True))
    assert any(example.passed_over for examples in there for example in examples)
    assert (tmp_path / "bad.jsonl").exists()
    resumed = list(load(small(), requests(2, 4), workers=0))
    for one, other in zip(here[6:], resumed, strict=True):
        assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_workers_outlive_signals_and_a_killed_one_is_told_in_one_sentence():
    """In one test, because a worker needs seconds to start."""
    table = np.array([[1], [0], [0]])
    endless = (("image", step, range(1)) for step in itertools.count())
    loading = load(stream({"image": 1}, images=Pictures(table)), endless, workers=1, ahead=1)
    next(loading)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):  # to the whole group, as a terminal or torchrun sends them
        os.kill(worker.pid, number)
    for _ in range(10):  # more than were ready
        next(loading)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGKILL)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:  # the run goes on with what it does, undisturbed
        pass
    with pytest.raises(RuntimeError, match="was killed, mostly because memory.* lower data.workers"):
        for _ in range(100):
            next(loading)
    assert not multiprocessing.active_children()


def test_an_error_in_a_worker_is_the_one_of_a_run_without():
    none = stream(images=Pictures(unreadable=frozenset(range(4))))
    with pytest.raises(ValueError) as here:
        next(load(none, requests(0, 1), workers=0))
    with pytest.raises(ValueError) as there:
        next(load(none, requests(0, 1), workers=1))
    assert str(here.value) == str(there.value) and "Traceback" not in str(there.value)

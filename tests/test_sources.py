"""Tar shards of training data: their index, thresholds, buckets, and what is done about damaged ones."""

import io
import json
import logging
import math
import os
import pickle
import random
import shutil
import signal
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from shards import BUCKETS, CLIPS, jpeg, media, opener, pictures, places, read_all, write_tar

from training import distributed
from training.data import buckets, tars
from training.data.samples import BadSample
from training.data.sources import nearest_buckets


@pytest.fixture
def opened(tmp_path):
    return opener(tmp_path / "cache")


def test_what_webdataset_wrote_is_read_as_webdataset_reads_it(tmp_path, opened):
    paths = [write_tar(tmp_path / f"{seed:05d}.tar", pictures(20 + seed, seed)) for seed in range(3)]
    expected = {
        f"{Path(sample['__url__']).name}:{sample['__key__']}": (
            sample["jpg"],
            sample["txt"].decode(),
            json.loads(sample["json"]),
        )
        for path in paths
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    }
    source = opened(tmp_path / "{00000..00002}.tar")
    order = places(source)
    random.Random(0).shuffle(order)  # any order, not the tar's
    got = {(raw := source.read(*place)).key: (raw.media, raw.caption, raw.meta) for place in order}
    assert len(expected) == 63 and got == expected
    assert source.counts().dtype == np.int64 and source.counts().sum(axis=0).tolist() == [20, 21, 22]


def test_every_place_is_another_sample_in_its_nearest_bucket(tmp_path, opened):
    for seed, number in enumerate((7, 1, 30)):
        write_tar(tmp_path / "tars" / f"{seed}.tar", pictures(number, seed))
    for key, members in pictures(12, 9).items():
        for suffix, data in members.items():
            data = json.dumps(data).encode() if suffix == "json" else data
            (tmp_path / f"{key}.{suffix}").write_bytes(data.encode() if isinstance(data, str) else data)
    source = opened(tmp_path / "tars" / "*.tar", tmp_path)
    assert source.counts().shape == (4, 4)  # the folder holds the same tars and twelve pictures
    assert source.counts().sum(axis=0).tolist() == [7, 1, 30, 12]
    keys = set()
    for bucket, shard, index in places(source):
        raw = source.read(bucket, shard, index)
        keys.add(raw.key)
        width, height = Image.open(io.BytesIO(media(raw))).size
        distances = [abs(math.log(width / height * h / w)) for h, w in BUCKETS]
        assert distances[bucket] == pytest.approx(min(distances))
    assert len(keys) == 50
    with pytest.raises(IndexError):
        source.read(0, 0, source.counts()[0, 0])
    with pytest.raises(IndexError):
        source.read(0, 0, -1)


def test_nearest_bucket_is_symmetric_and_the_first_for_unknown_sizes():
    sizes = [(576, 320), (448, 384), (384, 448), (320, 576), (1000, 10), (10, 1000), (0, 0), (7, 0), (64, 64)]
    assert nearest_buckets(np.array(sizes), BUCKETS).tolist() == [0, 1, 2, 3, 0, 3, 0, 0, 1]


def test_nearest_bucket_is_the_one_that_frames_are_cut_to():
    sizes = np.random.default_rng(0).integers(1, 300, (500, 2))
    expected = [buckets.nearest(height, width, BUCKETS) for width, height in sizes.tolist()]
    assert nearest_buckets(sizes, BUCKETS).tolist() == expected


def test_an_index_is_kept_and_made_anew_when_the_tar_changes(tmp_path, opened):
    path = write_tar(tmp_path / "0.tar", pictures(9))
    before = read_all(opened(path))
    time, data = path.stat().st_mtime_ns, bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    for header in headers[1:]:  # a walk over the tar would now end after its first member
        data[header : header + 512] = b"?" * 512
    path.write_bytes(data)
    os.utime(path, ns=(time, time))
    assert read_all(opened(path)) == before
    os.utime(path)
    with pytest.raises(ValueError, match="cut within its first sample|no caption"):
        opened(path)
    write_tar(path, pictures(4))
    source = opened(path)
    assert source.counts().sum() == 4

    (tmp_path / "0.index.npz").write_bytes(b"PK\x03\x04 cut")
    shutil.rmtree(tmp_path / "cache")
    assert opened(path).counts().sum() == 4
    with np.load(tmp_path / "0.index.npz") as index:  # mended, and not a pickle
        assert len(index["keys"]) == 4

    write_tar(path, pictures(5))
    with pytest.raises(BadSample, match="changed"):
        pickle.loads(pickle.dumps(source)).read(*places(source)[0])


def test_an_index_that_cannot_lie_beside_its_tar_lies_in_the_cache(tmp_path, opened):
    path = write_tar(tmp_path / "0.tar", pictures(3))
    (tmp_path / "0.index.npz").mkdir()  # in the way, for root too
    opened(path)
    assert len(list((tmp_path / "cache").glob("*.index.npz"))) == 1
    time = path.stat().st_mtime_ns
    path.write_bytes(bytes(path.stat().st_size))
    os.utime(path, ns=(time, time))
    assert opened(path).counts().sum() == 3
    assert not list(tmp_path.rglob(".partial*"))


def test_counts_are_kept_for_the_same_tars_and_thresholds_only(tmp_path, opened, caplog):
    for seed in range(3):
        write_tar(tmp_path / f"{seed}.tar", pictures(10, seed))
    (tmp_path / "3.tar").touch()
    first = opened(tmp_path / "*.tar", at_least={"aesthetic": 4})
    for index in tmp_path.glob("*.index.npz"):
        index.unlink()
    caplog.clear()
    again = opened(tmp_path / "*.tar", at_least={"aesthetic": 4})
    assert not list(tmp_path.glob("*.index.npz"))  # nothing was opened
    assert (again.counts() == first.counts()).all() and "3.tar: cannot be read: empty file" in caplog.text
    assert read_all(again) == read_all(first)
    assert opened(tmp_path / "*.tar", at_least={"aesthetic": 2}).counts().sum() > first.counts().sum()
    write_tar(tmp_path / "3.tar", pictures(6, 3))
    assert opened(tmp_path / "*.tar").counts().sum(axis=0).tolist() == [10, 10, 10, 6]


def test_many_may_index_the_same_tars_at_once(tmp_path, opened):
    for seed in range(4):
        write_tar(tmp_path / f"{seed}.tar", pictures(10, seed))
    with ThreadPoolExecutor(6) as pool:
        counts = list(pool.map(lambda _: opened(tmp_path / "*.tar").counts(), range(6)))
    assert all((c == counts[0]).all() for c in counts) and counts[0].sum() == 40
    assert not list(tmp_path.rglob(".partial*"))


def test_every_process_begins_elsewhere_and_counts_the_same(tmp_path, opened, monkeypatch):
    for seed in range(5):
        write_tar(tmp_path / f"{seed}.tar", pictures(2 * seed + 1, seed))
    alone = opened(tmp_path / "*.tar").counts()
    monkeypatch.setattr(distributed, "processes", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shutil.rmtree(tmp_path / "cache")
        assert (opened(tmp_path / "*.tar").counts() == alone).all()


def test_of_a_cut_tar_the_whole_samples_count(tmp_path, opened, caplog):
    whole = write_tar(tmp_path / "whole.tar", pictures(6))
    ends = {}
    with tarfile.open(whole) as tar:
        for member in tar:
            ends[member.name.split(".")[0]] = member.offset_data + member.size
    data = whole.read_bytes()
    rng = random.Random(0)
    edges = [end + shift for end in ends.values() for shift in (-1, 0, 1, 512 - end % 512)]
    for cut in [*edges, *(rng.randrange(min(ends.values()), len(data)) for _ in range(40))]:
        path = tmp_path / "cut.tar"
        path.write_bytes(data[:cut])
        expected = [key for key, end in ends.items() if end <= cut]
        caplog.clear()
        if not expected:
            with pytest.raises(ValueError, match="cut.tar, got nothing and no picture .*cut"):
                opened(path)
            continue
        source = opened(path)
        assert sorted(raw.key for raw in read_all(source)) == [f"cut.tar:{key}" for key in expected]
        if data[cut:].strip(b"\0"):
            assert f"cut or damaged after {len(expected)} whole samples" in caplog.text


def test_shards_that_cannot_be_read_are_passed_over(tmp_path, opened, caplog):
    write_tar(tmp_path / "0.tar", pictures(3))
    (tmp_path / "1.tar").touch()
    (tmp_path / "2.tar").write_bytes(np.random.default_rng(0).bytes(5000))
    with tarfile.open(tmp_path / "3.tar", "w:gz") as tar:
        tar.add(tmp_path / "0.tar")
    source = opened(tmp_path / "{0..5}.tar")
    assert source.counts().sum(axis=0).tolist() == [3, 0, 0, 0]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "2 files of" in warnings[0] and "4.tar" in warnings[0]
    assert [Path(line.split(": ")[0]).name for line in warnings[1:]] == ["1.tar", "2.tar", "3.tar"]
    with pytest.raises(ValueError, match=r"got nothing and no picture \(cannot be read: empty file\)"):
        opened(tmp_path / "1.tar", tmp_path / "2.tar")
    (tmp_path / "0.tar").unlink()
    with pytest.raises(BadSample, match=r"0\.tar:.*No such file"):
        source.read(*places(source)[0])


def test_captions_may_lie_in_any_member_or_in_the_json(tmp_path, opened):
    sample = {"jpg": jpeg(64, 64), "txt": "alt", "blip.txt": "long", "json": {"caption": "short"}}
    path = write_tar(tmp_path / "0.tar", {"a": sample})
    got = {key: read_all(opened(path, caption=key))[0].caption for key in ("txt", "blip.txt", "json:caption")}
    assert got == {"txt": "alt", "blip.txt": "long", "json:caption": "short"}


def test_names_that_are_no_samples_or_not_in_order(tmp_path, opened):
    def add(tar, name, data):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))

    long = "a folder.v2/" + "x" * 180
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("README", ".hidden", "folder/._a.jpg", "folder.d"):
            add(tar, name, b"?")
        tar.addfile(tarfile.TarInfo("empty.jpg"))  # of zero bytes: the decoder's to judge
        for name in ("b", "a", long, "ü"):
            add(tar, f"{name}.JPG", jpeg(64, 64) + name.encode())
        for name in ("a", long, "ü", "b", "empty"):
            add(tar, f"{name}.txt", b"replaced" if name == "b" else name.encode())
        add(tar, "b.txt", b"b")
    raws = read_all(opened(tmp_path / "0.tar"))
    assert {raw.key.split(":")[1]: raw.caption for raw in raws} == {
        k: k for k in ("b", "a", long, "ü", "empty")
    }
    assert all(raw.media.endswith(raw.caption.encode()) for raw in raws if raw.media)


def test_thresholds_are_those_of_a_plain_filter(tmp_path, opened):
    rng = random.Random(0)
    values = [0, 1, 2.5, 5.1, -3, True, False, None, "4", math.nan, math.inf, 10**400, [3], {"x": 3}]
    samples = {}
    for index in range(200):
        names = [name for name in ("a", "b", "width", "motion score") if rng.random() < 0.8]
        meta = {name: rng.choice(values) for name in names}
        samples[f"{index:04d}"] = {"jpg": jpeg(64, 64), "txt": "x", "json": json.dumps(meta).encode()}
    path = write_tar(tmp_path / "0.tar", samples)

    def passes(meta, at_least, at_most):
        def value(name):
            held = meta.get(name)
            finite = isinstance(held, (int, float)) and abs(held) < 1e300
            return held if finite else math.nan

        return all(value(k) >= v for k, v in at_least.items()) and all(
            value(k) <= v for k, v in at_most.items()
        )

    for at_least, at_most in [
        ({"a": 1}, {}),
        ({"a": 5.1}, {}),
        ({}, {"motion score": 0}),
        ({"a": 0, "b": -5}, {"a": 2.5}),
        ({"width": 0}, {"b": 2, "motion score": 5}),
    ]:
        expected = {k for k, m in samples.items() if passes(json.loads(m["json"]), at_least, at_most)}
        got = {r.key[-4:] for r in read_all(opened(path, at_least=at_least, at_most=at_most))}
        assert got == expected and 0 < len(got) < 200


def test_sizes_come_from_the_json_or_from_the_media(tmp_path, opened):
    probed = {"codec_type": "video", "width": 640, "height": 360}
    turned = probed | {"side_data_list": [{"rotation": -90}]}
    clip = CLIPS["carphone_pristine.mp4"].read_bytes()
    streams = [{"codec_type": "audio"}, probed], [turned], [{"codec_type": "audio"}], "?"
    clips = {
        f"{index}": {"mp4": clip, "txt": "x", "json": {"video_metadata": {"streams": held}}}
        for index, held in enumerate(streams)
    }
    clips["4"] = {"mp4": clip, "txt": "x", "json": {"width": 300, "height": 300.0}}
    clips["5"] = {"mp4": clip, "txt": "x", "json": {"width": None, "height": 300}}
    clips["6"] = {"mp4": clip[:1000], "txt": "x"}
    source = opened(write_tar(tmp_path / "0.tar", clips), kind="clip", buckets=((64, 64), *BUCKETS))
    got = {raw.key[-1]: place[0] for place in places(source) for raw in [source.read(*place)]}
    # 176 x 144 is nearest to 448 x 384; what cannot be measured is in the first bucket
    assert got == {"0": 1, "1": 4, "2": 2, "3": 2, "4": 0, "5": 2, "6": 0}


class Places(torch.utils.data.Dataset):
    def __init__(self, source):
        self.source, self.places = source, places(source)

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        raw = self.source.read(*self.places[index])
        return raw.key, media(raw)


@pytest.fixture
def sigchld():
    """PyTorch's DataLoader leaves a handler behind, which would raise in whatever test comes next."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same(tmp_path, opened, sigchld, start):
    for seed in range(3):
        write_tar(tmp_path / f"{seed}.tar", pictures(40, seed))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.jpg").write_bytes(jpeg(64, 64))
    (tmp_path / "own" / "a.txt").write_text("loose")
    source = opened(tmp_path / "*.tar", tmp_path / "own")
    source.read(*places(source)[0])  # a shard is open when the workers start
    dataset = Places(source)
    loader = torch.utils.data.DataLoader(dataset, None, num_workers=1, multiprocessing_context=start)
    assert [tuple(pair) for pair in loader] == [dataset[index] for index in range(len(dataset))]


def test_memory_holds_few_shards(tmp_path, opened, monkeypatch):
    monkeypatch.setattr("training.data.sources.HELD", 3)
    for seed in range(6):
        write_tar(tmp_path / f"{seed}.tar", pictures(8, seed))
    source = opened(tmp_path / "*.tar")
    order = places(source)
    random.Random(1).shuffle(order)
    assert len({source.read(*place).key for place in order}) == 48
    assert len(source._held) == 3
    assert len(pickle.dumps(source)) < 4000


def test_a_repeated_scan_is_the_same_index(tmp_path):
    path = write_tar(tmp_path / "0.tar", pictures(5, sizes=False))
    made, kept = (tars.open_tar(path, tmp_path) for _ in range(2))
    for a, b in zip((made, made.facts), (kept, kept.facts), strict=True):
        for name, value in vars(a).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, getattr(b, name))
                assert value.dtype == getattr(b, name).dtype
            elif name != "facts":
                assert value == getattr(b, name)
    assert (made.facts.sizes > 0).all()

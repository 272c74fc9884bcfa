"""Prepared data after kills, a full disk, a second run, by several processes: whole, and nothing twice."""

import dataclasses
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from filelock import FileLock
from preparing import (
    command,
    contents,
    environment,
    make_config,
    make_raw,
    run,
)
from processes import torchrun

from training import distributed
from training.data.config import SourceConfig
from training.data.encode import Encoder
from training.data.output import verify
from training.prepare import WorkConfig


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    return make_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture
def config(raw, tmp_path, small_checkpoint, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_config(small_checkpoint, tmp_path / "out", raw / "clips" / "*.tar")


# Many processes, cut runs


def test_every_process_writes_its_share(config, monkeypatch):
    """Two processes, one after the other; the number of processes does not show in the names of shards."""
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    written = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        run(config)
        written.append({path.name for path in config.out.glob("clips/*.tar")})
    assert written == [{"00000.tar", "00002.tar"}, {f"{shard:05d}.tar" for shard in range(3)}]
    monkeypatch.undo()
    before = contents(config.out)
    assert run(config).samples == 12 and contents(config.out) == before


@pytest.mark.slow
def test_two_processes_write_what_one_does(config, tmp_path):
    run(config)
    two = dataclasses.replace(config, out=tmp_path / "two")
    torchrun(*command(two), threads=torch.get_num_threads())
    assert contents(two.out) == contents(config.out)
    assert len(list(two.out.glob("clips/*.tar"))) == 3


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(config, tmp_path):
    run(config)
    cut = dataclasses.replace(config, out=tmp_path / "cut")
    rng, kills, finished = random.Random(0), 0, {}
    for attempt in range(9):
        process = subprocess.Popen([sys.executable, *command(cut), "slowly"], env=environment())
        wanted = len(finished) + attempt % 3 // 2  # every third time a tar more than before
        while process.poll() is None:
            tars = len(list(cut.out.glob("clips/[!.]*.tar")))
            if tars > wanted or tars == wanted and list(cut.out.glob("clips/.partial_*")):
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        tars = {path: path.stat() for path in cut.out.glob("clips/[!.]*.tar")}
        for path, stat in finished.items():  # what was finished before is not even written again
            assert (tars[path].st_ino, tars[path].st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
        finished = tars
        assert verify(cut.out, progress=False) == []
        if process.returncode == 0:
            break
    assert kills >= 3 and finished
    run(cut)
    for path, stat in finished.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    assert contents(cut.out) == contents(config.out)


def test_a_finished_folder_is_left_as_it_is(config):
    first = run(config)
    before = {path: path.stat().st_mtime_ns for path in config.out.rglob("*.tar")}
    assert run(config) == first
    assert {path: path.stat().st_mtime_ns for path in config.out.rglob("*.tar")} == before


def test_other_settings_shards_and_weights_are_refused(raw, config, tmp_path):
    run(config)
    before = contents(config.out)
    for changes, named in {
        "fps": ({"fps": 4.0}, "settings.fps"),
        "frames": ({"frames": 9}, "settings.frames"),
        "dtype": ({"dtype": "float32"}, "settings.dtype"),
        "precision": ({"work": WorkConfig(precision="bfloat16")}, "settings.precision"),
        "caption": (
            {"clips": dataclasses.replace(config.clips, caption="json:caption")}, "settings.clips.caption"
        ),
        "base": ({"base": "built-in"}, "weights.image_encoder"),
        "shards": ({"clips": SourceConfig((str(raw / "clips" / "part-1.tar"),))}, "shards.clips"),
    }.values():  # fmt: skip
        with pytest.raises(ValueError, match=f"holds data of other settings or shards .*{named}"):
            run(dataclasses.replace(config, **changes))
    assert contents(config.out) == before
    shutil.copytree(raw / "clips", tmp_path / "moved")
    run(
        dataclasses.replace(
            config, clips=SourceConfig((str(tmp_path / "moved"),)), work=WorkConfig(workers=1)
        )
    )
    assert contents(config.out) == before


def test_a_second_run_in_the_same_folder_is_refused(config, monkeypatch):
    """Also while any process of the first is still at work."""
    started, encode = [], Encoder.__call__

    def encode_and_start_again(self, samples):
        if not started:
            started.append(True)
            with pytest.raises(ValueError, match="another run is at work in"):
                run(config)
        return encode(self, samples)

    monkeypatch.setattr(Encoder, "__call__", encode_and_start_again)
    assert run(config).shards == 3 and started
    with FileLock(config.out / ".lock_1"):  # of a process that is not the first of its run
        with pytest.raises(ValueError, match="another run is at work in"):
            run(config)
    assert run(config).shards == 3


def test_a_full_disk_leaves_only_whole_shards(config):
    """A limit on the size of a file in place of a full disk; the second, larger tar meets it."""
    free = dataclasses.replace(config, out=config.out / "free")
    run(free)
    sizes = sorted(path.stat().st_size for path in free.out.glob("clips/*.tar"))
    full = dataclasses.replace(config, out=config.out / "full")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[0] // 2, limits[1]))
    try:
        with pytest.raises(ValueError, match="tar cannot be written .*make room and run it again"):
            run(full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in full.out.rglob("*") if not p.name.startswith(".lock")) == [
        "clips", "prepared.json",
    ]  # fmt: skip
    run(full)
    assert contents(full.out) == contents(free.out)


def test_verify_finds_what_was_changed(config):
    run(config)
    assert verify(config.out, progress=False) == []
    tars = sorted(config.out.glob("clips/*.tar"))
    data = bytearray(tars[0].read_bytes())
    data[len(data) // 2] ^= 1  # one bit
    tars[0].write_bytes(data)
    tars[1].unlink()
    tars[2].with_suffix(".json").unlink()
    problems = verify(config.out, progress=False)
    for tar, reason in zip(tars, ("not what was written", "missing", "has no checksum"), strict=True):
        assert any(str(tar) in problem and reason in problem for problem in problems), reason
    assert len(problems) == 3
    tars[0].unlink()  # as the sentence says
    assert run(config).shards == 3 and verify(config.out, progress=False) == []
    with pytest.raises(ValueError, match="prepare the data first"):
        verify(config.out.parent / "elsewhere")

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from univid import video
from univid.files import output
from univid.signals import Stopped, stoppable

ROOT = Path(__file__).parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="needs what POSIX has")


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Files


def test_a_file_appears_when_it_is_complete_and_the_old_one_stays_until_then(tmp_path):
    path = tmp_path / "new" / "folder" / "f.bin"
    for content in ("first", "second"):
        with output.new_file(path) as temporary:
            temporary.write_text(content)
            assert temporary.parent == path.parent
            assert (path.read_text() if path.exists() else None) in (None, "first")
        assert path.read_text() == content
    assert listing(tmp_path) == ["new", "new/folder", "new/folder/f.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("new", [output.new_file, output.new_folder])
def test_what_breaks_off_leaves_nothing(tmp_path, error, new):
    kept = tmp_path / "kept"
    kept.write_text("old")
    paths = [tmp_path / "a" / "b" / "c", *([kept] if new is output.new_file else [])]
    for path in paths:
        with pytest.raises((ValueError, KeyboardInterrupt, SystemExit)), new(path) as temporary:
            (temporary / "f" if temporary.is_dir() else temporary).write_text("half")
            raise error
    assert listing(tmp_path) == ["kept"] and kept.read_text() == "old"


def test_a_full_disk_is_one_sentence_that_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"f cannot be written \(No space left on device\); make room\."):
        with output.new_file(tmp_path / "f"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ValueError, match="will take 1000000.00 GB, but .* GB are free"):
        output.check_file(tmp_path / "f", size=10**15)
    with pytest.raises(ValueError, match="will take 1000000.00 GB, but .* GB are free"):
        output.check_folder(tmp_path / "f", size=10**15)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["a" * 255, "a" * 246, "é" * 127 + "a", "日" * 85, "10:30.mp4", "tcp:9", "-"]
)
def test_every_name_that_the_file_system_takes(tmp_path, name):
    output.check_file(tmp_path / name)
    with output.new_file(tmp_path / name) as temporary:
        temporary.write_text("x")
    (tmp_path / name).unlink()
    output.check_folder(tmp_path / name)
    with output.new_folder(tmp_path / name) as folder:
        (folder / "f").write_text("x")
    assert listing(tmp_path) == [name, f"{name}/f"]


@pytest.mark.parametrize("name", ["a" * 256, "é" * 128, "a/" + "b" * 256, "a" * 256 + "/b"])
def test_names_that_are_too_long_are_refused_before_the_work(tmp_path, name):
    for check in (output.check_file, output.check_folder):
        with pytest.raises(ValueError, match="File name too long"):
            check(tmp_path / name)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/x.mp4", "tcp://h:1", "s3://b/c", "file:///x", "a+b://c"]
)
def test_an_address_is_no_path(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    for use in (output.check_file, output.check_folder):
        with pytest.raises(ValueError, match="on this machine"):
            use(address)
    with pytest.raises(ValueError, match="on this machine"), output.new_file(address):
        pass
    with pytest.raises(ValueError, match="can be called"):
        output.check_file("a\0b")
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["tcp:127.0.0.1:9.mp4", "http:.gif", "concat:a.webm", "pipe:1.mp4", "%03d.mp4"]
)
def test_an_encoder_sees_no_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    video.write_video(torch.zeros(1, 3, 2, 16, 16), name, 8)
    assert listing(tmp_path) == [name] and Path(name).stat().st_size > 200


@posix
def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with output.new_file(tmp_path / "f") as temporary:
            temporary.write_text("x")
        with output.new_folder(tmp_path / "d") as folder:
            (folder / "f").write_text("x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("f", "d", "d/f")]
    assert modes == [0o640, 0o750, 0o640]


@posix
def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    for name in ("there", "absent"):
        (tmp_path / name).symlink_to(tmp_path / "far" / name)
    (tmp_path / "far" / "there").write_text("old")
    for name in ("there", "absent"):
        output.check_file(tmp_path / name)
        with output.new_file(tmp_path / name) as temporary:
            temporary.write_text("new")
        assert (tmp_path / name).is_symlink() and (tmp_path / "far" / name).read_text() == "new"
    assert listing(tmp_path) == ["absent", "far", "far/absent", "far/there", "there"]


@posix
def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    before = listing(tmp_path)
    for name, words in (
        ("pipe", "device or pipe"),
        ("null", "device or pipe"),
        ("folder", "add a file name"),
    ):
        for use in (output.check_file, lambda path: output.new_file(path).__enter__()):
            with pytest.raises(ValueError, match=words):
                use(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be written"):
        output.check_file(tmp_path / "loop")
    with pytest.raises(ValueError, match="is a file"):
        output.check_folder(tmp_path / "pipe")
    with pytest.raises(ValueError, match="Not a directory"):
        output.check_file(tmp_path / "pipe" / "f")
    assert listing(tmp_path) == before and stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_what_is_protected_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "f").write_text("old")
    monkeypatch.setattr(output.os, "access", lambda path, mode: not (mode & os.W_OK))  # root may everything
    with pytest.raises(ValueError, match="protected"):
        output.check_file(tmp_path / "f")


@posix
def test_an_input_is_not_replaced(tmp_path):
    source = tmp_path / "source"
    (source / "unet").mkdir(parents=True)
    for name in ("v.mp4", "source/unet/w"):
        (tmp_path / name).write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "v.mp4")
    os.link(tmp_path / "v.mp4", tmp_path / "hard")
    (tmp_path / "around").symlink_to(source)
    inputs = [None, "built-in", tmp_path / "v.mp4", source]
    for name in ("v.mp4", "link", "hard", "source/unet/w", "around/unet/w", "source/../v.mp4"):
        with pytest.raises(ValueError, match="is read too"):
            output.check_file(tmp_path / name, inputs)
    for name in ("other.mp4", "source/new"):
        output.check_file(tmp_path / name, inputs)
    (tmp_path / "other.mp4").write_text("not an input")
    output.check_file(tmp_path / "other.mp4", inputs)


# Folders


def test_a_folder_appears_whole(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "a/b"):
        with output.new_folder(tmp_path / name) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "f").write_text("x")
            assert not (tmp_path / name / "sub").exists()
        assert listing(tmp_path / name) == ["sub", "sub/f"]
    assert not [name for name in listing(tmp_path) if "partial" in name]
    with pytest.raises(ValueError, match="already holds files"):
        output.check_folder(tmp_path / "new")
    with pytest.raises(ValueError, match="already holds files"), output.new_folder(tmp_path / "new"):
        pass


def test_files_join_a_folder_all_or_none(tmp_path, monkeypatch):
    place = tmp_path / "demo"
    place.mkdir()
    (place / "mine").write_text("mine")
    (place / "b").write_text("old")
    with output.new_folder(place, add=True) as folder:
        for name in "ab":
            (folder / name).write_text("new")
        assert (place / "b").read_text() == "old" and not (place / "a").exists()
    assert {p.name: p.read_text() for p in place.iterdir()} == {"mine": "mine", "a": "new", "b": "new"}

    (place / "a").unlink()
    replace, moved = os.replace, []

    def once(source, target):
        if moved:
            raise OSError(errno.EIO, "broken")
        moved.append(target)
        replace(source, target)

    monkeypatch.setattr(output.os, "replace", once)
    with pytest.raises(ValueError, match="broken"), output.new_folder(place, add=True) as folder:
        for name in "ac":
            (folder / name).write_text("newer")
    assert moved and {p.name: p.read_text() for p in place.iterdir()} == {"mine": "mine", "b": "new"}


# Signals

WRITER = """
import sys, time
from univid.files import output
from univid.signals import Stopped, stoppable
from univid.signals import stoppable
new = {"file": output.new_file, "folder": output.new_folder}[sys.argv[1]]
try:
    with stoppable(), new(sys.argv[2]) as temporary:
        (temporary / "f" if temporary.is_dir() else temporary).write_bytes(b"half")
        print("writing", flush=True)
        time.sleep(60)
except KeyboardInterrupt as stop:
    sys.exit(stop.status)
"""


@posix
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_nothing(tmp_path, name, times, kind):
    words = [sys.executable, "-c", WRITER, kind, tmp_path / "a" / "out"]
    # A shell starts background jobs deaf to Ctrl-C; here the program shall hear it all the same.
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, preexec_fn=hear) as process:
        assert process.stdout.readline() == b"writing\n" and len(listing(tmp_path)) > 1
        for _ in range(times):
            process.send_signal(getattr(signal, name))
            time.sleep(0.01)
        number = getattr(signal, name)  # while Python ends, it no longer handles signals
        assert process.wait(timeout=60) in ((128 + number,) if times == 1 else (128 + number, -number))
    assert listing(tmp_path) == []


@pytest.fixture
def handlers():
    """Gives back those of signals, as a program that is told to stop keeps `stoppable`'s to its end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@posix
def test_a_signal_in_the_middle_of_a_check_leaves_nothing(tmp_path, monkeypatch, handlers):
    def opened(*args):
        file = open(*args)
        os.kill(os.getpid(), signal.SIGTERM)
        return file

    monkeypatch.setattr(output, "open", opened, raising=False)
    with pytest.raises(Stopped) as stop, stoppable():
        output.check_file(tmp_path / "clip.mp4")
    assert stop.value.status == 128 + signal.SIGTERM and not list(tmp_path.iterdir())


def test_a_signal_that_is_ignored_stays_ignored():
    code = """
import os, signal
from univid.signals import stoppable
signal.signal(signal.SIGHUP, signal.SIG_IGN)
before = signal.getsignal(signal.SIGTERM)
with stoppable():
    os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGTERM) is not before
assert signal.getsignal(signal.SIGTERM) is before
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "alive\n", done.stderr

"""The door for weights: what a .safetensors file says is held against its bytes; none is mapped."""

import errno
import os
import subprocess
import sys
from functools import partial

import pytest
import safetensors.torch
import torch
import weight_files
from weight_files import write_header, write_safetensors

from univid.files import regular
from univid.files.weights import HEADER_LIMIT, open_weights

ONE = {"a": ("F32", (1,), (0, 4))}


refused = partial(weight_files.refused, open_weights)


@pytest.mark.parametrize(
    ("entries", "data"),
    [
        (ONE | {"b": ("F32", (1,), (0, 4))}, bytes(4)),  # on the same bytes
        (ONE | {"b": ("F32", (1,), (2, 6))}, bytes(6)),
        (ONE | {"b": ("F32", (1,), (8, 12))}, bytes(12)),  # a hole
        ({"a": ("F32", (1,), (4, 8))}, bytes(8)),
        (ONE, bytes(3)),  # cut
        (ONE, bytes(5)),  # longer than it says
        ({"a": ("F32", (2,), (0, 4))}, bytes(4)),  # lies about its size
        ({"a": ("F32", (-1,), (0, 4))}, bytes(4)),
        ({"a": ("F32", (1.5,), (0, 6))}, bytes(6)),
        ({"a": ("F32", (2**33, 2**33), (0, 4))}, bytes(4)),
        ({"a": ("F32", (2**70, 0), (0, 0))}, b""),
        ({"a": ("F33", (1,), (0, 4))}, bytes(4)),
        ({"a": ("F32", (1,), (4, 0))}, bytes(4)),
        ({"a": ("F32", (True,), (0, 4))}, bytes(4)),
        ({"a": ("F32", "1", (0, 4))}, bytes(4)),
    ],
)
def test_headers_that_disagree_with_the_file(tmp_path, entries, data):
    refused(write_safetensors(tmp_path / "f.safetensors", entries, data), "truncated or damaged")


@pytest.mark.parametrize(
    "text",
    [
        b"{" + b" " * 100,
        b'{"a":' * 1000,
        b'{"a":' + b"[" * 10_000,
        b'{"a":' + b"9" * 10_000 + b"}",
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"a":1}}',
        b'{"a":{"dtype":"F32","shape":[1]}}',
        b'{"a":"entry"}',
        b'{"\xff":1}',
        b"{}{}",
    ],
)
def test_headers_that_are_none(tmp_path, text):
    refused(write_header(tmp_path / "f.safetensors", text, bytes(4)), "truncated or damaged")


def test_absurd_headers(tmp_path):
    path = tmp_path / "f.safetensors"
    refused(write_safetensors(path, {"a": ("F32", (0, 2**40), (0, 0))}), "a of type F32 and shape")
    refused(write_safetensors(path, {"a": ("F32", (1,) * 200, (0, 4))}, bytes(4)), "not read here")
    refused(write_safetensors(path, {"a": ("F4", (2,), (0, 1))}, bytes(1)), "a of type F4")
    refused(write_safetensors(path, {"\x1b[2J" * 300: ("F32", (1,), (0, 4))}, bytes(4)), "1,200 characters")
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{" + bytes(100))
    refused(path, f"more than the {HEADER_LIMIT:,}")
    path.write_bytes((2000).to_bytes(8, "little") + b"{" + bytes(100))
    refused(path, "truncated inside its header")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")  # which would wait for a writer for ever
    refused(tmp_path / "pipe.safetensors", "a pipe or device")
    refused("/dev/zero", "a pipe or device")
    refused(tmp_path, "a folder")
    refused(tmp_path / "absent", "No such file")
    (tmp_path / "link.safetensors").symlink_to(write_safetensors(tmp_path / "f", ONE, bytes(4)))
    assert open_weights(tmp_path / "link.safetensors").read("a").tolist() == [0]


def test_what_a_file_is_shows_its_content(tmp_path):
    tensors = {"a": torch.arange(3.0)}
    for name in ("a.ckpt", "a.PTH", "a.bin", "a.SAFETENSORS", "a"):
        safetensors.torch.save_file(tensors, tmp_path / name)
        assert torch.equal(open_weights(tmp_path / name).read("a"), tensors["a"])
    for name in ("b.safetensors", "b.CKPT"):
        torch.save(tensors, tmp_path / name)
        assert torch.equal(open_weights(tmp_path / name).read("a"), tensors["a"])
    for content, word in {
        b"": "is empty",
        b"GGUF....": "a GGUF file",
        b"version https://git-lfs.github.com/spec/v1\n": "Git LFS pointer",
        b"<!DOCTYPE html>": "a web page",
        b"GIF89a": "neither a .safetensors file nor plain weights",
    }.items():
        (tmp_path / "c.ckpt").write_bytes(content)
        refused(tmp_path / "c.ckpt", word)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "f.safetensors"
    tensors = {name: torch.full((1000,), float(i)) for i, name in enumerate("abc")}
    safetensors.torch.save_file(tensors, path)
    opened = open_weights(path)
    assert torch.equal(opened.read("c"), tensors["c"])
    os.truncate(path, path.stat().st_size - 100)
    for name in "abc":
        with pytest.raises(ValueError, match="changed while it was read"):
            opened.read(name)
    safetensors.torch.save_file({"a": torch.zeros(5000)}, tmp_path / "other")
    os.replace(tmp_path / "other", path)
    with pytest.raises(ValueError, match="changed while it was read"):
        opened.read("a")
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        opened.read("a")


def test_a_file_that_is_cut_during_one_read(tmp_path, monkeypatch):
    """A mapped one would end the process here."""
    path = tmp_path / "f.safetensors"
    size = 50_000_000
    write_safetensors(path, {"a": ("U8", (size,), (0, size))}, size)
    opened = open_weights(path)
    identity = regular._identity

    def cut_after(file):
        found = identity(file)
        os.truncate(path, size // 2)
        return found

    monkeypatch.setattr(regular, "_identity", cut_after)
    with pytest.raises(ValueError, match="changed while it was read"):
        opened.read("a")


def test_an_error_of_the_disk_is_a_sentence(tmp_path, monkeypatch):
    opened = open_weights(write_safetensors(tmp_path / "f.safetensors", ONE, bytes(4)))

    def broken(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(regular, "_identity", broken)
    with pytest.raises(ValueError, match="cannot be read .*(Input/output|I/O)"):
        opened.read("a")


MEASURE = """
import resource, sys
import torch
from univid.files.weights import open_weights

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.zeros(1).numpy()
before = peak()
opened = open_weights(sys.argv[1])
total = 0
for name, entry in opened.entries.items():
    total += entry.num_bytes
    assert opened.read(name).float().sum() == 0
print(total, peak() - before)
"""


@pytest.mark.parametrize("name", ["f.safetensors", "f.ckpt", "old.pth"])
def test_memory_is_that_of_one_tensor(tmp_path, name):
    tensors = {f"t{i}": torch.zeros(2_000_000) for i in range(40)}
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(tensors, tmp_path / name)
    else:
        torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=name == "f.ckpt")
    command = [sys.executable, "-c", MEASURE, tmp_path / name]
    total, growth = map(int, subprocess.check_output(command, text=True).split())
    (tmp_path / name).unlink()
    assert total == 320_000_000 and growth < 40_000_000  # one takes 8 MB, and 8 more as float32

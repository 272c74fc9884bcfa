"""PyTorch's own files: what they say is what was saved, no code of theirs runs, nothing is blown up."""

import builtins
import collections
import os
import pickle
import time
import zipfile

import pytest
import torch
import weight_files
from weight_files import Claimed, pickled, write_stream, write_zip

from univid.files.unpickle import MOST_STEPS
from univid.files.weights import open_weights


def refused(path, *words):
    before = time.process_time()
    weight_files.refused(open_weights, path, *words)
    assert time.process_time() - before < 20


def every_kind():
    torch.manual_seed(0)
    shared = torch.randn(10, 4)
    return {
        "float32": torch.randn(3, 5),
        "float16": torch.randn(3).half(),
        "bfloat16": torch.randn(3).bfloat16(),
        "float64": torch.randn(2, 2).double(),
        "float8": torch.randn(8).to(torch.float8_e4m3fn),
        "float8 wide": torch.randn(8).to(torch.float8_e5m2),
        "int64": torch.arange(5),
        "int8": torch.arange(-2, 3).to(torch.int8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
        "turned": torch.randn(4, 6).T,
        "every second": torch.randn(10)[::2],
        "part": shared[3:7],
        "tied": shared,
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "ein Gruß": torch.ones(1),
    }


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.float(), b.float())


@pytest.mark.parametrize(
    "options",
    [{}, {"pickle_protocol": 3}, {"pickle_protocol": 4}, {"pickle_protocol": 5},
     {"_use_new_zipfile_serialization": False}],
)  # fmt: skip
@pytest.mark.parametrize("inside", ["state_dict", "module", None])
def test_what_torch_writes(tmp_path, options, inside):
    tensors = every_kind()
    if "_use_new_zipfile_serialization" in options:  # PyTorch's older format has no 8-bit floats
        tensors = {name: tensor for name, tensor in tensors.items() if "float8" not in name}
    content = tensors if inside is None else {
        inside: collections.OrderedDict(tensors), "epoch": 3, "lr": 1e-4, "betas": (0.9, 0.999), "none": None,
        "size": torch.Size([1, 2]), "type": torch.float16, "device": torch.device("cpu"), "bytes": b"abc",
        "set": {1, 2}, "complex": 1 + 2j, "nested": [{"a": [1, [2]]}], "many": 2**100, "no": False,
        "counter": collections.Counter("aab"), "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
    }  # fmt: skip
    torch.save(content, tmp_path / "f.ckpt", **options)
    opened = open_weights(tmp_path / "f.ckpt")
    assert opened.entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        entry, read = opened.entries[name], opened.read(name)
        assert same(read, tensor.detach()) and read.is_contiguous()
        assert (entry.dtype, entry.shape) == (tensor.dtype, tuple(tensor.shape))
    changed = opened.read("part")
    changed.zero_()
    assert opened.read("part").any()  # memory of its own


def test_names_behind_deepspeed_s_prefix(tmp_path):
    torch.save({"module": {"_forward_module.a.b": torch.ones(2)}}, tmp_path / "f.pt")
    assert list(open_weights(tmp_path / "f.pt").entries) == ["a.b"]


class Call:
    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


CODE = {
    "a call": Call(os.system, "touch hacked"),
    "eval": Call(builtins.eval, "open('hacked', 'w')"),
    "a file": Call(open, "hacked", "w"),
    "an attribute": Call(builtins.getattr, "", "join"),
    "a module": Call(torch.nn.Linear, 2, 2),
    "a state": Call(collections.OrderedDict, state={"run": os.system}),
    "a class of its own": Call,
}


@pytest.mark.parametrize("name", CODE)
@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_no_code_runs(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": {"a": torch.ones(2)}, "x": CODE[name]}
    path = tmp_path / "f.ckpt"
    write_zip(path, pickle.dumps(content | {"state_dict": {}}, protocol))
    refused(path, "plain weights")
    path.write_bytes(pickle.dumps(CODE[name], protocol))
    refused(path, "plain weights")
    torch.save(content, path, _use_new_zipfile_serialization=False)
    refused(path, "more than plain weights")
    torch.save(content, path)
    refused(path, "more than plain weights")
    assert not (tmp_path / "hacked").exists()
    for raw in (b"cos\nsystem\n(S'touch hacked'\ntR.", b"(S'touch hacked'\nios\nsystem\n.",
                b"(cos\nsystem\nS'touch hacked'\no.", b"\x80\x02\x82\x01.", b"P1\n."):  # fmt: skip
        write_zip(path, raw)
        refused(path, "plain weights")
    assert not (tmp_path / "hacked").exists()


def test_code_that_is_named_has_its_name_in_the_message(tmp_path):
    torch.save({"a": Call(os.system, "true")}, tmp_path / "f.ckpt")
    refused(tmp_path / "f.ckpt", f"{os.name}.system")


def zip_of(path, claims, size=400, **more):
    """Tensors as claimed, over one storage "0" of zeros."""
    return write_zip(path, pickled(claims), {"0": bytes(size)}, **more)


CLAIMS = {  # of a storage that has 100 numbers
    "more than there is": {"a": Claimed("0", 10**6, (10**6,))},
    "a storage that is not there": {"a": Claimed("1", 100, (100,))},
    "behind the end": {"a": Claimed("0", 100, (100,), offset=1)},
    "more than the storage says": {"a": Claimed("0", 50, (100,))},
    "the same number often": {"a": Claimed("0", 100, (1000, 1000), (0, 0))},
    "rows on each other": {"a": Claimed("0", 100, (50, 50), (1, 1))},
    "the same bytes often": {f"a{i}": Claimed("0", 100, (100,)) for i in range(9)},
    "backwards": {"a": Claimed("0", 100, (100,), (-1,), offset=99)},
    "a stride too few": {"a": Claimed("0", 100, (10, 10), (10,))},
    "absurd": {"a": Claimed("0", 100, (2**62,), (0,))},
    "an offset below": {"a": Claimed("0", 100, (10,), offset=-4)},
    "dimensions": {"a": Claimed("0", 100, (1,) * 40)},
    "text": {"a": Claimed("0", "many", (100,))},
    "a claim of 2^80": {"a": Claimed("0", 2**80, (2**80,), (1,))},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_are_held_against_the_bytes(tmp_path, claim):
    refused(zip_of(tmp_path / "f.ckpt", CLAIMS[claim]))
    storages = {"0": (100, bytes(400))}
    refused(write_stream(tmp_path / "f.pth", CLAIMS[claim], storages))
    fitting = {"a": Claimed("0", 100, (10, 10), (1, 10)), "b": Claimed("0", 100, (99,), offset=1)}
    assert open_weights(zip_of(tmp_path / "f.ckpt", fitting)).read("a").shape == (10, 10)
    assert open_weights(write_stream(tmp_path / "f.pth", fitting, storages)).read("b").shape == (99,)


def test_zip_files_that_are_blown_up(tmp_path):
    path, claims = tmp_path / "f.ckpt", {"a": Claimed("0", 10**8, (10**8,))}
    refused(zip_of(path, claims, 4 * 10**8, compression=zipfile.ZIP_DEFLATED), "compressed")
    assert path.stat().st_size < 10**6
    path = tmp_path / "overlapping.ckpt"  # two records of the directory on the same bytes
    write_zip(path, pickled({"a": Claimed("0", 100, (100,))}), {"0": bytes(400), "1": bytes(400)})
    data = bytearray(path.read_bytes())
    first, second = (data.index(b"PK\x01\x02", data.index(b"archive/data/0", 500) - 60), 0)
    second = data.index(b"PK\x01\x02", first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    path.write_bytes(data)
    refused(path, "on the same bytes")


def test_other_zip_files(tmp_path):
    path, good = tmp_path / "f.ckpt", pickled({"a": Claimed("0", 1, (1,))})
    refused(write_zip(path, good, {"0": bytes(4)}, {"archive/constants.pkl": b""}), "TorchScript")
    refused(write_zip(path, good, {"0": bytes(4)}, {"archive/byteorder": b"big"}), "order of bytes")
    refused(write_zip(path, good, {"0": bytes(4)}, {"other/data.pkl": good}), "plain weights")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("word/document.xml", "x")
    refused(path, "plain weights")
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning):
        file.writestr("archive/data.pkl", good)
        file.writestr("archive/data.pkl", good)
    refused(path, "plain weights")
    turned = write_stream(path, {"a": Claimed("0", 1, (1,))}, {"0": (1, bytes(4))}, order=False)
    refused(turned, "order of bytes")
    refused(write_stream(path, {"a": Claimed("0", 9, (9,))}, {"0": (9, bytes(4))}), "truncated")


def text(size):
    return b"X" + size.to_bytes(4, "little") + b"x" * size


def number(size):
    return b"\x8b" + size.to_bytes(4, "little") + b"\x01" * size


APPLY = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00"
BOMBS = {
    "many steps": b"N0" * MOST_STEPS + b"N.",
    "a far place in the memory": b"Nr\xff\xff\xff\xff.",
    "a long text": b"\x8d" + (2**60).to_bytes(8, "little") + b"x.",
    "a long number": b"\x8b\xff\xff\xff\x7f.",
    "deep lists": b"]" * 500_000 + b"a" * 499_999 + b".",
    "deep tuples as keys": b"})" + b"q\x00h\x00\x86" * 60 + b"Ns.",
    "long keys that are equal": b"}" + text(4 * 10**6) + b"q\x00Ns" + text(4 * 10**6) + b"q\x01Ns"
    + b"h\x00Nsh\x01Ns" * 10**5 + b".",
    "numbers as keys": b"}" + number(10**6) + b"q\x00Ns" + b"h\x00Ns" * 10**5 + b".",
    "calls of calls": APPLY + b"h\x00N)N(" * 2000 + b"t" * 10 + b"R.",
    "many arguments": b"cbuiltins\nset\nq\x00(" + b"N" * 10**6 + b"tq\x01" + b"h\x00h\x01R0" * 10**5 + b"N.",
    "no end": b"]" * 100,
    "an empty stack": b".",
    "an unknown step": b"\xff.",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_pickles_that_take_time_or_memory(tmp_path, bomb):
    path = write_zip(tmp_path / "f.ckpt", b"\x80\x02" + BOMBS[bomb])
    try:
        assert not open_weights(path).entries
    except ValueError:
        refused(path)
    (tmp_path / "f.pth").write_bytes(b"\x80\x02" + BOMBS[bomb])
    refused(tmp_path / "f.pth")

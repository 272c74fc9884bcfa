"""The weights of a part of a diffusers folder: which file counts, and models in pieces with an index."""

import json
import os
from functools import partial

import pytest
import torch
import weight_files
from safetensors.torch import save_file

from univid.files.folder import open_folder


@pytest.fixture
def part(tmp_path):
    folder = tmp_path / "unet"
    folder.mkdir()
    return folder


def put(folder, name, value=0.0, tensor="a"):
    tensors = {tensor: torch.tensor([value])}
    torch.save(tensors, folder / name) if name.endswith(".bin") else save_file(tensors, folder / name)


refused = partial(weight_files.refused, open_folder)


ORDER = [  # from the one that counts most
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.non_ema.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
]


def test_which_file_counts(part):
    others = ["lora.safetensors", "a.safetensors", "b.bin", "diffusion_pytorch_model.safetensors.part"]
    for name in (*others, "pytorch_lora_weights.safetensors", "diffusion_flax_model.msgpack"):
        put(part, name, -1.0)
    refused(part, "holds no diffusion_pytorch_model.safetensors", "a.safetensors, b.bin, lora.safetensors")
    for number, name in reversed(list(enumerate(ORDER))):
        put(part, name, float(number))
        assert open_folder(part).read("a").item() == number, name


def test_none(tmp_path, part):
    refused(part, "holds no diffusion_pytorch_model.safetensors; give")
    refused(tmp_path / "vae", "holds no diffusion_pytorch_model.safetensors; give")
    put(part, "diffusion_pytorch_model-00001-of-00002.safetensors")  # without its index
    refused(part, "diffusion_pytorch_model-00001-of-00002.safetensors")


def index(folder, listed, name="diffusion_pytorch_model.safetensors.index.json"):
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": listed}))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("diffusion_pytorch_model.safetensors.index.json", "safetensors"),
        ("diffusion_pytorch_model.safetensors.index.fp16.json", "safetensors"),
        ("diffusion_pytorch_model.fp16.safetensors.index.json", "safetensors"),
        ("diffusion_pytorch_model.bin.index.json", "bin"),
        ("model.safetensors.index.json", "safetensors"),
        ("pytorch_model.bin.index.json", "bin"),
    ],
)
def test_a_model_in_pieces(part, name, kind):
    files = [f"diffusion_pytorch_model-0000{i}-of-00002.{kind}" for i in (1, 2)]
    for number, file in enumerate(files):
        put(part, file, float(number), tensor="ab"[number])
    index(part, {"a": files[0], "b": files[1]}, name)
    opened = open_folder(part)
    assert list(opened.entries) == ["a", "b"] and [opened.read(n).item() for n in "ab"] == [0.0, 1.0]
    os.truncate(part / files[1], 20)
    with pytest.raises(ValueError, match="changed while it was read"):
        opened.read("b")
    with pytest.raises(ValueError):
        open_folder(part)


def test_pieces_may_be_links(tmp_path, part):
    """As the cache of Hugging Face has them."""
    put(tmp_path, "blob.safetensors", 3.0)
    (part / "x.safetensors").symlink_to("../blob.safetensors")
    index(part, {"a": "x.safetensors"})
    assert open_folder(part).read("a").item() == 3.0


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "x/../../secret.safetensors", "..", ".", "", "sub/a.safetensors",
     "..\\secret.safetensors", "C:\\a.safetensors", "a\0b", "\x1b[2J", "x" * 10_000, "~/a.safetensors", " "],
)  # fmt: skip
def test_an_index_stays_in_its_folder(tmp_path, part, name):
    put(tmp_path, "secret.safetensors")
    (part / "sub").mkdir()
    put(part / "sub", "a.safetensors")
    index(part, {"a": name})
    refused(part, "which is no file of its folder")


def test_damaged_indexes(part):
    put(part, "x.safetensors")
    put(part, "y.safetensors")
    for listed, word in (
        (None, "no weight_map"),
        ([], "no weight_map"),
        ({"a": 5}, "no weight_map"),
        ({"a": ["x.safetensors"]}, "no weight_map"),
        ({"b": "x.safetensors"}, "lacks b"),
        ({"a": "x.safetensors", "b": "y.safetensors"}, "as x.safetensors has"),
        ({"a": "z.safetensors"}, "No such file"),
        ({str(i): f"{i}.safetensors" for i in range(1001)}, "more than 1,000"),
    ):
        index(part, listed)
        refused(part, word)
    path = part / "diffusion_pytorch_model.safetensors.index.json"
    for text in ("[" * 100_000, '{"weight_map":' * 50_000, "[]", "", b"\xed\xa0\x80"):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        refused(part, "JSON")
    os.truncate(path, 2 * 2**30)
    refused(part, "is larger than")
    path.unlink()
    os.mkfifo(path)
    refused(part, "a pipe or device")

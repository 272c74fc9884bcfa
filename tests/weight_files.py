"""Files of weights as given, right or not, for the tests of the doors in univid/files."""

import dataclasses
import io
import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict

import pytest
import torch

from univid.checkpoints.shapes import NO_TIME
from univid.encoders import TextEncoder
from univid.files.tensors import Entry, memory_of
from univid.files.weights import DTYPE_NAMES
from univid.presets import TINY
from univid.unet import UNet
from univid.vae import Autoencoder

# Words of Python and PyTorch, which name no cause that a user knows.
RAW = re.compile(
    r"modulo|division by|unsupported operand|NoneType|iterable|out of bounds|unhashable|attribute"
    r"|object is not|indices must|codec can't|enforce fail|unexpected pos|Expecting|Python int|argument '"
    r"|recursion|to unpack|not enough values|invalid literal|cannot be interpreted|'str' object"
    r"|offset-sized|\w+Error\b|KeyError"
)


def write_safetensors(path, entries, data=b"", metadata=None):
    """{name: (dtype, shape, (begin, end))} as a header, and the bytes behind it; a size stands for a hole."""
    header = {} if metadata is None else {"__metadata__": metadata}
    for name, (dtype, shape, offsets) in entries.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}
    return write_header(path, json.dumps(header).encode(), data)


def write_header(path, text: bytes, data=b""):
    """Any text as the header of a .safetensors file."""
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if isinstance(data, int):
            file.truncate(file.tell() + data)
        else:
            file.write(data)
    return path


def write_holes(path, shapes, filled=(), dtype=torch.float16):
    """A `.safetensors` of any size that takes no space; `filled` tensors are written."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        size = Entry(dtype, tuple(shape)).num_bytes
        entries[name] = (DTYPE_NAMES[dtype], shape, (end, end + size))
        end += size
    write_safetensors(path, entries, end)
    with open(path, "rb+") as file:
        for name in filled:
            file.seek(-end + entries[name][2][0], os.SEEK_END)
            file.write(memory_of(filled[name].to(dtype).expand(shapes[name]).contiguous()))
    return path


def stable_diffusion(num_res_blocks=1):
    """A Stable Diffusion 2 of reduced width with random weights, under its file's keys."""
    unet = dataclasses.replace(
        TINY.unet, model_channels=64, channel_mult=(1, 2, 2, 2), head_channels=64, norm_groups=32,
        num_res_blocks=num_res_blocks, image_stream=None, temporal=NO_TIME,
    )  # fmt: skip
    parts = {
        "model.diffusion_model.": UNet(unet),
        "first_stage_model.": Autoencoder(dataclasses.replace(TINY.vae, channels=32, norm_groups=32)),
        "cond_stage_model.model.": TextEncoder(dataclasses.replace(TINY.text, heads=1)),
    }
    return {
        prefix + key: tensor.half()
        for prefix, part in parts.items()
        for key, tensor in part.state_dict().items()
    }


class Claimed:
    """What pickles as a tensor: a view of the storage `key`, which is said to have `numel` numbers."""

    def __init__(self, key, numel, shape, stride=None, offset=0, kind=torch.FloatStorage):
        self.storage = Stored(key, numel, kind)
        self.shape, self.offset = tuple(shape), offset
        self.stride = tuple(torch.empty(shape, device="meta").stride()) if stride is None else tuple(stride)

    def __reduce__(self):
        arguments = (self.storage, self.offset, self.shape, self.stride, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class Stored:
    def __init__(self, key, numel, kind):
        self.name = ("storage", kind, key, "cpu", numel)


class Pickler(pickle.Pickler):
    def persistent_id(self, item):
        return item.name if isinstance(item, Stored) else None


def pickled(content, protocol=2) -> bytes:
    """A pickle as in PyTorch's files."""
    file = io.BytesIO()
    Pickler(file, protocol).dump(content)
    return file.getvalue()


def write_zip(path, pickle_bytes: bytes, storages=None, more=None, compression=zipfile.ZIP_STORED):
    """A file of PyTorch: {key: bytes} of storages, and other records by their names."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickle_bytes)
        for key, data in (storages or {}).items():
            file.writestr(f"archive/data/{key}", data)
        for name, data in (more or {}).items():
            file.writestr(name, data)
    return path


def write_stream(path, content, storages, order=True):
    """The same as it was before PyTorch 1.6; storages: {key: (numel, bytes)}."""
    parts = [
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": order, "type_sizes": {}},
    ]
    with open(path, "wb") as file:
        for part in (*parts, content, list(storages)):
            file.write(pickled(part))
        for numel, data in storages.values():
            file.write(numel.to_bytes(8, "little") + data)
    return path


def refused(opens, path, *words):
    """That `opens(path)` is refused in one sentence which begins with the path and holds these words."""
    with pytest.raises(ValueError) as caught:
        opens(path)
    message = str(caught.value)
    assert message.startswith(str(path)[:40]) and message.endswith(".") and len(message) <= 400, message
    assert message.isprintable(), message
    for word in words:
        assert word in message, message

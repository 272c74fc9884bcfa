"""Stable Diffusion 2.x into a UniVid checkpoint whose frames are Stable Diffusion's own.

Every tensor of the new file has one origin: a tensor of the source under another name, a copy of one, or a
fixed start value. They are written one after another, so the memory holds one tensor at a time.
"""

import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..config import PROFILES
from . import names, stream
from .foreign import OTHER_MODEL, Foreign, Weights, naming, open_diffusers, open_ldm, with_vision
from .native import PARTS, check_finite, header, listed, meta_modules

LICENCE = "CreativeML Open RAIL++-M, the licence of Stable Diffusion 2"

# What the U-Net has and Stable Diffusion has not: "zeros", "ones", "drawn", or the tensor to copy.
NEW_TENSORS = {
    r"(.*)\.(in|out)_temporal\..*": "zeros",  # PSTConv
    r"(.*)\.norm_pst\.(.*)": r"\1.norm1.\2",  # PSTAttn
    r"(.*)\.pst_attn\.(to_[qkv]\..*)": r"\1.attn1.\2",
    r"(.*)\.pst_attn\.to_out\..*": "zeros",
    r"(.*)\.attn2\.(to_[kv])_image\.(.*)": r"\1.attn2.\2.\3",  # the image stream
    r"image_projection\.norm\.weight": "ones",
    r"image_projection\.norm\.bias": "zeros",
    r"image_projection\.proj\.weight": "drawn",
    r"(.*)\.temporal\.proj_out\..*": "zeros",  # TemAttn
    r"(.*)\.temporal\.norm\d?\.weight": "ones",
    r"(.*)\.temporal\..*weight": "drawn",
    r"(.*)\.temporal\..*bias": "zeros",
}


@dataclass(frozen=True)
class Inflation:
    """A UniVid checkpoint that a source would give, tensor by tensor.

    entries: type and shape by tensor name. make: the tensor of a name. metadata: the file's header.
    """

    entries: Mapping[str, stream.Entry]
    make: Callable[[str], Tensor]
    metadata: Mapping[str, str]


def inflate(source: str | os.PathLike, out: str | os.PathLike, **options) -> None:
    """Write a UniVid checkpoint from Stable Diffusion 2.1 or 2.1-base; `options` are those of `plan`.

    Raises:
        ValueError: as `plan`, or `out` cannot be written.
    """
    planned = plan(source, **options)
    stream.write(out, planned.entries, planned.make, planned.metadata)


def plan(
    source: str | os.PathLike,
    *,
    vision: str | os.PathLike | None = None,
    prediction: str | None = None,
    seed: int = 0,
) -> Inflation:
    """What a UniVid checkpoint of the `paper` architecture holds when it starts from Stable Diffusion 2.x.

    Every part keeps the source's dtype. Temporal parts start at zero, so each frame is the 2-D U-Net's.

    Args:
        source: one file in LDM's layout (.safetensors, or .ckpt), or a diffusers folder.
        vision: a CLIP ViT-H-14 file (open_clip's or transformers' names): its tower goes into the output, and
            the image projection starts from its ln_post and projection. None: drawn from `seed`, no tower.
        prediction: "eps" (2.1-base) or "v" (2.1 at 768 pixels). A single file does not say, so it needs one.
        seed: of the new weights that are neither zero nor copied.

    Raises:
        ValueError: not Stable Diffusion 2.x, damaged, an unknown tensor, no prediction type.
    """
    source = Path(source)
    foreign = open_diffusers(source, prediction) if source.is_dir() else open_ldm(source, prediction)
    if vision is not None:
        foreign = with_vision(foreign, Path(vision))
    info = {
        "source": f"{source.resolve().name}, inflated",
        "training_step": "0",
        "licence": LICENCE,
        "image_projection": f"drawn from seed {seed}"
        if vision is None
        else f"ln_post and proj of {Path(vision).name}",
    }
    entries: dict[str, stream.Entry] = {}
    makers: dict[str, Callable[[], Tensor]] = {}
    for part, module in meta_modules(foreign.config).items():
        shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        for key, (entry, make) in _plan_part(part, shapes, foreign, seed).items():
            entries[PARTS[part].prefix + key] = entry
            makers[PARTS[part].prefix + key] = make

    def make(key: str) -> Tensor:
        tensor = makers[key]().to(entries[key].dtype)
        check_finite(tensor, f"{source} gives nan or infinite weights in {key}")
        return tensor

    return Inflation(entries, make, header(foreign.config, PROFILES["paper"], info))


def new_tensor(key: str, shape: tuple[int, ...], source: Callable[[str], Tensor], seed: int) -> Tensor:
    """The start value of a tensor of the U-Net that Stable Diffusion does not have.

    source: gives the trunk's tensors. A drawn tensor depends on `seed` and its own name alone.
    """
    pattern = _new(key)
    rule = NEW_TENSORS[pattern]
    if rule == "zeros":
        return torch.zeros(shape)
    if rule == "ones":
        return torch.ones(shape)
    if rule == "drawn":  # as torch.nn.Linear starts
        generator = torch.Generator().manual_seed(seed + zlib.crc32(key.encode()))
        bound = shape[1] ** -0.5
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return source(re.sub(pattern, rule, key))


def _new(key: str) -> str | None:
    """The pattern of NEW_TENSORS that the key matches."""
    return next((pattern for pattern in NEW_TENSORS if re.fullmatch(pattern, key)), None)


def _plan_part(
    part: str, shapes: Mapping[str, tuple[int, ...]], foreign: Foreign, seed: int
) -> dict[str, tuple[stream.Entry, Callable[[], Tensor]]]:
    """For each tensor of a part: its entry in the file, and how to make it."""
    weights, table = foreign.parts[part]
    new = {key for key in shapes if part == "unet" and _new(key)}
    with naming(weights.path):
        found = names.resolve(table, [key for key in shapes if key not in new], weights.entries)
    makers = {key: _reader(weights, origin, shapes[key]) for key, origin in found.items()}
    if part == "unet" and "image_encoder" in foreign.parts:
        makers |= _clip_projection(*foreign.parts["image_encoder"], shapes)
    for key in shapes.keys() - makers.keys():
        if key in new:
            makers[key] = partial(new_tensor, key, shapes[key], lambda name: makers[name](), seed)
        elif part == "text_encoder" and key.startswith(_idle_text(foreign.config.text.layers)):
            makers[key] = partial(torch.zeros, shapes[key])
    if missing := shapes.keys() - makers.keys():
        raise ValueError(f"{weights.path} {OTHER_MODEL}, or it is damaged: it lacks {listed(missing)}.")
    dtype = weights.entries[names.parts(next(iter(found.values())))[0]].dtype
    return {key: (stream.Entry(dtype, shape), makers[key]) for key, shape in shapes.items()}


def _idle_text(layers: int) -> tuple[str, ...]:
    """What text tokens do not depend on, and some files leave out: the last layer, and CLIP's projection."""
    return (f"transformer.resblocks.{layers - 1}.", "text_projection")


def _clip_projection(
    weights: Weights, table: names.Table, shapes: Mapping
) -> dict[str, Callable[[], Tensor]]:
    """The image projection as CLIP's own ln_post and projection (UniVG)."""
    width = shapes["image_projection.norm.weight"]
    projection = _reader(weights, table.source("proj"), shapes["image_projection.proj.weight"][::-1])
    return {
        "image_projection.norm.weight": _reader(weights, table.source("ln_post.weight"), width),
        "image_projection.norm.bias": _reader(weights, table.source("ln_post.bias"), width),
        "image_projection.proj.weight": lambda: projection().T,
    }


def _reader(weights: Weights, origin: names.Source, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with naming(weights.path):
            return names.fetch(origin, shape, weights.read)

    return read

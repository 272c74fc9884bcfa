"""Any public relative, or Stable Diffusion 2.x, into a UniVid checkpoint that gives exactly what it gives.

The tensors are written one after another, so the memory holds one at a time.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..files.tensors import Entry
from ..files.weights import open_weights
from ..messages import shown
from . import extension, kinds, modelscope, shapes, stable_diffusion, stream, videocrafter
from .foreign import Asked, Foreign, naming, open_vision
from .native import PARTS, check_finite, header, is_native, parse_header
from .pieces import assemble
from .settings import Settings

OPENERS = {
    "stable_diffusion": stable_diffusion.open_file,
    "modelscope": modelscope.open_file,
    "videocrafter": videocrafter.open_file,
}
FOLDERS = {
    "UNet2DConditionModel": stable_diffusion.open_folder,
    "UNet3DConditionModel": modelscope.open_folder,
}
OTHER_FOLDERS = {
    "UNetMotionModel": "AnimateDiff",
    "UNetSpatioTemporalConditionModel": "Stable Video Diffusion",
    "I2VGenXLUNet": "I2VGen-XL",
}
COUNTED = ("mapped", "padded", "new", "folded", "dropped")


@dataclass(frozen=True)
class Report:
    """What an import does with a source.

    title: the model that the tensors show. note: what they leave open, in words. counts: tensors and their
    parameters, by the words of COUNTED: of the output "mapped" from the source's as they are, "padded" with
    zeros, or "new"; of the source "folded" into others, or "dropped". absent: parts that it does not have.
    """

    title: str
    note: str
    licence: str
    counts: Mapping[str, tuple[int, int]]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class Import:
    """A UniVid checkpoint that a source would give, tensor by tensor.

    entries: type and shape by tensor name. make: the tensor of a name. metadata: the file's header.
    trained: whether the source knows time; Stable Diffusion does not.
    """

    entries: Mapping[str, Entry]
    make: Callable[[str], Tensor]
    metadata: Mapping[str, str]
    report: Report
    trained: bool


def import_file(source: str | os.PathLike, out: str | os.PathLike, **options) -> Report:
    """Write a UniVid checkpoint from a foreign one; `options` are those of `plan`.

    Raises:
        ValueError: as `plan` and `write`.
    """
    stream.check(out, (source, options.get("vision")))
    planned = plan(source, **options)
    write(planned, source, out)
    return planned.report


def write(planned: Import, source: str | os.PathLike, out: str | os.PathLike) -> None:
    """Write what was planned; a file at `out` is replaced once the new one is complete, and not before.

    Raises:
        ValueError: weights that are not finite, or `out` cannot be written or is the source.
    """
    stream.check(out, (source,))
    stream.write(out, planned.entries, planned.make, planned.metadata)


def plan(
    source: str | os.PathLike,
    *,
    name: str | None = None,
    prediction: str | None = None,
    extend: bool = False,
    vision: str | os.PathLike | None = None,
    head_channels: int = shapes.HEAD_CHANNELS,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Import:
    """What a UniVid checkpoint holds that gives what the source gives.

    Args:
        source: one file (.safetensors, .ckpt, .pth, .bin) or a diffusers folder.
        name: of `origins.ORIGINS`, where several models have the same tensors.
        prediction: "eps" or "v", where the source does not say: Stable Diffusion as one file.
        extend: add the paper's longer kernels, PSTAttn and image stream, all silent, to train on from there.
            Stable Diffusion, which has no time of its own, always gets them.
        vision: a CLIP ViT-H-14 file (open_clip's or transformers' names) for an image stream that is new: its
            tower goes into the output, and the image projection starts from its ln_post and projection. None:
            drawn from `seed`, no tower.
        head_channels: width of the attention heads, which one file does not show; a folder does.
        dtype: of all weights; None keeps each part's own.
        seed: of the new weights that are neither zero nor copied.

    Raises:
        ValueError: a source that cannot be imported or is damaged, unknown or missing tensors, wrong shapes,
            a choice that is needed or does not fit.
    """
    source = Path(source)
    if head_channels < 1:
        raise ValueError(f"head_channels must be at least 1, got {head_channels}.")
    foreign = open_source(source, Asked(name, prediction, head_channels))
    origin, unet = foreign.origin, foreign.config.unet
    trained = unet.temporal.attention
    extend = extend or not trained
    with naming(source):
        full = extension.extended(unet, None) if extend else unet
    adds_image = unet.image_stream is None and full.image_stream is not None
    info = {
        "source": f"{source.resolve().name}, " + (f"imported as {origin.title}" if trained else "inflated"),
        "training_step": "0",
        "licence": origin.licence,
    }
    if vision is not None:
        foreign = _with_vision(foreign, Path(vision), adds_image)
        full = extension.extended(unet, foreign.config.vision.width)
    if adds_image:
        info["image_projection"] = (
            f"drawn from seed {seed}" if vision is None else f"ln_post and proj of {Path(vision).name}"
        )
    config = replace(foreign.config, unet=full)
    pieces, unused = assemble(foreign, config, dtype, seed)

    def make(key: str) -> Tensor:
        tensor = pieces[key].make().to(pieces[key].entry.dtype)
        check_finite(tensor, f"{shown(source)} gives nan or infinite weights in {key}")
        return tensor

    counts = {word: [p.entry for p in pieces.values() if p.kind == word] for word in COUNTED} | unused
    report = Report(
        title=origin.title,
        note=foreign.note,
        licence=origin.licence,
        counts={
            word: (len(entries), sum(math.prod(e.shape) for e in entries)) for word, entries in counts.items()
        },
        absent=tuple(part for part in PARTS if part not in foreign.parts),
    )
    entries = {key: piece.entry for key, piece in pieces.items()}
    metadata = header(config, origin.profile, info)
    with naming(source):
        parse_header(metadata)  # what cannot be opened is not written
    return Import(entries, make, metadata, report, trained)


def open_source(source: Path, asked: Asked) -> Foreign:
    """Recognise a source by its tensors, or a folder by the config of its U-Net, and open it.

    Raises:
        ValueError: it cannot be imported, as `plan` says.
    """
    if source.is_dir():
        if not (source / "unet").is_dir():
            raise ValueError(f"{shown(source)} has no unet/ inside; give a diffusers folder, or one file.")
        kind = Settings(source / "unet" / "config.json").values.get("_class_name")
        if not isinstance(kind, str) or kind not in FOLDERS:
            known = isinstance(kind, str) and OTHER_FOLDERS.get(kind)
            what = known or f"of the kind {shown(kind, 60)}"
            raise ValueError(f"{shown(source)} is {what}, which cannot be imported; {kinds.TAKE}.")
        return FOLDERS[kind](source, asked)
    weights = open_weights(source)
    if is_native(weights):
        raise ValueError(f"{shown(source)} is a UniVid checkpoint already; use it as it is.")
    with naming(source):
        return OPENERS[kinds.recognise(weights.entries)](weights, asked)


def _with_vision(foreign: Foreign, path: Path, adds_image: bool) -> Foreign:
    """Add the vision tower of a CLIP file."""
    if not adds_image:
        raise ValueError(
            f"{shown(path)} would go unused, because the image stream is the source's own or absent; leave "
            "it out, or extend a model without one."
        )
    weights, table, vision = open_vision(path)
    if vision.embed_dim != foreign.config.unet.context_dim:
        raise ValueError(
            f"{shown(path)} projects to {vision.embed_dim} channels, the U-Net's context has "
            f"{foreign.config.unet.context_dim}; take the CLIP that belongs to the U-Net, ViT-H-14."
        )
    config = replace(foreign.config, vision=vision)
    return replace(foreign, config=config, parts={**foreign.parts, "image_encoder": (weights, table)})

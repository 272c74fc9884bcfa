"""UniVid's own checkpoint: one `.safetensors` file that says in its header how to build the model it holds.

Opening: header -> format and version -> config -> build on meta -> compare names and shapes.
"""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..config import (
    ModelConfig,
    SamplingProfile,
    TextConfig,
    UNetConfig,
    VAEConfig,
    VisionConfig,
    check_start,
    from_json,
    to_json,
)
from ..encoders import ImageEncoder, TextEncoder
from ..files.tensors import Entry, Weights
from ..files.weights import open_weights
from ..messages import shown
from ..model import UniVid
from ..unet import UNet
from ..vae import Autoencoder
from ..versions import FORMAT_VERSION
from . import stream
from .names import listed

BUILT_IN = "built-in"
# By name, the checkpoints that ship: the model, and its experts for known frames and for larger ones.
ASSETS = {
    BUILT_IN: "univid-tiny.safetensors",
    "built-in-known": "univid-tiny-known.safetensors",
    "built-in-upscale": "univid-tiny-upscale.safetensors",
}
BASE = "base"  # in the metadata: the checkpoint that has what a file leaves out
VERSIONS = tuple(str(version + 1) for version in range(FORMAT_VERSION))  # those that can be read


@dataclass(frozen=True)
class Part:
    """How one field of UniVid lies in the file: key prefix, field of ModelConfig, class."""

    prefix: str
    field: str
    build: Callable[..., nn.Module]


PARTS = {
    "unet": Part("model.diffusion_model.", "unet", UNet),
    "vae": Part("first_stage_model.", "vae", Autoencoder),
    "text_encoder": Part("cond_stage_model.model.", "text", TextEncoder),
    "image_encoder": Part("embedder.model.visual.", "vision", ImageEncoder),
}


def built_in_path(name: str = BUILT_IN) -> Path:
    """A checkpoint that ships with the package, one of ASSETS."""
    return Path(__file__).parent.parent / "assets" / ASSETS[name]


def save(
    path: str | os.PathLike,
    model: UniVid,
    *,
    dtype: torch.dtype | None = None,
    beside_built_in: bool = False,
) -> None:
    """Write a native checkpoint; it appears under its name only when it is complete.

    Args:
        dtype: of all weights in the file; None keeps each part's own.
        beside_built_in: leave out what the built-in checkpoint has to the bit, and say so in the file.

    Raises:
        ValueError: no U-Net, or the file cannot be written.
    """
    if model.unet is None:
        raise ValueError(f"cannot write {path} without a U-Net; load the model with all its parts.")
    held = {name: getattr(model, name) for name in PARTS if getattr(model, name) is not None}
    absent = {part.field: None for name, part in PARTS.items() if name not in held}
    tensors = {
        PARTS[name].prefix + key: tensor
        for name, module in held.items()
        for key, tensor in module.state_dict().items()
    }
    entries = {key: Entry(dtype or tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
    config, info = dataclasses.replace(model.config, **absent), model.info
    if beside_built_in:
        base, info = open_weights(built_in_path()), {**info, BASE: BUILT_IN}
        entries = {
            key: entry
            for key, entry in entries.items()
            if base.entries.get(key) != entry or not torch.equal(base.read(key), tensors[key].to(entry.dtype))
        }

    def make(key: str) -> torch.Tensor:
        tensor = tensors[key].to(entries[key].dtype)
        check_finite(tensor, f"cannot write {path}: nan or infinite weights in {key} as {tensor.dtype}")
        return tensor

    stream.write(path, entries, make, header(config, model.profile, info))


def is_native(weights: Weights) -> bool:
    """Whether a file says that it is a UniVid checkpoint."""
    return weights.metadata.get("format") == "univid"


def header(config: ModelConfig, profile: SamplingProfile, info: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a native file."""
    return dict(info) | {
        "format": "univid",
        "format_version": str(FORMAT_VERSION),
        "config": to_json(config),
        "profile": to_json(profile),
    }


def read_header(reader: Weights) -> tuple[ModelConfig, SamplingProfile, dict[str, str]]:
    """Config, sampling profile and the other metadata of a native file.

    Raises:
        ValueError: another version, or a config that this version does not know.
    """
    info = dict(reader.metadata)
    version = info.get("format_version", "none")
    if version not in VERSIONS:
        raise ValueError(
            f"{shown(reader.path)} has format version {shown(version)}, not among {', '.join(VERSIONS)}; "
            "take one that matches."
        )
    try:
        config, profile, info = parse_header(info)
    except (ValueError, ArithmeticError) as error:
        raise ValueError(
            f"{shown(reader.path)} has a header that does not fit: {shown(str(error).rstrip('.'), 240)}."
        ) from error
    return config, profile, info


def parse_header(metadata: Mapping[str, str]) -> tuple[ModelConfig, SamplingProfile, dict[str, str]]:
    """Config, sampling profile and the other metadata out of `header`'s strings, of any known version.

    Raises:
        ValueError: JSON that does not fit, or a profile that does not fit the config.
    """
    info = {key: text for key, text in metadata.items() if key not in ("format", "format_version")}
    version = int(metadata["format_version"])
    config = from_json(ModelConfig, info.pop("config", ""), version)
    profile = from_json(SamplingProfile, info.pop("profile", ""), version)
    check_start(config, profile)
    return config, profile, info


def build_meta(reader: Weights, config: ModelConfig) -> dict[str, nn.Module]:
    """`meta_modules` of a file's config, whose names, shapes and types the file's tensors have.

    Raises:
        ValueError: a config that cannot be built, or tensors that do not fit it.
    """
    modules = _modules(reader.path, config, reader.entries)
    _check_names(reader, modules)
    return modules


def completed(own: Weights, config: ModelConfig) -> Weights:
    """The tensors of a file with those that it leaves to the built-in checkpoint.

    Raises:
        ValueError: a config that cannot be built.
    """
    base = open_weights(built_in_path())
    modules = _modules(own.path, config, own.entries.keys() | base.entries.keys())
    lent = (_shapes(modules).keys() & base.entries.keys()) - own.entries.keys()
    return dataclasses.replace(
        own,
        entries={**{key: base.entries[key] for key in lent}, **own.entries},
        places={**{key: base.places[key] for key in lent}, **own.places},
    )


def _modules(path: Path, config: ModelConfig, names: Collection[str]) -> dict[str, nn.Module]:
    """`meta_modules` of a config that needs no more tensors than there are names."""
    counts = {name: sum(key.startswith(part.prefix) for key in names) for name, part in PARTS.items()}
    try:
        check_depth(config, counts)
        return meta_modules(config)
    except ValueError as error:
        raise ValueError(f"{shown(path)} {error}") from error


def _shapes(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Of all tensors, by their names in a file."""
    return {
        PARTS[name].prefix + key: tuple(tensor.shape)
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }


def check_depth(config: ModelConfig, counts: Mapping[str, int]) -> None:
    """Refuse a config that needs more tensors than there are, before anything as deep is built.

    counts: of the tensors that each part may have, by its name.

    Raises:
        ValueError: the text continues a sentence that starts with the file's name.
    """
    for name, part in PARTS.items():
        described = getattr(config, part.field)
        if described is not None and (least := _least_tensors(described)) > counts.get(name, 0):
            raise ValueError(
                f"describes a {name.replace('_', ' ')} of {least:,} tensors or more, but holds "
                f"{counts.get(name, 0):,} of it; take another file."
            )


def meta_modules(config: ModelConfig) -> dict[str, nn.Module]:
    """The parts of a config, by their names in UniVid, on the meta device: shapes without memory.

    Raises:
        ValueError: its numbers do not fit each other; the text continues a sentence that starts with a file's
            name.
    """
    try:
        with torch.device("meta"):
            return {
                name: part.build(getattr(config, part.field))
                for name, part in PARTS.items()
                if getattr(config, part.field) is not None
            }
    except (ValueError, TypeError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise ValueError("describes a network that cannot be built; take another file.") from error


def check_finite(tensor: torch.Tensor, problem: str) -> None:
    """Refuse nan and infinite weights with a sentence that starts with `problem`."""
    if not tensor.float().isfinite().all():  # float(): no isfinite for 8-bit floats
        raise ValueError(f"{problem}; take an earlier or another one.")


def _least_tensors(part: UNetConfig | VAEConfig | TextConfig | VisionConfig) -> int:
    """At least as many tensors has a part of this config; some files leave a tower's last layer out."""
    if isinstance(part, TextConfig | VisionConfig):
        return 6 * part.layers  # of 12
    stream = getattr(part, "image_stream", None)
    resampler = stream.resampler if stream is not None else None
    blocks = 2 * len(part.channel_mult) * part.num_res_blocks  # going down and up, with 8 or more each
    return 8 * blocks + (resampler.depth if resampler is not None else 0)


def _check_names(reader: Weights, modules: Mapping[str, nn.Module]) -> None:
    expected = _shapes(modules)
    found = {key: entry.shape for key, entry in reader.entries.items()}
    problems = [
        f"lacks {listed(expected.keys() - found.keys())}" if expected.keys() - found.keys() else "",
        f"has the unknown {listed(found.keys() - expected.keys())}" if found.keys() - expected.keys() else "",
    ]
    problems += [
        f"has {shown(key, 90)} of shape {found[key]} instead of {shape}"
        for key, shape in expected.items()
        if found.get(key, shape) != shape
    ][:1]
    problems += [
        f"has {shown(key, 90)} of type {e.dtype}"
        for key, e in reader.entries.items()
        if not e.dtype.is_floating_point
    ][:1]
    if any(problems):
        raise ValueError(
            f"{shown(reader.path)} {' and '.join(filter(None, problems))}; it is damaged or of another model."
        )

"""UniVid's own checkpoint: one `.safetensors` file that says in its header how to build the model it holds.

Loading: header -> format and version -> config -> build on meta -> compare names and shapes -> assign.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .. import memory
from ..config import ModelConfig, SamplingProfile, check_start, from_json, to_json
from ..encoders import ImageEncoder, TextEncoder
from ..model import UniVid
from ..unet import UNet
from ..vae import Autoencoder
from ..versions import FORMAT_VERSION
from . import kinds, stream
from .names import listed

BUILT_IN = "built-in"
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


def built_in_path() -> Path:
    """The checkpoint that ships with the package."""
    return Path(__file__).parent.parent / "assets" / "univid-tiny.safetensors"


def save(path: str | os.PathLike, model: UniVid, *, dtype: torch.dtype | None = None) -> None:
    """Write a native checkpoint; it appears under its name only when it is complete.

    Args:
        dtype: of all weights in the file; None keeps each part's own.

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
    entries = {
        key: stream.Entry(dtype or tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()
    }
    config = dataclasses.replace(model.config, **absent)

    def make(key: str) -> torch.Tensor:
        tensor = tensors[key].to(entries[key].dtype)
        check_finite(tensor, f"cannot write {path}: nan or infinite weights in {key} as {tensor.dtype}")
        return tensor

    stream.write(path, entries, make, header(config, model.profile, model.info))


def load(
    path: str | os.PathLike | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    parts: Iterable[str] = tuple(PARTS),
) -> UniVid:
    """Load a native checkpoint, in eval mode.

    Args:
        path: the file; None or "built-in" is the checkpoint that ships with the package.
        dtype: of all weights; None keeps that of the file.
        parts: which of "unet", "vae", "text_encoder" and "image_encoder" to load, if the file holds them.

    Raises:
        ValueError: not a UniVid checkpoint, damaged, of another version, or weights that do not fit.
    """
    reader = stream.Reader(built_in_path() if path is None or str(path) == BUILT_IN else path)
    config, profile, info = read_header(reader)
    modules = build_meta(reader, config)
    chosen = {name: modules[name] for name in parts if getattr(config, PARTS[name].field) is not None}
    if torch.device(device).type == "cpu":
        _check_memory(reader, chosen, dtype)
    for name, module in chosen.items():
        weights = {}
        for key in module.state_dict():
            tensor = reader.read(PARTS[name].prefix + key)
            check_finite(tensor, f"{reader.path} has nan or infinite weights in {PARTS[name].prefix + key}")
            weights[key] = tensor.to(device=device, dtype=dtype)
        module.load_state_dict(weights, strict=True, assign=True)
        module.eval()
    if "unet" in chosen:
        chosen["unet"].dtype = next(chosen["unet"].parameters()).dtype
    return UniVid(config, profile, unet=chosen.pop("unet", None), info=info, **chosen)


def header(config: ModelConfig, profile: SamplingProfile, info: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a native file."""
    return dict(info) | {
        "format": "univid",
        "format_version": str(FORMAT_VERSION),
        "config": to_json(config),
        "profile": to_json(profile),
    }


def read_header(reader: stream.Reader) -> tuple[ModelConfig, SamplingProfile, dict[str, str]]:
    """Config, sampling profile and the other metadata of a native file.

    Raises:
        ValueError: another format or version, or a config that this version does not know.
    """
    info = dict(reader.metadata)
    if info.pop("format", None) != "univid":
        raise ValueError(f"{reader.path} is {_describe_foreign(reader)}.")
    version = info.get("format_version", "none")
    if version not in VERSIONS:
        raise ValueError(
            f"{reader.path} has format version {version}, not among {', '.join(VERSIONS)}; "
            "take one that matches."
        )
    try:
        config, profile, info = parse_header(info)
    except (ValueError, ArithmeticError) as error:
        raise ValueError(
            f"{reader.path} has a header that does not fit: {str(error).rstrip('.')}."
        ) from error
    if _depth(config) > len(reader.entries):  # before anything as deep as that is built
        raise ValueError(
            f"{reader.path} describes {_depth(config)} layers but holds {len(reader.entries)} tensors; "
            "take another file."
        )
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


def build_meta(reader: stream.Reader, config: ModelConfig) -> dict[str, nn.Module]:
    """`meta_modules` of a file's config, whose names, shapes and types the file's tensors have.

    Raises:
        ValueError: a config that cannot be built, or tensors that do not fit it.
    """
    try:
        modules = meta_modules(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise ValueError(f"{reader.path} has a config that cannot be built; take another file.") from error
    _check_names(reader, modules)
    return modules


def meta_modules(config: ModelConfig) -> dict[str, nn.Module]:
    """The parts of a config, by their names in UniVid, on the meta device: shapes without memory."""
    with torch.device("meta"):
        return {
            name: part.build(getattr(config, part.field))
            for name, part in PARTS.items()
            if getattr(config, part.field) is not None
        }


def check_finite(tensor: torch.Tensor, problem: str) -> None:
    """Refuse nan and infinite weights with a sentence that starts with `problem`."""
    if not tensor.float().isfinite().all():  # float(): no isfinite for 8-bit floats
        raise ValueError(f"{problem}; take an earlier or another one.")


def _check_memory(reader: stream.Reader, modules: Mapping[str, nn.Module], dtype: torch.dtype | None) -> None:
    entries = [
        reader.entries[PARTS[name].prefix + key]
        for name, module in modules.items()
        for key in module.state_dict()
    ]
    needed = sum(
        entry.num_bytes // entry.dtype.itemsize * (dtype or entry.dtype).itemsize for entry in entries
    )
    memory.check(needed, f"the weights of {reader.path} need", "close other programs, or load them as bf16")


def _depth(config: ModelConfig) -> int:
    trunks = [trunk for trunk in (config.unet, config.vae) if trunk is not None]
    towers = [tower for tower in (config.text, config.vision) if tower is not None]
    return sum(len(t.channel_mult) * t.num_res_blocks for t in trunks) + sum(t.layers for t in towers)


def _check_names(reader: stream.Reader, modules: Mapping[str, nn.Module]) -> None:
    expected = {
        PARTS[name].prefix + key: tuple(tensor.shape)
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    found = {key: entry.shape for key, entry in reader.entries.items()}
    problems = [
        f"lacks {listed(expected.keys() - found.keys())}" if expected.keys() - found.keys() else "",
        f"has the unknown {listed(found.keys() - expected.keys())}" if found.keys() - expected.keys() else "",
    ]
    problems += [
        f"has {key} of shape {found[key]} instead of {shape}"
        for key, shape in expected.items()
        if found.get(key, shape) != shape
    ][:1]
    problems += [
        f"has {key} of type {e.dtype}" for key, e in reader.entries.items() if not e.dtype.is_floating_point
    ][:1]
    if any(problems):
        raise ValueError(
            f"{reader.path} {' and '.join(filter(None, problems))}; it is damaged or of another model."
        )


def _describe_foreign(reader: stream.Reader) -> str:
    """What a file without UniVid's header seems to be, and what to do with it; without the full stop."""
    try:
        source = kinds.recognise(reader.entries)
    except ValueError as error:
        return str(error).removeprefix("is ").removesuffix(".")
    return (
        f"{kinds.TITLES[source]}; make a UniVid checkpoint of it first with "
        f"`python -m univid import {reader.path} --out FILE`"
    )

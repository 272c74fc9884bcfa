"""Any checkpoint, UniVid's own or of another project, opened in one way by library, nodes and training."""

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import memory
from ..config import ModelConfig, SamplingProfile
from ..files.tensors import Entry, Weights
from ..files.weights import open_weights
from ..messages import shown
from ..model import UniVid
from .imports import plan
from .kinds import is_image_model
from .native import (
    ASSETS,
    BASE,
    BUILT_IN,
    PARTS,
    build_meta,
    built_in_path,
    check_finite,
    completed,
    is_native,
    meta_modules,
    parse_header,
    read_header,
)

# In Stable Diffusion 2.x this vector tells the two predictions apart: trained on v it spreads wider.
PREDICTION_KEY = PARTS["unet"].prefix + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
PREDICTION_SPREAD = 0.09

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, read part by part ("unet", "vae", "text_encoder", "image_encoder").

    info: the other metadata: source, licence, training step ... trained: whether its temporal layers are.
    name: as `open_checkpoint` was given it.
    """

    path: Path
    config: ModelConfig
    profile: SamplingProfile
    info: Mapping[str, str]
    all_entries: Mapping[str, Entry]
    make: Callable[[str], Tensor]
    trained: bool
    name: str | None

    def holds(self, part: str) -> bool:
        """Whether a part is inside."""
        return getattr(self.config, PARTS[part].field) is not None

    def entries(self, part: str) -> dict[str, Entry]:
        """Types and shapes of a part, by the part's own names."""
        prefix = PARTS[part].prefix
        return {k.removeprefix(prefix): e for k, e in self.all_entries.items() if k.startswith(prefix)}

    def dtype(self, part: str) -> torch.dtype:
        """The type of a part's first tensor."""
        return next(iter(self.entries(part).values())).dtype

    def read(self, part: str) -> dict[str, Tensor]:
        """A part's tensors by its own names; ValueError as `tensor`."""
        return {name: self.tensor(part, name) for name in self.entries(part)}

    def tensor(self, part: str, name: str) -> Tensor:
        """One tensor of a part.

        Raises:
            ValueError: it is not finite, or its file changed since it was opened.
        """
        key = PARTS[part].prefix + name
        tensor = self.make(key)
        check_finite(tensor, f"{shown(self.path)} has nan or infinite weights in {shown(key)}")
        return tensor

    def warn_if_untrained(self) -> None:
        """Log what is to be expected of an image model."""
        if not self.trained:
            logger.warning(
                "%s is Stable Diffusion 2.1: its temporal layers and image stream are untrained, so its "
                "frames will not move together; load a trained UniVid checkpoint for video.",
                shown(self.path.name),
            )


def open_checkpoint(path: str | os.PathLike, name: str | None = None) -> Checkpoint:
    """Read a checkpoint's header and compare its tensors with its config; no tensor is read yet.

    A foreign one is what `imports.plan` makes of it; what an expert of the built-in model leaves out is that
    one's.

    Args:
        path: one file, a diffusers folder, or the name of one that ships: "built-in", "built-in-known" ...
        name: of a foreign model (`origins.ORIGINS`), where its tensors leave several.

    Raises:
        ValueError: absent, damaged, a pickle with code, of no known model, or of several without a name.
    """
    path = built_in_path(str(path)) if str(path) in ASSETS else Path(path)
    opened = None if path.is_dir() else open_weights(path)
    if opened is not None and is_native(opened):
        if name is not None:
            raise ValueError(f"{shown(path)} is a UniVid checkpoint, not {shown(name)}; name no other model.")
        config, profile, info = read_header(opened)
        if info.get(BASE) == BUILT_IN:
            opened = completed(opened, config)
        build_meta(opened, config)
        return Checkpoint(path, config, profile, info, opened.entries, opened.read, trained=True, name=None)
    planned = plan(path, name=name, prediction=None if opened is None else _prediction(opened))
    config, profile, info = parse_header(planned.metadata)
    return Checkpoint(path, config, profile, info, planned.entries, planned.make, planned.trained, name)


def load(
    path: str | os.PathLike | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    parts: Iterable[str] = tuple(PARTS),
    compile: bool = False,
) -> UniVid:
    """Load a checkpoint, in eval mode; one of another project is imported as it is read.

    Args:
        path: a file or a diffusers folder; None or "built-in" is the checkpoint that ships with the package,
            "built-in-known" and "built-in-upscale" are its experts.
        dtype: of all weights; None keeps that of the file.
        parts: which of "unet", "vae", "text_encoder" and "image_encoder" to load, if the file holds them.
        compile: let torch.compile translate the U-Net, block by block, when it first runs at a size.

    Raises:
        ValueError: as `open_checkpoint`, weights that are not finite, or too many for the device's memory.
    """
    opened = open_checkpoint(BUILT_IN if path is None else path)
    opened.warn_if_untrained()
    modules = meta_modules(opened.config)
    chosen = {name: modules[name] for name in parts if opened.holds(name)}
    _check_memory(opened, chosen, dtype, torch.device(device))
    for name, module in chosen.items():
        weights = {
            key: opened.tensor(name, key).to(device=device, dtype=dtype) for key in module.state_dict()
        }
        module.load_state_dict(weights, strict=True, assign=True)
        module.eval()
    unet = chosen.pop("unet", None)
    if unet is not None:
        unet.dtype = next(unet.parameters()).dtype
        if compile:
            unet.compile_blocks()
    return UniVid(opened.config, opened.profile, unet=unet, info=opened.info, **chosen).to(device)


def _check_memory(
    opened: Checkpoint, parts: Iterable[str], dtype: torch.dtype | None, device: torch.device
) -> None:
    entries = [entry for part in parts for entry in opened.entries(part).values()]
    needed = sum(math.prod(entry.shape) * (dtype or entry.dtype).itemsize for entry in entries)
    advice = "close other programs, or load them as bf16"
    memory.check(needed, f"the weights of {shown(opened.path)} need", advice, device)


def _prediction(weights: Weights) -> str | None:
    """What Stable Diffusion 2.x predicts, where this can be told; the importers know it of the others."""
    entry = weights.entries.get(PREDICTION_KEY)
    if entry is None or len(entry.shape) != 1 or not entry.dtype.is_floating_point:
        return None
    if not is_image_model(weights.entries):
        return None
    return "v" if weights.read(PREDICTION_KEY).float().std() > PREDICTION_SPREAD else "eps"

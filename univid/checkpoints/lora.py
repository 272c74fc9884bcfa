"""Low-rank adapters (LoRA, 2106.09685) of the U-Net as a `.safetensors` file, and folding them into weights.

A layer's weight W becomes W + strength * alpha / rank * up @ down. The tensors of a layer are called

    diffusion_model.<its path in UNet>.lora_A.weight    down [rank in ...kernel]
    diffusion_model.<its path in UNet>.lora_B.weight    up [out rank], of a convolution [out rank 1 1]
    diffusion_model.<its path in UNet>.alpha            one number

because ComfyUI's loaders map every weight of any network under exactly that path, UniVid's own layers like
Stable Diffusion's. kohya's `lora_unet_<path>` writes the dots of a path as underscores too, so the network's
names cannot be told from a file alone.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..files.tensors import Entry, Weights
from ..files.weights import open_weights
from ..messages import shown
from ..model import UniVid
from . import stream
from .names import listed
from .native import check_finite

PREFIX = "diffusion_model."
NAME = re.compile(re.escape(PREFIX) + r"(.+)\.(lora_A\.weight|lora_B\.weight|alpha)")
DOWN, UP, ALPHA = "lora_A.weight", "lora_B.weight", "alpha"
MOST_CHANGE = 65504.0  # of a weight: the largest number in half precision


@dataclass(frozen=True)
class LowRank:
    """What is added to one layer's weight: alpha / rank * up @ down.

    down: `[rank in]`, of a convolution `[rank in kh kw]`. up: `[out rank]`, or `[out rank 1 1]`.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it fits."""
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def reach(self) -> float:
        """No number of the difference is further from zero than this."""
        return abs(self.alpha) * math.prod(m.float().abs().max().item() for m in (self.up, self.down))

    def delta(self) -> Tensor:
        """The difference to the weight at strength 1, float32 `[out in ...kernel]`."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (self.alpha / len(self.down) * product).view(self.shape)


@dataclass(frozen=True)
class Lora:
    """Adapters by the path of their layer in UNet.

    info: the file's metadata: base (the model it was trained on), rank, alpha, parts, steps ...
    """

    layers: Mapping[str, LowRank]
    info: Mapping[str, str]

    def state(self) -> dict[str, Tensor]:
        """The tensors as the file names them."""
        return {
            f"{PREFIX}{path}.{name}": tensor
            for path, layer in self.layers.items()
            for name, tensor in ((DOWN, layer.down), (UP, layer.up), (ALPHA, torch.tensor(layer.alpha)))
        }


def write_lora(path: str | os.PathLike, lora: Lora, *, dtype: torch.dtype | None = None) -> None:
    """Write a LoRA; the file appears under its name only when it is complete.

    dtype: of the matrices in the file; None keeps theirs. alpha is always float32.

    Raises:
        ValueError: no layers, weights that are not finite in `dtype`, or a file that cannot be written.
    """
    if not lora.layers:
        raise ValueError(f"cannot write {path} without any adapted layer; choose other parts.")
    tensors = {
        key: tensor.detach() if dtype is None or key.endswith(ALPHA) else tensor.detach().to(dtype)
        for key, tensor in lora.state().items()
    }
    for key, tensor in tensors.items():
        check_finite(tensor, f"cannot write {path}: nan or infinite weights in {key} as {tensor.dtype}")
    entries = {key: Entry(tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
    stream.write(path, entries, tensors.__getitem__, dict(lora.info))


def read_lora(path: str | os.PathLike) -> Lora:
    """Read a LoRA that has this module's names, whoever wrote it.

    Raises:
        ValueError: another kind of file, damaged, half a pair of matrices, weights that are whole numbers or
            not finite.
    """
    weights = open_weights(path)
    layers: dict[str, set[str]] = {}
    foreign = []
    for key in weights.entries:
        if match := NAME.fullmatch(key):
            layers.setdefault(match[1], set()).add(match[2])
        else:
            foreign.append(key)
    if foreign:
        raise ValueError(
            f"{shown(path)} is not a LoRA as UniVid writes it: it holds {listed(foreign)}; give one with "
            f"names like {PREFIX}<layer>.{DOWN}, or use ComfyUI's own loader, which takes others too."
        )
    if not layers:
        raise ValueError(f"{shown(path)} holds no tensors; give a LoRA.")
    return Lora({layer: _low_rank(weights, layer) for layer in layers}, weights.metadata)


@torch.no_grad()
def merge(unet: nn.Module, lora: Lora, strength: float = 1.0) -> None:
    """Fold adapters into the weights of a U-Net, in place: W + strength * alpha / rank * up @ down.

    The sum is made in float32 and then gets the weight's dtype. All layers are checked before one changes.

    Raises:
        ValueError: a layer that the network lacks or has in another shape, a strength that is not finite, or
            numbers that no network has.
    """
    if not math.isfinite(strength):
        raise ValueError(f"the strength of a LoRA must be a finite number, got {strength}.")
    weights = {
        name.removesuffix(".weight"): weight
        for name, weight in unet.named_parameters()
        if name.endswith(".weight")
    }
    if unknown := sorted(lora.layers.keys() - weights.keys()):
        raise ValueError(
            f"this LoRA is for another network, as it has {listed(unknown)}, which this one lacks; "
            "take one that was trained on this model."
        )
    for path, layer in lora.layers.items():
        if layer.shape != (shape := tuple(weights[path].shape)):
            raise ValueError(
                f"this LoRA is for a network of another size, with {shown(path, 90)} of shape {layer.shape} "
                f"instead of {shape}; take one that was trained on this model."
            )
        if (reach := abs(strength) * layer.reach) > MOST_CHANGE:
            raise ValueError(
                f"this LoRA can change weights of {shown(path, 90)} by {reach:.3g}, which no network "
                "survives; take another one, or a smaller strength."
            )
    for path, layer in lora.layers.items():
        weight = weights[path]
        weight.copy_(weight.float() + strength * layer.delta().to(weight.device))


def apply_lora(model: UniVid, path: str | os.PathLike, strength: float = 1.0) -> None:
    """Fold the LoRA of a file into a model's U-Net, in place; several add up, one after another.

    Raises:
        ValueError: no LoRA, or one for another network; the sentence names the file.
    """
    if model.unet is None:
        raise ValueError(f"cannot apply {shown(path)} without a U-Net; load the model with all its parts.")
    lora = read_lora(path)
    try:
        merge(model.unet, lora, strength)
    except ValueError as error:
        raise ValueError(f"cannot apply {shown(path)}: {error}") from error


def _low_rank(weights: Weights, layer: str) -> LowRank:
    """A layer's tensors, checked before they are read; without alpha it counts as the rank, as in ComfyUI."""
    keys = {name: f"{PREFIX}{layer}.{name}" for name in (DOWN, UP, ALPHA)}
    found = {name: weights.entries[key] for name, key in keys.items() if key in weights.entries}
    path, layer = shown(weights.path), shown(layer, 90)
    if DOWN not in found or UP not in found:
        raise ValueError(f"{path} has half a pair of matrices for {layer}; it is damaged, take another one.")
    down, up, alpha = found[DOWN].shape, found[UP].shape, found[ALPHA].shape if ALPHA in found else ()
    pair = len(down) == len(up) >= 2 and up[1:] == (down[0], *[1] * (len(up) - 2))
    if not pair or 0 in down or 0 in up or math.prod(alpha) != 1:
        raise ValueError(
            f"{path} has matrices for {layer} that do not fit each other, {list(down)} and {list(up)}; it is "
            "damaged, take another one."
        )
    for name in (DOWN, UP):
        if not found[name].dtype.is_floating_point:
            raise ValueError(
                f"{path} has matrices of type {found[name].dtype} for {layer}; take a LoRA with "
                "floating-point weights."
            )
    tensors = {name: weights.read(keys[name]) for name in found}
    for name, tensor in tensors.items():
        check_finite(tensor, f"{path} has nan or infinite weights in {shown(keys[name], 90)}")
    rank = tensors[DOWN].shape[0]
    return LowRank(tensors[DOWN], tensors[UP], float(tensors[ALPHA].item() if ALPHA in tensors else rank))

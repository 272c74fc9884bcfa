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

from ..model import UniVid
from . import stream
from .names import listed
from .native import check_finite

PREFIX = "diffusion_model."
NAME = re.compile(re.escape(PREFIX) + r"(.+)\.(lora_A\.weight|lora_B\.weight|alpha)")
DOWN, UP, ALPHA = "lora_A.weight", "lora_B.weight", "alpha"


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
    entries = {key: stream.Entry(tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
    stream.write(path, entries, tensors.__getitem__, dict(lora.info))


def read_lora(path: str | os.PathLike) -> Lora:
    """Read a LoRA that has this module's names, whoever wrote it.

    Raises:
        ValueError: another kind of file, damaged, half a pair of matrices, or weights that are not finite.
    """
    reader = stream.Reader(path)
    parts: dict[str, dict[str, Tensor]] = {}
    if foreign := sorted(key for key in reader.entries if NAME.fullmatch(key) is None):
        raise ValueError(
            f"{path} is not a LoRA as UniVid writes it: it holds {listed(foreign)}; give one with names like "
            f"{PREFIX}<layer>.{DOWN}, or use ComfyUI's own loader, which takes others too."
        )
    for key in reader.entries:
        layer, name = NAME.fullmatch(key).groups()
        parts.setdefault(layer, {})[name] = tensor = reader.read(key)
        check_finite(tensor, f"{path} has nan or infinite weights in {key}")
    if not parts:
        raise ValueError(f"{path} holds no tensors; give a LoRA.")
    return Lora({layer: _low_rank(path, layer, found) for layer, found in parts.items()}, reader.metadata)


@torch.no_grad()
def merge(unet: nn.Module, lora: Lora, strength: float = 1.0) -> None:
    """Fold adapters into the weights of a U-Net, in place: W + strength * alpha / rank * up @ down.

    The sum is made in float32 and then gets the weight's dtype. All layers are checked before one changes.

    Raises:
        ValueError: a layer that the network lacks or has in another shape, or a strength that is not finite.
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
                f"this LoRA is for a network of another size, with {path} of shape {layer.shape} instead of "
                f"{shape}; take one that was trained on this model."
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
        raise ValueError(f"cannot apply {path} without a U-Net; load the model with all its parts.")
    lora = read_lora(path)
    try:
        merge(model.unet, lora, strength)
    except ValueError as error:
        raise ValueError(f"cannot apply {path}: {error}") from error


def _low_rank(path: str | os.PathLike, layer: str, found: Mapping[str, Tensor]) -> LowRank:
    """A layer out of its tensors; without alpha it counts as the rank, as in ComfyUI."""
    down, up = found.get(DOWN), found.get(UP)
    if down is None or up is None:
        raise ValueError(f"{path} has half a pair of matrices for {layer}; it is damaged, take another one.")
    alpha = found.get(ALPHA)
    pair = down.dim() == up.dim() >= 2 and up.shape[1:] == (len(down), *[1] * (up.dim() - 2))
    if not pair or not down.numel() or not up.numel() or (alpha is not None and alpha.numel() != 1):
        raise ValueError(
            f"{path} has matrices for {layer} that do not fit each other, {list(down.shape)} and "
            f"{list(up.shape)}; it is damaged, take another one."
        )
    return LowRank(down, up, float(len(down)) if alpha is None else alpha.item())

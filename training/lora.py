"""Low-rank adapters (LoRA, 2106.09685): finetuning that trains 0.1 to 2 % of a network's parameters.

A chosen layer W is frozen, and learns a difference of low rank: W x + alpha / rank * up(down(x)), with up at
zero first, so that training starts at the network as it is. The file is univid/checkpoints/lora.py's.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from training import distributed
from training.rng import generator
from univid.blocks import Downsample, ResBlock, SpatialTransformer, TemporalTransformer, Upsample
from univid.checkpoints.lora import Lora, LowRank, write_lora
from univid.family import DoubleTemporalTransformer
from univid.layers import DualCrossAttention, SelfAttention

TEMPORAL = (TemporalTransformer, DoubleTemporalTransformer)
# What is adapted: every Linear and Conv2d inside a path of such modules, the outermost first.
#   all: each layer of the blocks, as kohya's LoRA with convolutions; not the first and last convolution, the
#     embeddings of timestep, fps and place, and the image projection, which the blocks only read.
#   attention: queries, keys, values and outputs of every attention in space and time.
#   cross-attention: those of both streams of CrossAttn_Dual: what words and pictures mean.
#   temporal-attention: those of TemAttn: Show-1's motion customisation (3.7). PSTAttn stays as it is: it
#     carries the look of the reference frames, and motion shall be learnt without it.
PARTS: dict[str, tuple[tuple[type, ...], ...]] = {
    "all": ((ResBlock, SpatialTransformer, DoubleTemporalTransformer, Downsample, Upsample),),
    "attention": ((SelfAttention, DualCrossAttention),),
    "cross-attention": ((DualCrossAttention,),),
    "temporal-attention": (TEMPORAL, (SelfAttention,)),
}


@dataclass(frozen=True)
class LoraConfig:
    """How large the adapters are, how strongly they act, and which layers have one."""

    rank: int = 16
    alpha: float = 16.0  # a layer's difference is scaled by alpha / rank
    parts: str = "all"  # one of PARTS

    def __post_init__(self):
        if self.parts not in PARTS:
            raise ValueError(f"parts must be one of {tuple(PARTS)}, got {self.parts!r}.")
        if self.rank < 1 or not 0 < self.alpha < float("inf"):
            raise ValueError(
                f"expected a rank of at least 1 and an alpha above 0, got {self.rank} and {self.alpha}."
            )


class Adapted(nn.Module):
    """A frozen Linear or Conv2d and its adapter: base(x) + alpha / rank * lora_B(lora_A(x)).

    The adapter is float32 whatever the base is, so under autocast small steps of training are not lost.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, alpha: float):
        super().__init__()
        self.base = base
        self.alpha, self.scale = alpha, alpha / rank
        how = {"bias": False, "device": base.weight.device, "dtype": torch.float32}
        if isinstance(base, nn.Conv2d):
            self.lora_A = nn.Conv2d(
                base.in_channels, rank, base.kernel_size, base.stride, base.padding, base.dilation, **how
            )
            self.lora_B = nn.Conv2d(rank, base.out_channels, 1, **how)
        else:
            self.lora_A = nn.Linear(base.in_features, rank, **how)
            self.lora_B = nn.Linear(rank, base.out_features, **how)

    def forward(self, x: Tensor) -> Tensor:
        out, low = self.base(x), self.lora_B(self.scale * self.lora_A(x))
        # In place a convolution's result keeps its memory layout, which the next layer's rounding depends on.
        return out.add_(low) if isinstance(self.base, nn.Conv2d) else out + low


def layers_of(unet: nn.Module, parts: str) -> list[str]:
    """The paths of the layers that a choice of PARTS adapts, in the network's order."""
    found = [("", unet)]
    for kinds in PARTS[parts]:
        found = [
            (f"{outer}.{name}".strip("."), module)
            for outer, holder in found
            for name, module in holder.named_modules()
            if isinstance(module, kinds)
        ]
    return list(
        dict.fromkeys(  # a temporal transformer is reached by itself and through the spatial one around it
            f"{outer}.{name}"
            for outer, holder in found
            for name, module in holder.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        )
    )


@torch.no_grad()
def add_lora(
    unet: nn.Module, config: LoraConfig, seed: int, among: Collection[str] | None = None
) -> list[str]:
    """Give the chosen layers of a U-Net an adapter each and freeze all else; return the layers' paths.

    The output stays that of the frozen network, bit for bit. Add them before the network is sharded or
    wrapped for several processes. lora_A is Kaiming-uniform, drawn from the seed and the layer's path alone.

    among: names of parameters; layers whose weight is none of them get no adapter. None = all may.

    Raises:
        ValueError: the network has adapters already, or no layer of the chosen parts.
    """
    if any(isinstance(module, Adapted) for module in unet.modules()):
        raise ValueError("this network has adapters already; build it anew from its checkpoint.")
    paths = [p for p in layers_of(unet, config.parts) if among is None or f"{p}.weight" in among]
    if not paths:
        raise ValueError(
            f"expected layers to adapt, got no layers of the parts {config.parts!r}; choose others."
        )
    unet.requires_grad_(False)
    for path in paths:
        holder, _, name = path.rpartition(".")
        layer = Adapted(unet.get_submodule(path), config.rank, config.alpha)
        bound = layer.lora_A.weight[0].numel() ** -0.5
        start = torch.empty(layer.lora_A.weight.shape)
        layer.lora_A.weight.copy_(start.uniform_(-bound, bound, generator=generator(seed, f"lora {path}", 0)))
        layer.lora_B.weight.zero_()
        setattr(unet.get_submodule(holder), name, layer)
    return paths


def store_frozen(unet: nn.Module, dtype: torch.dtype) -> None:
    """Keep the frozen matrices and kernels in `dtype`, norms and what is trained in float32.

    Under autocast in that dtype the results stay the same, bit for bit, and the memory of the frozen weights
    halves. It also saves time: autocast remembers its copies of trained weights only.
    """
    for module in unet.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.requires_grad:
            module.to(dtype)


def lora_of(unet: nn.Module, info: Mapping[str, str] | None = None) -> Lora:
    """A copy of a network's adapters as plain tensors; of a sharded one (FSDP2) every rank must call this."""
    layers = {
        path: LowRank(_whole(module.lora_A.weight), _whole(module.lora_B.weight), module.alpha)
        for path, module in unet.named_modules()
        if isinstance(module, Adapted)
    }
    return Lora(layers, dict(info or {}))


def save_lora(
    path: str | os.PathLike,
    unet: nn.Module,
    config: LoraConfig,
    *,
    base: str,
    steps: int,
    info: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the adapters of a network for ComfyUI's LoraLoaderModelOnly and `univid --lora`.

    The first rank writes; of a sharded network every rank must call this.

    Args:
        base: the name of the model that they were trained on. steps: of their training.
        info: more words for the file's metadata: licence, caption of the clip ...

    Raises:
        ValueError: no adapters, weights that are not finite in `dtype`, or a file that cannot be written.
    """
    words = {
        "format": "univid-lora",
        "format_version": "1",
        "base": base,
        "rank": str(config.rank),
        "alpha": f"{config.alpha:g}",
        "parts": config.parts,
        "steps": str(steps),
    }
    lora = lora_of(unet, {**(info or {}), **words})
    if distributed.rank() == 0:
        write_lora(path, lora, dtype=dtype)


def _whole(weight: Tensor) -> Tensor:
    weight = weight.detach()
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).clone()

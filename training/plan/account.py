"""The memory of one GPU, by part."""

import itertools
from dataclasses import dataclass

from torch import nn

from univid.unet import UNet

from .meter import Cost
from .workload import Frozen

LAYOUTS = ("one", "ddp", "fsdp")


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters of a network, and what FSDP gathers of it at once, in numbers of parameters."""

    trained: int
    frozen: int
    frozen_bytes: int
    gathered: int  # the most of two layers that follow each other, and of what belongs to no layer
    layer: int  # the most that one layer trains
    loose: int  # trained, in no layer


def weights_of(unet: UNet) -> Weights:
    def count(module: nn.Module, trained: bool | None = None) -> int:
        chosen = [p for p in module.parameters() if trained is None or p.requires_grad == trained]
        return sum(p.numel() for p in chosen)

    blocks = unet.blocks()
    loose = count(unet) - sum(map(count, blocks))
    return Weights(
        trained=count(unet, True),
        frozen=count(unet, False),
        frozen_bytes=sum(p.nbytes for p in unet.parameters() if not p.requires_grad),
        gathered=loose + max(count(a) + count(b) for a, b in itertools.pairwise(blocks)),
        layer=max(count(block, True) for block in blocks),
        loose=count(unet, True) - sum(count(block, True) for block in blocks),
    )


def account(
    layout: str,
    gpus: int,
    weights: Weights,
    passes: list[Cost],
    frozen: Frozen,
    accumulates: bool,
    teacher: int = 0,
) -> dict[str, int]:
    """Bytes by part on each of `gpus` at the worst moment of a step. The parts add up to the whole.

    layout: "one" GPU alone, "ddp" or "fsdp". passes: one of each modality; the one that needs most counts.
    accumulates: whether a step has more than one backward pass on a GPU; FSDP then keeps the sums of whole
    gradients, because only the last pass spreads them. teacher: bytes of its weights.
    """
    sharded = gpus if layout == "fsdp" else 1
    trained = 4 * weights.trained
    parts = {
        "trained weights, float32": trained / sharded,
        "frozen weights of the U-Net": weights.frozen_bytes / sharded,
        "teacher's weights": teacher,
        "gradients, float32": trained / sharded,
        "Adam's moments, float32": 2 * trained / sharded,
        "EMA, float32": trained / sharded,
        "autoencoder and towers": frozen.weights,
    }
    if layout == "ddp":
        parts["DDP's buckets"] = trained
    if layout == "fsdp":
        parts["gathered layers"] = 4 * weights.gathered
        gradients = 4 * (2 * weights.layer + weights.loose)
        parts["whole gradients"] = gradients + (trained if accumulates else 0)
    working = max(passes, key=lambda cost: cost.peak)
    parts["weights cast for matrix products"] = working.peak_copies
    parts["activations kept"] = working.kept
    parts["temporary tensors"] = working.peak - working.peak_copies - working.kept
    # The autoencoder works before the pass begins, when nothing else of the pass is there.
    at_work = ("weights cast for matrix products", "activations kept", "temporary tensors")
    parts["more for the autoencoder"] = max(0, frozen.working - sum(parts.get(part, 0) for part in at_work))
    return {part: round(size) for part, size in parts.items() if size}


def messages(layout: str, gpus: int, weights: Weights, passes: int) -> float:
    """Bytes that each GPU sends in a step, by rings: an all-reduce moves 2 (n - 1) / n of its size, an
    all-gather or a reduce-scatter (n - 1) / n. All in float32.

    DDP all-reduces the gradients, once. FSDP gathers all layers in each forward and again in each backward
    pass, and reduce-scatters the gradients, once.
    """
    ring = (gpus - 1) / gpus
    if layout == "fsdp":
        return ring * 4 * (2 * passes * (weights.trained + weights.frozen) + weights.trained)
    return ring * 2 * 4 * weights.trained

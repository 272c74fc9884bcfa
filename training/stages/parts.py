"""Which of a network's parameters belong to space and which to time, so that a run may train one of them."""

from torch import nn

from training.lora import layers_of
from univid.blocks import TemporalTransformer
from univid.family import DoubleTemporalTransformer, StackLayer
from univid.layers import PSTAttention, PSTConv

TEMPORAL = (PSTConv, PSTAttention, TemporalTransformer, StackLayer, DoubleTemporalTransformer)


def parameters_of(unet: nn.Module, part: str | None) -> set[str]:
    """The names of a part's parameters, in a U-Net without adapters.

    part: "spatial", what an image network of the same trunk has; "temporal", all that makes frames one clip;
        "temporal-attention", of it the attention along time, as a LoRA's; None or "all".
    """
    names = {name for name, _ in unet.named_parameters()}
    if part in (None, "all"):
        return names
    if part == "temporal-attention":
        layers = set(layers_of(unet, part))
        return {name for name in names if name.rpartition(".")[0] in layers}
    temporal = {
        f"{path}.{name}"
        for path, module in unet.named_modules()
        if isinstance(module, TEMPORAL)
        for name, _ in module.named_parameters()
    }
    temporal |= {name for name in names if ".norm_pst." in name or name.startswith("place_scale.")}
    return temporal if part == "temporal" else names - temporal

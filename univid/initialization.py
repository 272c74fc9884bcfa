"""Explicit initial weights: from scratch, and of what UniVid adds to an image model.

Layers that a host makes are not initialised at all, so nothing here relies on a constructor's defaults.
"""

import math

import torch
from torch import Tensor, nn

from .blocks import ResBlock, SpatialTransformer, TransformerBlock
from .encoders import ImageEncoder
from .family import DoubleTemporalTransformer, StackResBlock
from .layers import PSTConv
from .unet import ImageProjection, UNet


@torch.no_grad()
def initialize(unet: UNet, seed: int) -> None:
    """Weights for training from scratch, a pure function of the seed.

    Matrices are uniform within 1/sqrt(fan in); every residual branch of the trunk ends in zeros, as in Stable
    Diffusion's own training; what UniVid adds starts as `extend` says.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.weight.fill_(1)
            module.bias.zero_()
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding) and module is not unet.place_scale:
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters(recurse=False):
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    if unet.place_scale is not None:  # so large that a word differs visibly from place to place
        bound = 2.5 / math.sqrt(unet.place_scale.in_features)
        unet.place_scale.weight.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
    _zero(unet.out[-1])
    for module in unet.modules():
        if isinstance(module, ResBlock):
            _zero(module.out_layers[-1])
        elif isinstance(module, SpatialTransformer):
            _zero(module.proj_out)
    extend(unet)


@torch.no_grad()
def extend(unet: UNet) -> None:
    """What UniVid adds to a trained trunk: silent at first, and close to something that already works.

    PSTConv, PSTAttn, TemAttn, the relatives' temporal layers and the embeddings of numbers end in zeros, so a
    frame is what the image model makes of it. PSTAttn's projections start as copies of SelfAttn's, K_v and
    V_v as copies of K_t and V_t (UniVG).
    """
    for name in unet.config.numbers:
        _zero(unet.number_embedding(name)[-1])
    for module in unet.modules():
        if isinstance(module, PSTConv):
            _zero(module.conv)
        elif isinstance(module, SpatialTransformer) and module.temporal is not None:
            _zero(module.temporal.proj_out)
        elif isinstance(module, StackResBlock):
            _zero(module.temporal_stack[-1].conv)
        elif isinstance(module, DoubleTemporalTransformer):
            _zero(module.proj_out)
        elif isinstance(module, TransformerBlock):
            if unet.image_projection is not None:
                copy_text_stream(module)
            if module.pst_attn is not None:
                for name in ("to_q", "to_k", "to_v"):
                    _copy(getattr(module.attn1, name), getattr(module.pst_attn, name))
                _copy(module.norm1, module.norm_pst)
                _zero(module.pst_attn.to_out[0])


@torch.no_grad()
def start_image_stream(unet: UNet, vision: ImageEncoder) -> None:
    """Let the image stream start where the text stream's K and V can read it: in CLIP's joint space.

    Raises:
        ValueError: a U-Net without an image stream, or with another projection than LayerNorm and Linear.
    """
    projection = unet.image_projection
    if not isinstance(projection, ImageProjection):
        raise ValueError(
            f"expected an image stream with a linear projection, got "
            f"{unet.config.image_stream}; fix the config."
        )
    _copy(vision.ln_post, projection.norm)
    projection.proj.weight.copy_(vision.proj.T)
    for module in unet.modules():
        if isinstance(module, TransformerBlock):
            copy_text_stream(module)


@torch.no_grad()
def copy_text_stream(block: TransformerBlock) -> None:
    """K_v, V_v <- K_t, V_t."""
    _copy(block.attn2.to_k, block.attn2.to_k_image)
    _copy(block.attn2.to_v, block.attn2.to_v_image)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()


def _copy(source: nn.Module, target: nn.Module) -> None:
    tensors: list[Tensor] = list(source.parameters())
    for into, out in zip(target.parameters(), tensors, strict=True):
        into.copy_(out)

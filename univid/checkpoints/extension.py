"""What UniVid adds to an imported network: silent at first, so that it still gives what its source gives."""

import dataclasses
import re
import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import UNetConfig
from ..presets import PAPER

# Each tensor that a source may lack: "zeros", "ones", "drawn", or the tensor to copy.
NEW_TENSORS = {
    r"(.*)\.(in|out)_temporal\..*": "zeros",  # PSTConv
    r"(.*)\.norm_pst\.(.*)": r"\1.norm1.\2",  # PSTAttn
    r"(.*)\.pst_attn\.(to_[qkv]\..*)": r"\1.attn1.\2",
    r"(.*)\.pst_attn\.to_out\..*": "zeros",
    r"(.*)\.attn2\.(to_[kv])_image\.(.*)": r"\1.attn2.\2.\3",  # the image stream
    r"image_projection\.norm\.weight": "ones",
    r"image_projection\.norm\.bias": "zeros",
    r"image_projection\.proj\.weight": "drawn",
    r"(.*)\.temporal\.proj_out\..*": "zeros",  # TemAttn
    r"(.*)\.temporal\.norm\d?\.weight": "ones",
    r"(.*)\.temporal\..*weight": "drawn",
    r"(.*)\.temporal\..*bias": "zeros",
}


def extended(unet: UNetConfig, image_width: int | None) -> UNetConfig:
    """The architecture with the paper's pyramid and dual stream on top of a source's.

    An image trunk becomes the paper's network. A relative keeps its kinds of layer: its kernels become as
    long as the paper's, and PSTAttn and the image stream join where it has none.

    Args:
        image_width: of the tokens of a vision tower; None = those of the paper's.

    Raises:
        ValueError: more levels than the pyramid has; the text continues a sentence about the source.
    """
    paper, levels = PAPER.unet.temporal, len(unet.channel_mult)
    if levels > len(paper.conv_kernels):
        raise ValueError(f"has {levels} levels, the pyramid {len(paper.conv_kernels)}; take another source.")
    base = unet.temporal if unet.temporal.attention else paper
    stream = PAPER.unet.image_stream
    return dataclasses.replace(
        unet,
        temporal=dataclasses.replace(
            base, conv_kernels=paper.conv_kernels[:levels], segment_frames=paper.segment_frames[:levels]
        ),
        image_stream=unet.image_stream or dataclasses.replace(stream, width=image_width or stream.width),
    )


def new_tensor(key: str, shape: tuple[int, ...], source: Callable[[str], Tensor], seed: int) -> Tensor:
    """The start value of a tensor of the U-Net that the source does not have.

    source: gives the other tensors. A drawn tensor depends on `seed` and its own name alone.
    """
    pattern = rule_of(key)
    rule = NEW_TENSORS[pattern]
    if rule == "zeros":
        return torch.zeros(shape)
    if rule == "ones":
        return torch.ones(shape)
    if rule == "drawn":  # as torch.nn.Linear starts
        generator = torch.Generator().manual_seed(seed + zlib.crc32(key.encode()))
        bound = shape[1] ** -0.5
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return source(re.sub(pattern, rule, key))


def rule_of(key: str) -> str | None:
    """The pattern of NEW_TENSORS that the key matches."""
    return next((pattern for pattern in NEW_TENSORS if re.fullmatch(pattern, key)), None)


def padded(kernel: Tensor, taps: int) -> Tensor:
    """A temporal convolution's `[o c k 1]` with zeros before and after its k taps."""
    more = (taps - kernel.shape[2]) // 2
    return torch.nn.functional.pad(kernel, (0, 0, more, more))

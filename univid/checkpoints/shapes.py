"""Architectures read off the shapes of foreign tensors, or off the configs that lie beside them."""

import dataclasses
import re
from collections.abc import Mapping

from ..config import ResamplerConfig, TemporalConfig, TextConfig, UNetConfig, VAEConfig, VisionConfig
from ..messages import shown
from ..presets import PAPER
from .names import Table
from .settings import Settings

HEAD_CHANNELS = 64  # of the U-Nets of Stable Diffusion 2.x and its relatives; tensors do not show it
VISION_HEAD_WIDTH = 80  # of ViT-H-14
NORM_GROUPS = 32
TEXT_LAYERS = 24  # of ViT-H-14's text tower
RESAMPLER_TOKENS = 16  # for a frame, in DynamiCrafter
LAYERS = 128  # at most, in a tower or a level that a config describes
VOCABULARY = 2**24  # words at most; no tensor that an architecture is read off is larger along a dimension
NO_TIME = TemporalConfig(
    kind="univid",
    conv_kernels=(),
    segment_frames=(),
    attention=False,
    input_heads=None,
    position=None,
)

Shapes = Mapping[str, tuple[int, ...]]


def size(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor that an architecture is read off, without further dimensions of 1.

    Raises:
        ValueError: it is absent, or has another number of dimensions or an absurd size; the text continues a
            sentence that starts with the file's name, as all below.
    """
    if name not in shapes:
        raise ValueError(f"lacks {name!r}, or it is damaged; take another file.")
    shape, rest = shapes[name][:dimensions], shapes[name][dimensions:]
    if len(shape) != dimensions or set(rest) - {1} or not all(1 <= number <= VOCABULARY for number in shape):
        raise ValueError(
            f"has {name} of shape {shape + rest}, expected {dimensions} dimensions; take another file."
        )
    return shape


def count(shapes: Shapes, pattern: str) -> int:
    """How many numbers the pattern's group finds: 0, 1, 2 ...

    Raises:
        ValueError: some are left out, as no network has it.
    """
    matches = (re.fullmatch(pattern, name) for name in shapes)
    found = {match[1] for match in matches if match}
    if missing := sorted({str(number) for number in range(len(found))} - found):
        raise ValueError(
            f"has {len(found)} layers like {shown(pattern)}, but not the number {missing[0]}; "
            "it is damaged or of another model."
        )
    return len(found)


def ldm_unet(shapes: Shapes, head_channels: int) -> UNetConfig:
    """The image trunk of a U-Net with LDM's names, without anything temporal."""
    width, in_channels, _, _ = size(shapes, "input_blocks.0.0.weight", 4)
    blocks = range(len(shapes))
    downs = [0] + [
        i for i in blocks if {f"input_blocks.{i}.0.op.weight", f"input_blocks.{i}.op.weight"} & shapes.keys()
    ]
    if len(downs) == 1:
        raise ValueError("has a U-Net of a single level; it is damaged or of another model.")
    firsts = [f"input_blocks.{down + 1}" for down in downs]
    _, context = size(shapes, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2)
    if context == 768:
        raise ValueError(f"seems to be Stable Diffusion 1.x, with text tokens {context} wide; take 2.1.")
    return dataclasses.replace(
        PAPER.unet,
        model_channels=width,
        channel_mult=_multiples(
            tuple(size(shapes, f"{first}.0.in_layers.2.weight", 4)[0] for first in firsts), width
        ),
        in_channels=in_channels,
        out_channels=size(shapes, "out.2.weight", 4)[0],
        num_res_blocks=downs[1] - 1,
        attention_levels=tuple(f"{first}.1.proj_in.weight" in shapes for first in firsts),
        head_channels=head_channels,
        context_dim=context,
        norm_groups=NORM_GROUPS,
        temporal=NO_TIME,
        image_stream=None,
    )


def diffusers_unet(config: Settings, head_channels: int) -> UNetConfig:
    """The image trunk of a config of UNet2DConditionModel or UNet3DConditionModel."""
    widths, context = config.wholes("block_out_channels"), config.whole("cross_attention_dim")
    if context == 768:
        raise ValueError("seems to be Stable Diffusion 1.x, with text tokens 768 wide; take 2.1.")
    if config.values.get("addition_embed_type") is not None:
        raise ValueError("seems to be Stable Diffusion XL, which cannot be imported; take 2.1.")
    blocks = config.texts("down_block_types")
    if len(blocks) != len(widths):
        raise config.wrong("down_block_types", f"{len(widths)} words, as many as block_out_channels")
    return dataclasses.replace(
        PAPER.unet,
        model_channels=widths[0],
        channel_mult=_multiples(widths, widths[0]),
        in_channels=config.whole("in_channels"),
        out_channels=config.whole("out_channels"),
        num_res_blocks=config.whole("layers_per_block", LAYERS),
        attention_levels=tuple(block.startswith("CrossAttn") for block in blocks),
        head_channels=head_channels,
        context_dim=context,
        norm_groups=config.whole("norm_num_groups"),
        temporal=NO_TIME,
        image_stream=None,
    )


def head_channels(config: Settings) -> int:
    """The width of the heads, where attention_head_dim counts those of each level in spite of its name."""
    widths, name = config.wholes("block_out_channels"), "attention_head_dim"
    listed = isinstance(config.values.get(name), list)
    heads = config.wholes(name) if listed else (config.whole(name),) * len(widths)
    if len(heads) != len(widths) or any(width % count for width, count in zip(widths, heads, strict=True)):
        raise config.wrong(name, f"numbers of heads that divide the widths {widths}")
    sizes = {width // number for width, number in zip(widths, heads, strict=True)}
    if len(sizes) > 1:
        raise ValueError(
            f"has attention heads of several widths ({sorted(sizes)}), as Stable Diffusion 1.x, where a "
            "network here has one; take another model."
        )
    return sizes.pop()


def family_temporal(trunk: UNetConfig, input_width: int) -> TemporalConfig:
    """The temporal layers of all relatives: kernels of 3, and a temporal transformer behind the first layer.

    input_width: inside that transformer.
    """
    return TemporalConfig(
        kind="family",
        conv_kernels=(3,) * len(trunk.channel_mult),
        segment_frames=(),
        attention=True,
        input_heads=_heads(input_width, trunk.head_channels),
        position=None,
    )


def _multiples(widths: tuple[int, ...], base: int) -> tuple[int, ...]:
    if any(width % base for width in widths):
        raise ValueError(
            f"has levels {widths} wide, which are no multiples of {base}; it is damaged or of another model."
        )
    return tuple(width // base for width in widths)


def _heads(width: int, head_channels: int) -> int:
    if width % head_channels:
        raise ValueError(
            f"has an attention {width} wide, not a multiple of {head_channels}; say how wide its heads are."
        )
    return width // head_channels


def resampler(shapes: Shapes, head_channels: int, per_frame: bool) -> ResamplerConfig:
    """VideoCrafter1's or, with tokens for each frame, DynamiCrafter's `image_proj_model`."""
    _, queries, width = size(shapes, "latents", 3)
    return ResamplerConfig(
        width=width,
        depth=count(shapes, r"layers\.(\d+)\..*"),
        heads=_heads(size(shapes, "layers.0.0.to_q.weight", 2)[0], head_channels),
        head_channels=head_channels,
        tokens=RESAMPLER_TOKENS if per_frame else queries,
        frames=queries // RESAMPLER_TOKENS if per_frame else None,
    )


def ldm_vae(shapes: Shapes) -> VAEConfig:
    """The VAE of LDM's names."""
    levels = count(shapes, r"encoder\.down\.(\d+)\..*")
    channels, in_channels, _, _ = size(shapes, "encoder.conv_in.weight", 4)
    firsts = (f"encoder.down.{i}.block.0.conv1.weight" for i in range(max(levels, 1)))
    widths = tuple(size(shapes, first, 4)[0] for first in firsts)
    return VAEConfig(
        in_channels=in_channels,
        latent_channels=size(shapes, "post_quant_conv.weight", 4)[0],
        channels=channels,
        channel_mult=_multiples(widths, channels),
        num_res_blocks=count(shapes, r"encoder\.down\.0\.block\.(\d+)\..*"),
        norm_groups=NORM_GROUPS,
        scale=PAPER.vae.scale,
    )


def diffusers_vae(config: Settings) -> VAEConfig:
    """The VAE of a config of AutoencoderKL."""
    widths = config.wholes("block_out_channels")
    return VAEConfig(
        in_channels=config.whole("in_channels"),
        latent_channels=config.whole("latent_channels"),
        channels=widths[0],
        channel_mult=_multiples(widths, widths[0]),
        num_res_blocks=config.whole("layers_per_block", LAYERS),
        norm_groups=config.whole("norm_num_groups"),
        scale=config.number("scaling_factor", 0, 1000, PAPER.vae.scale),
    )


def open_clip_text(shapes: Shapes) -> TextConfig:
    """The text tower of open_clip's names; heads are 64 wide, as in ViT-H-14."""
    vocab_size, width = size(shapes, "token_embedding.weight", 2)
    layers = max(count(shapes, r"transformer\.resblocks\.(\d+)\..*"), 2)
    return TextConfig(
        width=width,
        heads=_heads(width, HEAD_CHANNELS),
        layers=TEXT_LAYERS
        if layers == TEXT_LAYERS - 1
        else layers,  # a file without the last, which gives no tokens
        context_length=size(shapes, "positional_embedding", 2)[0],
        vocab_size=vocab_size,
        embed_dim=size(shapes, "text_projection", 2)[1] if "text_projection" in shapes else width,
    )


def transformers_text(config: Settings) -> TextConfig:
    """The text tower of a config of CLIPTextModel."""
    if config.choice("hidden_act", ("gelu", "quick_gelu"), "quick_gelu") != "gelu":
        raise ValueError("seems to be Stable Diffusion 1.x, whose text tower uses quick_gelu; take 2.1.")
    width = config.whole("hidden_size")
    return TextConfig(
        width=width,
        heads=config.whole("num_attention_heads"),
        layers=config.whole("num_hidden_layers", LAYERS) + 1,  # the source cuts off the last one's tokens
        context_length=config.whole("max_position_embeddings"),
        vocab_size=config.whole("vocab_size", VOCABULARY),
        embed_dim=width,
    )


def vision(shapes: Shapes, table: Table) -> VisionConfig:
    """The vision tower whose names `table` brings to open_clip's."""

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        source = table.source(name)
        if source.endswith(".T"):
            return size(shapes, source.removesuffix(".T"), dimensions)[::-1]
        return size(shapes, source, dimensions)

    width, _, patch, _ = shape("conv1.weight", 4)
    if width % VISION_HEAD_WIDTH:
        raise ValueError(
            f"is {width} wide, not a multiple of {VISION_HEAD_WIDTH}; take CLIP ViT-H-14 (1280)."
        )
    side = round((shape("positional_embedding", 2)[0] - 1) ** 0.5)
    layers = 0
    while table.source(f"transformer.resblocks.{layers}.ln_1.weight") in shapes:
        layers += 1
    return VisionConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        layers=layers,
        head_width=VISION_HEAD_WIDTH,
        mlp_ratio=shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0] / width,
        embed_dim=shape("proj", 2)[1],
    )

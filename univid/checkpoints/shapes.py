"""Architectures read off the shapes of foreign tensors, or off the configs that lie beside them."""

import dataclasses
import re
from collections.abc import Mapping

from ..config import ResamplerConfig, TemporalConfig, TextConfig, UNetConfig, VAEConfig, VisionConfig
from ..presets import PAPER
from .names import Table

HEAD_CHANNELS = 64  # of the U-Nets of Stable Diffusion 2.x and its relatives; tensors do not show it
VISION_HEAD_WIDTH = 80  # of ViT-H-14
NORM_GROUPS = 32
TEXT_LAYERS = 24  # of ViT-H-14's text tower
RESAMPLER_TOKENS = 16  # for a frame, in DynamiCrafter
NO_TIME = TemporalConfig(
    kind="univid",
    conv_kernels=(),
    segment_frames=(),
    attention=False,
    input_heads=None,
    position=None,
)

Shapes = Mapping[str, tuple[int, ...]]


def count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that the pattern's group finds."""
    found = (re.fullmatch(pattern, name) for name in shapes)
    return max((int(match[1]) for match in found if match), default=-1) + 1


def ldm_unet(shapes: Shapes, head_channels: int) -> UNetConfig:
    """The image trunk of a U-Net with LDM's names, without anything temporal."""
    width, in_channels = shapes["input_blocks.0.0.weight"][:2]
    blocks = range(len(shapes))
    downs = [0] + [
        i for i in blocks if {f"input_blocks.{i}.0.op.weight", f"input_blocks.{i}.op.weight"} & shapes.keys()
    ]
    firsts = [f"input_blocks.{down + 1}" for down in downs]
    context = shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1]
    if context == 768:
        raise ValueError(f"seems to be Stable Diffusion 1.x, with text tokens {context} wide; take 2.1.")
    return dataclasses.replace(
        PAPER.unet,
        model_channels=width,
        channel_mult=tuple(shapes[f"{first}.0.in_layers.2.weight"][0] // width for first in firsts),
        in_channels=in_channels,
        out_channels=shapes["out.2.weight"][0],
        num_res_blocks=downs[1] - 1,
        attention_levels=tuple(f"{first}.1.proj_in.weight" in shapes for first in firsts),
        head_channels=head_channels,
        context_dim=context,
        norm_groups=NORM_GROUPS,
        temporal=NO_TIME,
        image_stream=None,
    )


def diffusers_unet(config: dict, head_channels: int) -> UNetConfig:
    """The image trunk of a config of UNet2DConditionModel or UNet3DConditionModel."""
    widths = config["block_out_channels"]
    if config["cross_attention_dim"] == 768:
        raise ValueError("seems to be Stable Diffusion 1.x, with text tokens 768 wide; take 2.1.")
    if config.get("addition_embed_type") is not None:
        raise ValueError("seems to be Stable Diffusion XL, which cannot be imported; take 2.1.")
    return dataclasses.replace(
        PAPER.unet,
        model_channels=widths[0],
        channel_mult=tuple(width // widths[0] for width in widths),
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        num_res_blocks=config["layers_per_block"],
        attention_levels=tuple(kind.startswith("CrossAttn") for kind in config["down_block_types"]),
        head_channels=head_channels,
        context_dim=config["cross_attention_dim"],
        norm_groups=config["norm_num_groups"],
        temporal=NO_TIME,
        image_stream=None,
    )


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


def _heads(width: int, head_channels: int) -> int:
    if width % head_channels:
        raise ValueError(
            f"has an attention {width} wide, not a multiple of {head_channels}; say how wide its heads are."
        )
    return width // head_channels


def resampler(shapes: Shapes, head_channels: int, per_frame: bool) -> ResamplerConfig:
    """VideoCrafter1's or, with tokens for each frame, DynamiCrafter's `image_proj_model`."""
    _, queries, width = shapes["latents"]
    return ResamplerConfig(
        width=width,
        depth=count(shapes, r"layers\.(\d+)\..*"),
        heads=_heads(shapes["layers.0.0.to_q.weight"][0], head_channels),
        head_channels=head_channels,
        tokens=RESAMPLER_TOKENS if per_frame else queries,
        frames=queries // RESAMPLER_TOKENS if per_frame else None,
    )


def ldm_vae(shapes: Shapes) -> VAEConfig:
    """The VAE of LDM's names."""
    levels = count(shapes, r"encoder\.down\.(\d+)\..*")
    channels, in_channels = shapes["encoder.conv_in.weight"][:2]
    return VAEConfig(
        in_channels=in_channels,
        latent_channels=shapes["post_quant_conv.weight"][0],
        channels=channels,
        channel_mult=tuple(
            shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] // channels for i in range(levels)
        ),
        num_res_blocks=count(shapes, r"encoder\.down\.0\.block\.(\d+)\..*"),
        norm_groups=NORM_GROUPS,
        scale=PAPER.vae.scale,
    )


def diffusers_vae(config: dict) -> VAEConfig:
    """The VAE of a config of AutoencoderKL."""
    widths = config["block_out_channels"]
    return VAEConfig(
        in_channels=config["in_channels"],
        latent_channels=config["latent_channels"],
        channels=widths[0],
        channel_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=config["layers_per_block"],
        norm_groups=config["norm_num_groups"],
        scale=config.get("scaling_factor", PAPER.vae.scale),
    )


def open_clip_text(shapes: Shapes) -> TextConfig:
    """The text tower of open_clip's names; heads are 64 wide, as in ViT-H-14."""
    vocab_size, width = shapes["token_embedding.weight"]
    layers = count(shapes, r"transformer\.resblocks\.(\d+)\..*")
    return TextConfig(
        width=width,
        heads=width // HEAD_CHANNELS,
        layers=TEXT_LAYERS
        if layers == TEXT_LAYERS - 1
        else layers,  # a file without the last, which gives no tokens
        context_length=shapes["positional_embedding"][0],
        vocab_size=vocab_size,
        embed_dim=shapes.get("text_projection", (width, width))[1],
    )


def transformers_text(config: dict) -> TextConfig:
    """The text tower of a config of CLIPTextModel."""
    if config["hidden_act"] != "gelu":
        raise ValueError(
            f"seems to be Stable Diffusion 1.x, whose text tower uses {config['hidden_act']}; take 2.1."
        )
    return TextConfig(
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        layers=config["num_hidden_layers"] + 1,  # diffusers cuts the last layer off and uses what is left
        context_length=config["max_position_embeddings"],
        vocab_size=config["vocab_size"],
        embed_dim=config["hidden_size"],
    )


def vision(shapes: Shapes, table: Table) -> VisionConfig:
    """The vision tower whose names `table` brings to open_clip's."""

    def shape(name: str) -> tuple[int, ...]:
        source = table.source(name)
        return shapes[source[:-2]][::-1] if source.endswith(".T") else shapes[source]

    width, _, patch, _ = shape("conv1.weight")
    if width % VISION_HEAD_WIDTH:
        raise ValueError(
            f"is {width} wide, not a multiple of {VISION_HEAD_WIDTH}; take CLIP ViT-H-14 (1280)."
        )
    side = round((shape("positional_embedding")[0] - 1) ** 0.5)
    layers = 0
    while table.source(f"transformer.resblocks.{layers}.ln_1.weight") in shapes:
        layers += 1
    return VisionConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        layers=layers,
        head_width=VISION_HEAD_WIDTH,
        mlp_ratio=shape("transformer.resblocks.0.mlp.c_fc.weight")[0] / width,
        embed_dim=shape("proj")[1],
    )

"""Rename tables of the public relatives (kind "family"): their U-Nets' names for ours."""

from dataclasses import dataclass

from ..config import UNetConfig
from .names import Gated, Source, Table, diffusers_unet

# Inside one temporal stack: each layer is a norm, an activation, from the second on a dropout, a convolution.
STACK = {f"{i}.norm.": f"conv{i + 1}.0." for i in range(4)} | {
    f"{i}.conv.": f"conv{i + 1}.{3 if i else 2}." for i in range(4)
}


def diffusers_family_unet(config: UNetConfig) -> Table:
    """UNet3DConditionModel (ModelScope, ZeroScope, Show-1) and the body of I2VGenXLUNet.

    Temporal layers lie beside the spatial ones there, in lists of their own; inside they have our names.
    """
    renames: dict[str, Source] = {"input_blocks.0.1.": "transformer_in."}

    def temporal(ours: str, transformer: str | None, theirs: str, i: int) -> None:
        renames.update(
            {f"{ours}.temporal_stack.{a}": f"{theirs}.temp_convs.{i}.{b}" for a, b in STACK.items()}
        )
        if transformer is not None:
            renames[f"{transformer}.temporal."] = f"{theirs}.temp_attentions.{i}."

    temporal("middle_block.0", "middle_block.1", "mid_block", 0)
    temporal("middle_block.2", None, "mid_block", 1)
    levels, per_level = len(config.channel_mult), config.num_res_blocks
    for level in range(levels):
        for i in range(per_level):
            ours = f"input_blocks.{1 + level * (per_level + 1) + i}"
            temporal(f"{ours}.0", f"{ours}.1", f"down_blocks.{level}", i)
        for i in range(per_level + 1):
            ours = f"output_blocks.{(levels - 1 - level) * (per_level + 1) + i}"
            temporal(f"{ours}.0", f"{ours}.1", f"up_blocks.{levels - 1 - level}", i)
    return Table(diffusers_unet(config).renames | renames)


@dataclass(frozen=True)
class Dialect:
    """Where files in LDM's layout differ among the relatives.

    prefix: of the U-Net. input_temporal: the temporal transformer after the first convolution. down: the end
    of a downsampling convolution's name. fps: the second time embedding. gated: the picture's attention has a
    learned scale.
    """

    prefix: str
    input_temporal: str
    down: str
    fps: str
    gated: bool


def ldm_family_unet(config: UNetConfig, dialect: Dialect) -> Table:
    """ModelScope's own U-Net, VideoCrafter's and DynamiCrafter's, with the image projection beside it.

    In a block theirs count the temporal transformer as a layer of its own, ours hangs on the spatial one.
    """
    prefix = dialect.prefix
    renames: dict[str, Source] = {
        "": prefix,
        "input_blocks.0.1.": prefix + dialect.input_temporal,
        "fps_embedding.": prefix + dialect.fps,
        "image_projection.": "image_proj_model.",
        "image_projection.latents.weight": "image_proj_model.latents[0]",
        "middle_block.2.": f"{prefix}middle_block.3.",
    }

    def res_block(ours: str, theirs: str) -> None:
        for a, b in STACK.items():
            renames[f"{ours}.temporal_stack.{a}"] = f"{prefix}{theirs}.temopral_conv.{b}"  # their spelling

    def transformer(block: str) -> None:
        renames[f"{block}.1.temporal."] = f"{prefix}{block}.2."
        for ours, theirs in (("to_k_image", "to_k_ip"), ("to_v_image", "to_v_ip")):
            attention = f"{block}.1.transformer_blocks.0.attn2."
            name = f"{prefix}{attention}{theirs}.weight"
            gate = dialect.gated and ours == "to_v_image"  # the values enter the attention's result linearly
            renames[f"{attention}{ours}.weight"] = Gated(name, f"{prefix}{attention}alpha") if gate else name

    res_block("middle_block.0", "middle_block.0")
    transformer("middle_block")
    res_block("middle_block.2", "middle_block.3")
    levels, per_level = len(config.channel_mult), config.num_res_blocks
    for level in range(levels):
        first, last = 1 + level * (per_level + 1), (level + 1) * (per_level + 1)
        blocks = [f"input_blocks.{first + i}" for i in range(per_level)]
        start = (levels - 1 - level) * (per_level + 1)
        blocks += [f"output_blocks.{start + i}" for i in range(per_level + 1)]
        for block in blocks:
            res_block(f"{block}.0", f"{block}.0")
            if config.attention_levels[level]:
                transformer(block)
        renames[f"input_blocks.{last}.0.op."] = f"{prefix}input_blocks.{last}{dialect.down}"
        if config.attention_levels[level]:
            renames[f"{blocks[-1]}.2.conv."] = f"{prefix}{blocks[-1]}.3.conv."
    return Table(renames)

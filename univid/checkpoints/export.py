"""A relative's U-Net out of a UniVid checkpoint, back into the layout of diffusers."""

import json
import os
from pathlib import Path

from ..config import UNetConfig
from ..files import output
from ..files.tensors import Entry
from ..messages import shown
from . import stream
from .family_names import diffusers_family_unet
from .opened import open_checkpoint

INPUT_HEADS = 8  # of diffusers' transformer_in


def export(path: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Write `folder`/unet/ as UNet3DConditionModel: config.json and diffusion_pytorch_model.safetensors.

    Raises:
        ValueError: not a UniVid checkpoint, an architecture that UNet3DConditionModel does not have, weights
            that are not finite, or a folder that cannot be written.
    """
    opened = open_checkpoint(path)
    unet, out = opened.config.unet, Path(folder) / "unet"
    if (problem := _problem(unet)) is not None:
        raise ValueError(
            f"{shown(path)} {problem}, which diffusers' UNet3DConditionModel has not; export a plain import "
            "of ModelScope, ZeroScope or Show-1."
        )
    table = diffusers_family_unet(unet)
    ours = {table.source(key): (key, entry) for key, entry in opened.entries("unet").items()}
    entries = {}
    for name, (_, entry) in ours.items():
        kernel = ".temp_convs." in name and len(entry.shape) == 4
        entries[name] = Entry(entry.dtype, (*entry.shape, 1) if kernel else entry.shape)

    def make(name: str):
        key, _ = ours[name]
        return opened.tensor("unet", key).reshape(entries[name].shape)

    licence = {"licence": opened.info["licence"]} if "licence" in opened.info else {}
    metadata = {"format": "pt"} | licence
    output.check_folder(out, size=stream.size_of(entries, metadata))
    with output.new_folder(out) as partial:
        stream.write_into(partial / "diffusion_pytorch_model.safetensors", entries, make, metadata)
        (partial / "config.json").write_text(json.dumps(_config(unet), indent=2) + "\n", "utf-8")


def _problem(unet: UNetConfig) -> str | None:
    """What the architecture has that UNet3DConditionModel cannot say."""
    temporal = unet.temporal
    if temporal.kind != "family" or not temporal.attention:
        return "has UniVid's own temporal layers"
    if temporal.segment_frames or set(temporal.conv_kernels) != {3}:
        return "is extended with longer kernels and PSTAttn"
    if unet.image_stream is not None:
        return "has an image stream"
    if unet.numbers:
        return f"has an embedding of {' and '.join(unet.numbers)}"
    if temporal.input_heads != INPUT_HEADS:
        return f"has {temporal.input_heads} heads behind its first layer"
    return None


def _config(unet: UNetConfig) -> dict:
    kinds = [("CrossAttn" if on else "", "Block3D") for on in unet.attention_levels]
    return {
        "_class_name": "UNet3DConditionModel",
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": [unet.model_channels * mult for mult in unet.channel_mult],
        "layers_per_block": unet.num_res_blocks,
        "down_block_types": ["Down".join(kind) for kind in kinds],
        "up_block_types": ["Up".join(kind) for kind in reversed(kinds)],
        "cross_attention_dim": unet.context_dim,
        "attention_head_dim": unet.head_channels,
        "norm_num_groups": unet.norm_groups,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "sample_size": 32,
    }

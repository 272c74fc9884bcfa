"""ModelScope's text-to-video network: its own file, or a diffusers folder (ZeroScope, Show-1's too)."""

import dataclasses
from pathlib import Path

from ..config import ModelConfig
from ..files.tensors import Weights
from . import shapes
from .family_names import Dialect, diffusers_family_unet, ldm_family_unet
from .foreign import (
    Asked,
    Foreign,
    diffusers_schedule,
    diffusers_towers,
    naming,
    open_part,
    shapes_below,
)
from .origins import ORIGINS, choose

NAMES = ("modelscope", "zeroscope", "zeroscope-xl", "show1-sr2")
NOTE = f"its tensors are those of {', '.join(NAMES[1:])} too: name one for its size and guidance"
DIALECT = Dialect(prefix="", input_temporal="input_blocks.0.1.", down=".op.", fps="", gated=False)


def open_file(weights: Weights, asked: Asked) -> Foreign:
    """`text2video_pytorch_model.pth`: the U-Net by itself.

    Raises:
        ValueError: another model or prediction type.
    """
    origin, note = _origin(asked)
    if asked.prediction not in (None, origin.schedule.prediction):
        raise ValueError(f"predicts {origin.schedule.prediction}, not {asked.prediction}; leave that out.")
    found = shapes_below(weights, "")
    trunk = shapes.ldm_unet(found, asked.head_channels)
    width, _ = shapes.size(found, "input_blocks.0.1.proj_in.weight", 2)
    unet = dataclasses.replace(trunk, temporal=shapes.family_temporal(trunk, width))
    config = ModelConfig(unet=unet, vae=None, text=None, vision=None, schedule=origin.schedule)
    return Foreign(origin, config, {"unet": (weights, ldm_family_unet(unet, DIALECT))}, note=note)


def open_folder(folder: Path, asked: Asked) -> Foreign:
    """A diffusers folder with a UNet3DConditionModel in unet/; vae/ and text_encoder/ may be absent.

    Raises:
        ValueError: a damaged folder, or another model.
    """
    weights, config = open_part(folder / "unet")
    towers, parts = diffusers_towers(folder)
    with naming(folder):
        origin, note = _origin(asked)
        trunk = shapes.diffusers_unet(config, config.whole("attention_head_dim"))
        width, _ = shapes.size(shapes_below(weights, ""), "transformer_in.proj_in.weight", 2)
        unet = dataclasses.replace(trunk, temporal=shapes.family_temporal(trunk, width))
    schedule = origin.schedule
    if (folder / "scheduler").is_dir() or asked.prediction is not None:
        schedule = diffusers_schedule(folder, schedule, asked.prediction)
    parts = {"unet": (weights, diffusers_family_unet(unet))} | parts
    return Foreign(origin, ModelConfig(unet=unet, schedule=schedule, **towers), parts, note=note)


def _origin(asked: Asked):
    name = choose(NAMES, asked.name, default=NAMES[0])
    return ORIGINS[name], NOTE if asked.name is None else ""

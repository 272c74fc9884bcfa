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
from .origins import ORIGINS, Origin, choose
from .settings import Settings

SHOW1 = "show1-sr2"
NAMES = ("modelscope", "zeroscope", "zeroscope-xl", SHOW1)
NOTE = f"its tensors are those of {', '.join(NAMES[1:])} too: name one for its size and guidance"
HEADS = "attention_head_dim"
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
        counted = _counts_heads(folder, config)
        origin, note = _origin(asked, (SHOW1,) if counted else NAMES)
        head_channels = _counted(config) if counted else config.whole(HEADS)
        trunk = shapes.diffusers_unet(config, head_channels)
        width, _ = shapes.size(shapes_below(weights, ""), "transformer_in.proj_in.weight", 2)
        unet = dataclasses.replace(trunk, temporal=shapes.family_temporal(trunk, width))
    schedule = origin.schedule
    if (folder / "scheduler").is_dir() or asked.prediction is not None:
        schedule = diffusers_schedule(folder, schedule, asked.prediction)
    parts = {"unet": (weights, diffusers_family_unet(unet))} | parts
    return Foreign(origin, ModelConfig(unet=unet, schedule=schedule, **towers), parts, note=note)


def _counts_heads(folder: Path, config: Settings) -> bool:
    """Whether the U-Net is of Show-1's own class, to which attention_head_dim is a number of heads.

    model_index.json says whose class it is. diffusers' own, of the same name, takes the entry for the width
    of the heads, and cannot be made with a list.
    """
    index = folder / "model_index.json"
    authors = index.exists() and Settings(index).texts("unet")[:1] != ("diffusers",)
    return authors or isinstance(config.values.get(HEADS), list)


def _counted(config: Settings) -> int:
    """The width of the heads in Show-1's class.

    Raises:
        ValueError: one number for all levels, which is hardly meant; or heads of another width than those
            that the class always has behind its first convolution.
    """
    width = shapes.HEAD_CHANNELS
    if not isinstance(config.values.get(HEADS), list):
        number = config.whole(HEADS)
        raise ValueError(
            f"names its authors' own U-Net class, to which {HEADS} {number} means {number} heads at every "
            f"level and not heads {width} wide; write the number of heads of each level there, as a list."
        )
    if (found := shapes.head_channels(config)) != width:
        raise ValueError(
            f"has attention heads {found} wide, and its authors' own U-Net class has them {width} wide "
            f"behind the first convolution; take a model with {width} everywhere."
        )
    return width


def _origin(asked: Asked, names: tuple[str, ...] = NAMES) -> tuple[Origin, str]:
    name = choose(names, asked.name, default=names[0])
    return ORIGINS[name], NOTE if asked.name is None and len(names) > 1 else ""

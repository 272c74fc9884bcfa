"""Stable Diffusion 2.x, the image trunk: one file in LDM's layout, or a diffusers folder."""

import dataclasses
from pathlib import Path

from ..config import ModelConfig, UNetConfig
from ..files.tensors import Weights
from ..messages import shown
from ..presets import SD21_SCHEDULE
from . import names, shapes
from .foreign import (
    Asked,
    Foreign,
    diffusers_schedule,
    diffusers_towers,
    ldm_towers,
    naming,
    open_part,
    shapes_below,
)
from .origins import ORIGINS, choose

NAME = "stable-diffusion-2"


def open_file(weights: Weights, asked: Asked) -> Foreign:
    """One file in LDM's layout. It does not say what its U-Net predicts.

    Raises:
        ValueError: another model, or no prediction type.
    """
    choose((NAME,), asked.name)
    unet = _checked(shapes.ldm_unet(shapes_below(weights, names.LDM_UNET.renames[""]), asked.head_channels))
    if asked.prediction is None:
        raise ValueError(
            "does not say what its U-Net predicts; give import the prediction 'v' for Stable "
            "Diffusion 2.1 (768 pixels) or 'eps' for 2.1-base (512 pixels)."
        )
    towers, parts = ldm_towers(weights)
    schedule = dataclasses.replace(SD21_SCHEDULE, prediction=asked.prediction)
    return Foreign(
        origin=ORIGINS[NAME],
        config=ModelConfig(unet=unet, schedule=schedule, **towers),
        parts={"unet": (weights, names.LDM_UNET)} | parts,
        dropped=names.LDM_REST,
    )


def open_folder(folder: Path, asked: Asked) -> Foreign:
    """A diffusers folder: unet/, vae/, text_encoder/ and scheduler/.

    Raises:
        ValueError: a missing file, another model, or no prediction type.
    """
    for part in ("vae", "text_encoder"):  # training needs all three
        if not (folder / part).is_dir():
            raise ValueError(f"{shown(folder)} has no {part}/ inside; give a whole diffusers folder.")
    weights, config = open_part(folder / "unet")
    towers, parts = diffusers_towers(folder)
    with naming(folder):
        choose((NAME,), asked.name)
        unet = _checked(shapes.diffusers_unet(config, shapes.head_channels(config)))
    schedule = diffusers_schedule(folder, SD21_SCHEDULE, asked.prediction)
    return Foreign(
        origin=ORIGINS[NAME],
        config=ModelConfig(unet=unet, schedule=schedule, **towers),
        parts={"unet": (weights, names.diffusers_unet(unet))} | parts,
    )


def _checked(unet: UNetConfig) -> UNetConfig:
    if unet.in_channels != 4:
        raise ValueError(
            f"takes {unet.in_channels} channels, not 4: an inpainting or depth model; take 2.1 itself."
        )
    return unet

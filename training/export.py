"""From the finished runs to one native checkpoint: the built-in model."""

import json
from pathlib import Path

import dacite
import torch

from training.config import Recipe
from training.stages.towers import frozen_towers
from training.stages.vae import frozen_vae
from training.state import load
from training.variants import CONFIGS
from univid import checkpoints
from univid.model import UniVid
from univid.presets import PROFILES
from univid.unet import UNet


def export(root: Path, run: str, out: Path) -> None:
    """Write the EMA weights of the U-Net run `run` and of the runs before it to `out`, in float16."""
    saved = load(root / run / "final.pt")
    options = saved["recipe"]["options"]
    config = CONFIGS[options["preset"]]
    towers = frozen_towers(root / options["towers"])
    unet = UNet(config.unet)
    unet.load_state_dict(saved["ema"])
    runs = lineage(root, run)
    model = UniVid(
        config=config,
        profile=PROFILES["tiny"],
        unet=unet,
        vae=frozen_vae(root / options["vae"]),
        text_encoder=towers.text,
        image_encoder=towers.vision,
        info={
            "source": f"python -m training tiny: {' -> '.join(runs)}",
            "training_step": str(saved["step"]),
            "training_minutes": ", ".join(f"{name} {minutes:.0f}" for name, minutes in runs.items()),
            "licence": "Apache-2.0",
        },
    )
    checkpoints.save(out, model, dtype=torch.float16)


def saved_recipe(folder: Path) -> Recipe | None:
    """The recipe of a run on real data, from its config.json; None for the runs of the built-in model.

    Raises:
        ValueError: no run there.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"expected a run in {folder}, got none; choose another with --root and --run.")
    saved = json.loads(path.read_text())
    if saved["task"] != "denoise":
        return None
    return dacite.from_dict(Recipe, saved, dacite.Config(cast=[tuple], strict=True))


def lineage(root: Path, run: str) -> dict[str, float]:
    """The runs that led to this one, first to last, and the minutes that each took."""
    saved = load(root / run / "final.pt")
    options = saved["recipe"]["options"] or {} or {}
    minutes: dict[str, float] = {}
    for parent in ("start", "vae", "towers"):
        if options.get(parent):
            minutes |= lineage(root, options[parent])
    return minutes | {run: saved["seconds"] / 60}

"""From the finished runs to one native checkpoint: the built-in model."""

from dataclasses import replace
from pathlib import Path

import torch

from training.saved import FINAL, load, take_over
from univid import checkpoints
from univid.messages import shown
from univid.model import UniVid
from univid.presets import PROFILES
from univid.unet import UNet
from univid.widened import widened

from .towers import frozen_towers
from .vae import frozen_vae
from .variants import config_of

# How the expert for known frames is sampled: windows of so many frames, of which half may be known; and in
# few steps, as known frames say most (of 144 frames in between 92 % lay right in 6, 85 in 4, 88 in 8, and 83
# in 8 under guidance of 1.5).
EXPERT_FRAMES, EXPERT_STEPS = 24, 6


def export(root: Path, run: str, out: Path) -> None:
    """Write the EMA weights of the U-Net run `run` and of the runs before it to `out`, in float16.

    Of an expert without what the built-in checkpoint has.

    Raises:
        ValueError: one of these runs is not finished, is damaged, or is not that of a U-Net.
    """
    path = root / run / FINAL
    saved = load(path)
    options = saved["recipe"].get("options")
    if not isinstance(options, dict) or not {"preset", "towers", "vae"} <= options.keys():
        raise ValueError(
            f"expected the run of a U-Net in {shown(path.parent)}, got another; choose one by --run."
        )
    config = config_of(options["preset"])
    towers = frozen_towers(root / options["towers"])
    runs = lineage(root, run)
    model = UniVid(
        config=config,
        profile=PROFILES["tiny"],
        unet=UNet(config.unet),
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
    if (joined := options.get("joined")) is not None:
        profile = replace(model.profile, frames=EXPERT_FRAMES, steps=EXPERT_STEPS)
        model = widened(replace(model, profile=profile), joined["concat"])
    take_over(model.unet, saved["ema"], path)
    checkpoints.save(out, model, dtype=torch.float16, beside_built_in=joined is not None)


def lineage(root: Path, run: str) -> dict[str, float]:
    """The runs that led to this one, first to last, and the minutes that each took.

    What came from a checkpoint (adopt.py) is what that says of itself.
    """
    saved = load(root / run / FINAL)
    if (adopted := saved["recipe"].get("adopted")) is not None:
        pairs = (pair.rpartition(" ") for pair in adopted.get("training_minutes", "").split(", "))
        return {name: float(minutes) for name, _, minutes in pairs if name}
    options = saved["recipe"].get("options") or {}
    minutes: dict[str, float] = {}
    for parent in ("start", "vae", "towers"):
        if options.get(parent):
            minutes |= lineage(root, options[parent])
    return minutes | {run: saved["seconds"] / 60}

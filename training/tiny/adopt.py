"""Go on from a finished checkpoint: its parts become the runs that the last recipes start from."""

from pathlib import Path

import torch

from training.saved import COUNTERS, FINAL
from univid import checkpoints
from univid.files.output import new_file

from .towers import Towers

ADOPTED = "tiny_pictures"  # the run from whose end training goes on
RUNS = ("tiny_vae", "tiny_vision", "tiny_images", ADOPTED)  # the last two: of the U-Net


def adopt(checkpoint: Path | str, root: Path) -> None:
    """Write the parts of a native checkpoint as finished runs below `root`; what is there stays.

    Raises:
        ValueError: no such checkpoint, or one without all four parts.
    """
    model = checkpoints.load(checkpoint, device="cpu", dtype=torch.float32)
    parts = (model.vae, model.text_encoder, model.image_encoder)
    if any(part is None for part in parts):
        raise ValueError(f"expected a checkpoint with all its parts, got {checkpoint}; take a whole one.")
    torch.manual_seed(0)
    towers = Towers()  # the clip head and the temperature are in no checkpoint
    towers.text.load_state_dict(model.text_encoder.state_dict())
    towers.vision.load_state_dict(model.image_encoder.state_dict())
    for name, module in zip(RUNS, (model.vae, towers, model.unet, model.unet), strict=True):
        path = root / name / FINAL
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = module.state_dict()
        recipe = {"name": name, "adopted": dict(model.info)}
        counters = dict.fromkeys(COUNTERS, 0)
        with new_file(path) as temporary, open(temporary, "wb") as file:
            torch.save({"model": weights, "ema": weights, "recipe": recipe} | counters, file)

"""Go on from a finished checkpoint: its parts become the runs that later recipes start from."""

from collections.abc import Sequence
from pathlib import Path

import torch

from training.saved import COUNTERS, FINAL
from univid import checkpoints
from univid.files.output import new_file

from .towers import Towers

ADOPTED = "tiny_pictures"  # the run from whose end training goes on
NETWORKS = ("tiny_images", ADOPTED)


def adopt(checkpoint: Path | str, root: Path, networks: Sequence[str] = NETWORKS) -> None:
    """Write the parts of a native checkpoint as finished runs below `root`; what is there stays.

    networks: the runs of the U-Net that its weights are to be.

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
    runs = {"tiny_vae": model.vae, "tiny_vision": towers} | dict.fromkeys(networks, model.unet)
    for name, module in runs.items():
        path = root / name / FINAL
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = module.state_dict()
        recipe = {"name": name, "adopted": dict(model.info)}
        counters = dict.fromkeys(COUNTERS, 0)
        with new_file(path) as temporary, open(temporary, "wb") as file:
            torch.save({"model": weights, "ema": weights, "recipe": recipe} | counters, file)

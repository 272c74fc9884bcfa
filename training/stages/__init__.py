"""One file a stage: what is trained, on what, against which loss."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from training.config import Recipe
from training.task import Task

from . import adapters, joint, pictures, steering, t2v
from .denoise import DenoiseTask
from .towers import TowersTask
from .unet import UNetTask
from .vae import AutoencoderTask
from .vision import VisionTask

# Names a recipe may give as its task: (recipe, folder of all runs) -> Task.
TASKS: dict[str, Callable[[Recipe, Path], Task]] = {
    "vae": AutoencoderTask,
    "towers": TowersTask,
    "vision": VisionTask,
    "denoise": DenoiseTask,  # real data; its stages are named in the recipe's options
    "t2v": partial(UNetTask, stage=t2v.STAGE),
    "adapters": partial(UNetTask, stage=adapters.STAGE),
    "joint": partial(UNetTask, stage=joint.STAGE),
    "pictures": partial(UNetTask, stage=pictures.STAGE),
    "steering": partial(UNetTask, stage=steering.STAGE),
}

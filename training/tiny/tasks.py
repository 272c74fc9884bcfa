"""Which task of the built-in model a recipe trains."""

from collections.abc import Callable
from pathlib import Path

import torch

from training.config import Options, Recipe
from training.task import Task

from .options import ShapesOptions, TowersOptions, VaeOptions, VisionOptions
from .towers import TowersTask
from .unet import UNetTask
from .vae import AutoencoderTask
from .vision import VisionTask

# By the type of a recipe's options: (recipe, folder of all runs, device) -> Task.
TASKS: dict[type[Options], Callable[[Recipe, Path, torch.device | str], Task]] = {
    VaeOptions: AutoencoderTask,
    TowersOptions: TowersTask,
    VisionOptions: VisionTask,
    ShapesOptions: UNetTask,
}


def build(recipe: Recipe, root: Path, device: torch.device | str = "cpu") -> Task:
    """The task of a recipe, below the folder of all runs, to be trained on a device.

    Raises:
        ValueError: what the task refuses.
    """
    task = next(task for options, task in TASKS.items() if isinstance(recipe.options, options))
    return task(recipe, root, device)

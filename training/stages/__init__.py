"""One file a stage: what is trained, on what, against which loss."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from training.config import Recipe
from training.options import DenoiseOptions, ShapesOptions, VaeOptions, VisionOptions
from training.task import Task
from univid.messages import shown

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
# And what its options are, where they are not those of the U-Net on the procedural set.
OPTIONS = {"vae": VaeOptions, "towers": type(None), "vision": VisionOptions, "denoise": DenoiseOptions}


def check_task(recipe: Recipe) -> None:
    """Refuse a task that there is not, or one that the recipe's options do not belong to.

    Raises:
        ValueError: in one sentence.
    """
    if recipe.task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {shown(recipe.task)!r}.")
    if not isinstance(recipe.options, OPTIONS.get(recipe.task, ShapesOptions)):
        raise ValueError(
            f"the recipe {recipe.name} has no options for the task {recipe.task!r}; leave its task as it is, "
            "or take another recipe."
        )


def build(recipe: Recipe, root: Path) -> Task:
    """The task of a recipe, below the folder of all runs.

    Raises:
        ValueError: as `check_task`, or what the task refuses.
    """
    check_task(recipe)
    return TASKS[recipe.task](recipe, root)

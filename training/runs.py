"""A run on real data from its recipe to the file that ComfyUI loads."""

import contextlib
from pathlib import Path

from . import distributed
from .config import Recipe
from .loop import train
from .saved import newest_weights
from .stages.denoise import DenoiseTask
from .stages.distill import DistillTask


def task_of(recipe: Recipe, root: Path) -> DenoiseTask:
    """What the loop trains by a recipe on real data."""
    return (DenoiseTask if recipe.options.noise.distill is None else DistillTask)(recipe, root)


def run(recipe: Recipe, root: Path, device) -> Path:
    """Train a recipe in its own folder below `root`; returns the file that ComfyUI loads."""
    task = task_of(recipe, root)
    with contextlib.closing(task.feed):
        train(recipe, task, root / recipe.name, device=device)
    out = root / recipe.name / f"{recipe.name}.safetensors"
    if distributed.rank() == 0:
        result(recipe, root, out)
    return out


def result(recipe: Recipe, root: Path, out: Path, *, beside_built_in: bool = False) -> None:
    """Write what the run of a recipe has made: a checkpoint, or a LoRA; beside_built_in: of a checkpoint."""
    from .stages.networks import write_result

    saved = newest_weights(root / recipe.name)
    write_result(recipe, root, saved["ema"], int(saved["step"]), out, beside_built_in=beside_built_in)

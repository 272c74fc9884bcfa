"""What the folder of a run on real data says of it, to make one file of its newest state."""

from pathlib import Path

import dacite

from training.config import Options, Recipe
from training.folder import RECORD, recorded
from training.options import DenoiseOptions
from univid.messages import shown


def saved_recipe(folder: Path) -> Recipe | None:
    """The recipe of a run on real data, as `folder.recorded`; None for the runs of the built-in model.

    Raises:
        ValueError: no run there, or its recipe is none of this version.
    """
    saved = recorded(folder)
    if saved.pop("task") != DenoiseOptions.task:
        return None
    how = dacite.Config(cast=[tuple], strict=True)
    how.type_hooks[Options] = lambda options: dacite.from_dict(DenoiseOptions, options, how)
    try:
        if "validation" in saved["options"]:  # where earlier versions had it
            saved["options"].setdefault("samples", {})["validation"] = saved["options"].pop("validation")
        return dacite.from_dict(Recipe, saved, how)
    except (dacite.DaciteError, KeyError, TypeError, ValueError, AttributeError) as error:
        field = f" at {shown(error.field_path)}" if getattr(error, "field_path", None) else ""
        raise ValueError(
            f"{shown(folder / RECORD)} is no recipe of this version{field}; put it back from a copy, or "
            "train under another name."
        ) from error

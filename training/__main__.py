"""`python -m training train RECIPE`."""

import sys
from pathlib import Path

from .loop import train
from .recipes import RECIPES
from .stages.vae import AutoencoderTask
from .stages.towers import TowersTask

if __name__ == "__main__":
    root = Path.home() / ".cache/univid"
    r = RECIPES[sys.argv[2]]()
    train(r, {"vae":AutoencoderTask,"towers":TowersTask}[r.task](r, root), root / r.name)

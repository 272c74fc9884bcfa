"""Stage: the small vision tower once more, against captions that stand still.

The text tower is finished, so each pair of frames is told apart from all captions, as CLIP classifies: no
batch has to hold the wrong answers, and a step costs no text.
"""

from pathlib import Path

import torch
from torch import Tensor

from training.config import Recipe

from .towers import ContrastTask, frozen_towers


class VisionTask(ContrastTask):
    """The towers of the run `start`, whose vision tower learns on."""

    def __init__(self, recipe: Recipe, root: Path, device: torch.device | str = "cpu"):
        super().__init__(recipe, device)  # clip head and temperature start anew
        start = frozen_towers(root / recipe.options.start)
        self.module.text.load_state_dict(start.text.state_dict())
        self.module.vision.load_state_dict(start.vision.state_dict())
        self.module.requires_grad_(False).to(device)
        with torch.no_grad():
            self.fixed = self.module.embed_text(self.stills), self.module.embed_text(self.captions)
        for part in (self.module.vision, self.module.clip_head, self.module.log_scale):
            part.requires_grad_(True)

    def tables(self, shown: Tensor, mine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return *self.fixed, shown[mine]

"""Stage: the small vision tower once more, against captions that stand still.

The text tower is finished, so each frame is told apart from all still captions and each pair of frames from
all captions, as CLIP classifies: no batch has to hold the wrong answers, and a step costs no text.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training.config import Recipe
from training.distributed import share
from training.task import MicroBatch, parameter_groups

from . import shapes
from .towers import Towers, draw_pairs, frozen_towers, zero_shot


class VisionTask:
    """The towers of the run `start`, whose vision tower learns on."""

    def __init__(self, recipe: Recipe, root: Path, device: torch.device | str = "cpu"):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.module = Towers().requires_grad_(False)  # clip head and temperature start anew
        start = frozen_towers(root / recipe.options.start)
        self.module.text.load_state_dict(start.text.state_dict())
        self.module.vision.load_state_dict(start.vision.state_dict())
        self.stills = sorted({scene.still_caption for scene in shapes.SCENES})
        self.captions = [scene.caption for scene in shapes.SEEN_SCENES]
        with torch.no_grad():
            self.still_table = self.module.embed_text(self.stills)
            self.caption_table = self.module.embed_text(self.captions)
        for part in (self.module.vision, self.module.clip_head, self.module.log_scale):
            part.requires_grad_(True)

    def parameter_groups(self) -> list[dict]:
        return parameter_groups(self.module)

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        size = self.recipe.batch["video"]
        yield MicroBatch("video", 1.0, share(range(step * size, (step + 1) * size)))

    def loss(self, batch: range) -> tuple[Tensor, dict[str, Tensor]]:
        clips, stills, captions = draw_pairs(batch, self.recipe.seed, shapes.SEEN_SCENES)
        frames, pairs = self.module.embed_clips(clips)
        still_loss, still_right = self._tell_apart(frames, self.still_table, self.stills, stills)
        clip_loss, clip_right = self._tell_apart(pairs, self.caption_table, self.captions, captions)
        return still_loss + clip_loss, {"still_accuracy": still_right, "clip_accuracy": clip_right}

    def _tell_apart(
        self, embeddings: Tensor, table: Tensor, words: list[str], truth: list[str]
    ) -> tuple[Tensor, Tensor]:
        targets = torch.tensor([words.index(caption) for caption in truth])
        logits = self.module.log_scale.clamp(max=math.log(100)).exp() * embeddings @ table.T
        return F.cross_entropy(logits, targets), (logits.argmax(1) == targets).float().mean().detach()

    def validate(self, module: Towers) -> dict[str, float]:
        return zero_shot(module)

"""Stage: the small OpenCLIP towers, contrastively, on pictures and on pairs of pictures.

CLIP's own loss pairs one picture with one caption. A caption of our grammar also names a motion, which one
picture does not show; so the first and the last frame of a clip, joined by a linear head that is dropped
afterwards, are paired with the full caption, and each frame alone with its still caption. Then motion words
get a meaning, and the picture's embedding has to say where and how large the shape is.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from training.config import Recipe
from training.distributed import share
from training.saved import FINAL, load, take_over
from training.task import MicroBatch, parameter_groups
from univid.encoders import ImageEncoder, TextEncoder, preprocess
from univid.presets import TINY

from . import shapes

VALIDATION_SEED = 999_983


class Towers(nn.Module):
    """Both towers, the clip head and the temperature of the contrast."""

    def __init__(self):
        super().__init__()
        config = TINY
        width = config.vision.embed_dim
        self.text = TextEncoder(config.text)
        self.vision = ImageEncoder(config.vision)
        self.clip_head = nn.Linear(2 * width, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def embed_text(self, captions: list[str]) -> Tensor:
        """Unit embeddings `[k e]`."""
        return F.normalize(self.text.pooled(self.text.tokenize(captions)).float(), dim=-1)

    def embed_clips(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """First and last frames `[b 3 2 h w]` -> unit embeddings: frames `[(b 2) e]`, pairs `[b e]`."""
        frames = preprocess(rearrange(video, "b c t h w -> (b t) c h w"), self.vision.config.image_size)
        pooled = self.vision.pooled(frames).float()
        pairs = self.clip_head(rearrange(pooled, "(b t) e -> b (t e)", t=2)).float()
        return F.normalize(pooled, dim=-1), F.normalize(pairs, dim=-1)


def frozen_towers(folder: Path) -> Towers:
    """The finished towers of a run, ready for the next stages."""
    towers, path = Towers(), folder / FINAL
    take_over(towers, load(path)["ema"], path)
    return towers.eval().requires_grad_(False)


class TowersTask:
    """InfoNCE from pictures and clips to the distinct captions of the batch."""

    def __init__(self, recipe: Recipe, root: Path, device: torch.device | str = "cpu"):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.module = Towers()

    def parameter_groups(self) -> list[dict]:
        return parameter_groups(self.module)

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        size = self.recipe.batch["video"]
        yield MicroBatch("video", 1.0, share(range(step * size, (step + 1) * size)))

    def loss(self, batch: range) -> tuple[Tensor, dict[str, Tensor]]:
        clips, stills, captions = draw_pairs(batch, self.recipe.seed, shapes.SEEN_SCENES)
        frames, pairs = self.module.embed_clips(clips)
        still_loss, still_right = self._contrast(frames, stills)
        clip_loss, clip_right = self._contrast(pairs, captions)
        return still_loss + clip_loss, {"still_accuracy": still_right, "clip_accuracy": clip_right}

    def _contrast(self, embeddings: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        distinct = sorted(set(captions))
        targets = torch.tensor([distinct.index(caption) for caption in captions])
        logits = (
            self.module.log_scale.clamp(max=math.log(100)).exp()
            * embeddings
            @ self.module.embed_text(distinct).T
        )
        return F.cross_entropy(logits, targets), (logits.argmax(1) == targets).float().mean().detach()

    def validate(self, module: Towers) -> dict[str, float]:
        return zero_shot(module)


def zero_shot(towers: Towers) -> dict[str, float]:
    """Accuracy of single frames over the 72 still captions, of clips over all 432 captions."""
    clips, stills, captions = draw_pairs(range(256), VALIDATION_SEED, shapes.SCENES)
    frames, pairs = towers.embed_clips(clips)
    all_stills = sorted({scene.still_caption for scene in shapes.SCENES})
    all_captions = [scene.caption for scene in shapes.SCENES]
    return {
        "still_accuracy": _accuracy(frames, towers.embed_text(all_stills), stills, all_stills),
        "clip_accuracy": _accuracy(pairs, towers.embed_text(all_captions), captions, all_captions),
    }


def draw_pairs(indices: range, seed: int, scenes) -> tuple[Tensor, list[str], list[str]]:
    """First and last frames `[b 3 2 h w]`, the still caption of every frame, the caption of every clip."""
    drawn = [shapes.clip(index, seed=seed, frames=2, scenes=scenes) for index in indices]
    video = shapes.to_video(torch.stack([torch.from_numpy(frames) for frames, _ in drawn]))
    stills = [scene.still_caption for _, scene in drawn for _ in range(2)]
    return video, stills, [scene.caption for _, scene in drawn]


def _accuracy(embeddings: Tensor, texts: Tensor, truth: list[str], captions: list[str]) -> float:
    chosen = (embeddings @ texts.T).argmax(1).tolist()
    return sum(captions[i] == caption for i, caption in zip(chosen, truth, strict=True)) / len(truth)

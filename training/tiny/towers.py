"""Stage: the small OpenCLIP towers, contrastively, on pictures and on pairs of pictures.

CLIP's own loss pairs one picture with one caption. A caption of our grammar also names a motion, which one
picture does not show; so the first and the last frame of a clip, joined by a linear head that is dropped
afterwards, are paired with the full caption, and each frame alone with its still caption. Then motion words
get a meaning, and the picture's embedding has to say where and how large the shape is.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from training import distributed
from training.config import Recipe
from training.rng import generator
from training.saved import FINAL, load, take_over
from training.task import MicroBatch, parameter_groups
from univid.encoders import ImageEncoder, TextEncoder, preprocess
from univid.presets import TINY

from . import shapes
from .painter import Painter

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

    def embed_text(self, ids: Tensor) -> Tensor:
        """Unit embeddings `[k e]` of token ids `[k n]`."""
        return F.normalize(self.text.pooled(ids).float(), dim=-1)

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


class ContrastTask(ABC):
    """Each frame against all still captions, each first and last frame together against captions.

    A step shows every scene at most once, so each of its captions is wrong for all other clips. What is held
    out is in none of them.
    """

    module: Towers

    def __init__(self, recipe: Recipe, device: torch.device | str):
        self.recipe, self.painter = recipe, Painter(device)
        torch.manual_seed(recipe.seed)
        self.module = Towers()
        captions = sorted({scene.still_caption for scene in shapes.SCENES})
        still_of = torch.tensor([captions.index(scene.still_caption) for scene in shapes.SEEN_SCENES])
        self.still_of = still_of.to(device)  # [s], of the seen scenes
        tokenize = self.module.text.tokenize
        self.stills = tokenize(captions).to(device)  # ids [72 n]
        self.captions = tokenize([scene.caption for scene in shapes.SEEN_SCENES]).to(device)  # [s n]

    @abstractmethod
    def tables(self, shown: Tensor, mine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of all still captions and of captions, and which of these are those of `shown[mine]`."""

    def parameter_groups(self) -> list[dict]:
        return parameter_groups(self.module)

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """This process's videos of first and last frames, all scenes of the step, and which are its own."""
        size, known, device = self.recipe.batch["video"], len(self.captions), self.painter.device
        if size > known:
            raise ValueError(
                f"expected at most {known} clips a step, one a scene, got {size}; lower the batch."
            )
        rng = generator(self.recipe.seed, "pairs", step, device)
        shown = torch.randperm(known, generator=rng, device=device)[:size]
        times = torch.arange(2.0, device=device).expand(size, 2)
        video = self.painter.videos(self.painter.seen[shown], times, rng)
        share = distributed.share(range(size))
        mine = torch.arange(share.start, share.stop, share.step, device=device)
        yield MicroBatch("video", 1.0, (video[mine], shown, mine))

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        video, shown, mine = batch
        frames, pairs = self.module.embed_clips(video)
        stills, captions, right = self.tables(shown, mine)
        still_loss, still_accuracy = self._tell_apart(
            frames, stills, self.still_of[shown[mine]].repeat_interleave(2)
        )
        clip_loss, clip_accuracy = self._tell_apart(pairs, captions, right)
        return still_loss + clip_loss, {"still_accuracy": still_accuracy, "clip_accuracy": clip_accuracy}

    def _tell_apart(self, embeddings: Tensor, table: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.module.log_scale.clamp(max=math.log(100)).exp() * embeddings @ table.T
        return F.cross_entropy(logits, right), (logits.argmax(1) == right).float().mean().detach()

    def validate(self, module: Towers) -> dict[str, float]:
        return zero_shot(module)


class TowersTask(ContrastTask):
    """InfoNCE: both towers learn, against the captions of the step."""

    def __init__(self, recipe: Recipe, root: Path, device: torch.device | str = "cpu"):
        super().__init__(recipe, device)

    def tables(self, shown: Tensor, mine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.module.embed_text(self.stills), self.module.embed_text(self.captions[shown]), mine


def zero_shot(towers: Towers) -> dict[str, float]:
    """Accuracy of single frames over the 72 still captions, of clips over all 432 captions."""
    device = next(towers.parameters()).device
    drawn = [shapes.clip(index, seed=VALIDATION_SEED, frames=2, scenes=shapes.SCENES) for index in range(256)]
    video = shapes.to_video(torch.stack([torch.from_numpy(frames) for frames, _ in drawn]))
    frames, pairs = towers.embed_clips(video.to(device))
    all_stills = sorted({scene.still_caption for scene in shapes.SCENES})
    all_captions = [scene.caption for scene in shapes.SCENES]

    def accuracy(embeddings: Tensor, truth: list[str], captions: list[str]) -> float:
        table = towers.embed_text(towers.text.tokenize(captions))
        chosen = (embeddings @ table.T).argmax(1).tolist()
        return sum(captions[i] == caption for i, caption in zip(chosen, truth, strict=True)) / len(truth)

    return {
        "still_accuracy": accuracy(
            frames, [scene.still_caption for _, scene in drawn for _ in range(2)], all_stills
        ),
        "clip_accuracy": accuracy(pairs, [scene.caption for _, scene in drawn], all_captions),
    }

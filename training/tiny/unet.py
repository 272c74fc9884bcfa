"""The stages of the U-Net on the procedural set: micro-batches of single frames and of clips.

A stage says which parameters it trains and in which modes it shows text and picture; see stages.py.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import distributed
from training.config import Recipe
from training.rng import generator
from training.saved import FINAL, load, take_over
from training.stages.denoising import (
    Samples,
    denoising_losses,
    draw_references,
    spread_timesteps,
    step_offset,
)
from training.task import MicroBatch, parameter_groups
from univid.attention import attention
from univid.conditioning import Conditioning
from univid.diffusion import NoiseSchedule
from univid.initialization import initialize
from univid.unet import UNet

from . import features, shapes
from .options import ShapesOptions
from .towers import frozen_towers
from .vae import frozen_vae
from .variants import config_of


def is_temporal(name: str) -> bool:
    """Whether a parameter belongs to PSTConv, PSTAttn or TemAttn."""
    return any(part in name for part in ("temporal.", "pst_attn.", "norm_pst."))


def attention_in_float32(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Keep attention in float32 under autocast: on a CPU its bf16 backward pass is five times slower."""
    with torch.autocast(q.device.type, enabled=False):
        return attention(q.float(), k.float(), v.float(), heads)


class UNetTask:
    """Denoising of cached latents. Frames, noise, modes and reference frames are functions of the step."""

    def __init__(self, recipe: Recipe, root: Path):
        options: ShapesOptions = recipe.options
        self.recipe, self.stage = recipe, options.stage
        self.config = config_of(options.preset)
        self.schedule = NoiseSchedule(self.config.schedule)
        self.vae = frozen_vae(root / options.vae)
        self.towers = frozen_towers(root / options.towers)
        self.text = features.CaptionTokens(self.towers.text)
        self.data = features.prepare(
            root, self.vae, self.towers.vision, seed=options.data_seed, clips=options.clips,
            frames=options.frames,
        )  # fmt: skip
        centers = [shapes.path_center(i, seed=options.data_seed) for i in range(options.clips)]
        off = torch.tensor(np.abs(np.stack(centers) - 0.5).max(1))
        self.centered = (off < options.shown.centered_within).nonzero()[:, 0]
        self.module = UNet(self.config.unet, attention=attention_in_float32)
        if options.start is None:
            initialize(self.module, recipe.seed)
        else:
            path = root / options.start / FINAL
            weights = load(path)["ema"]
            if options.start_spatial_only:
                initialize(self.module, recipe.seed)
                own = self.module.state_dict()
                weights = own | {
                    name: w for name, w in weights.items() if name in own and not is_temporal(name)
                }
            take_over(self.module, weights, path)
            if not options.start_spatial_only:
                self.stage.begin(self.module, self.towers.vision)
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(self.stage.trains(name))

    def parameter_groups(self) -> list[dict]:
        return parameter_groups(self.module)

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """Single frames first, then clips: the last backward pass reaches every parameter."""
        for modality in ("image", "video"):
            if size := self.recipe.batch.get(modality, 0):
                weight = self.recipe.options.loss_weights[modality]
                positions = distributed.share(range(step * size, (step + 1) * size))
                yield MicroBatch(modality, weight, self.samples(modality, positions, size))

    def loss(self, batch: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        prediction = self.config.schedule.prediction
        return denoising_losses(self.module, self.schedule, prediction, batch).mean(), {}

    def samples(self, modality: str, positions: range, size: int, seed: int | None = None) -> Samples:
        """The samples at global `positions`; `size` is that of the whole step's micro-batch."""
        seed = self.recipe.seed if seed is None else seed
        step = positions[0] // size
        drawn = [self._draw(modality, position, seed) for position in positions]
        latents, images, text, weights, noise, places = zip(*drawn, strict=True)
        timesteps = spread_timesteps(
            torch.tensor(positions) % size,
            size,
            step_offset(seed, f"{modality} timesteps", step),
            shift=self.recipe.options.timestep_shift[modality],
            num_timesteps=self.config.schedule.num_timesteps,
        )
        references = draw_references(self.config.unet, latents[0].shape[1], seed, step)
        cond = Conditioning(
            text=self.text(list(text)),
            image=torch.stack(images),
            weights=torch.tensor(weights),
            places=torch.stack(places),
        )
        return Samples(torch.stack(latents), torch.stack(noise), timesteps, cond, references)

    def _draw(
        self, modality: str, position: int, seed: int
    ) -> tuple[Tensor, Tensor, str, tuple[float, float], Tensor, Tensor]:
        """Latents `[c t h w]`, image tokens, caption, modality weights, noise and places `[t]` of one sample.

        A single frame is shown either as a picture of its own, or as what it is: a frame at its place in a
        clip. The second is the cheap way to learn where a word of motion puts a shape, frame by frame, and,
        when its picture is that of any frame of the clip, to keep what a picture shows in all of them.
        """
        rng = generator(seed, modality, position)
        if torch.rand((), generator=rng) < self.recipe.options.shown.centered_share:
            index = int(self.centered[torch.randint(len(self.centered), (), generator=rng)])
        else:
            index = int(torch.randint(len(self.data.scenes), (), generator=rng))
        scene = shapes.SCENES[self.data.scenes[index]]
        latents = self.data.latents[index].float()
        reference = int(
            torch.randint(latents.shape[1], (), generator=rng)
        )  # the frame that is shown as picture
        caption = scene.caption
        places = (torch.arange(latents.shape[1]) + 0.5) / latents.shape[1]
        if modality == "image":
            shown = slice(reference, reference + 1)
            if torch.rand((), generator=rng) < self.recipe.options.shown.still_share:
                caption = scene.still_caption
            if caption == scene.still_caption or not self.recipe.options.shown.places:
                places = torch.full_like(places, -1)
            elif self.recipe.options.shown.picture_of_clip:
                reference = int(torch.randint(latents.shape[1], (), generator=rng))
        else:
            stride = self.recipe.options.frame_stride
            shown = slice(int(torch.randint(stride, (), generator=rng)), None, stride)
        latents, places = latents[:, shown], places[shown]
        modes = list(self.stage.modes)
        chances = torch.tensor([self.stage.modes[mode] for mode in modes])
        has_text, weights = modes[int(torch.multinomial(chances, 1, generator=rng))]
        noise = torch.randn(latents.shape, generator=rng)
        image = self.data.image_tokens[index, reference].float()
        return latents, image, caption if has_text else features.EMPTY, weights, noise, places

    def validate(self, module: UNet) -> dict[str, float]:
        """Loss on samples that no step draws, always the same ones."""
        figures = {}
        trained, self.module = self.module, module
        for modality in ("image", "video"):
            size = {"image": 128, "video": 32}[modality]
            figures[f"{modality}_loss"] = self.loss(self.samples(modality, range(size), size, seed=-1))[
                0
            ].item()
        self.module = trained
        return figures

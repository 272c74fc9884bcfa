"""What the three stages of the U-Net share: micro-batches of single frames and of clips, and their loss.

A stage says which parameters it trains and in which modes it shows text and picture; see t2v.py, adapters.py
and joint.py.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import distributed
from training.config import Recipe
from training.data import features, shapes
from training.rng import generator
from training.state import load
from training.task import MicroBatch, parameter_groups
from training.variants import CONFIGS
from univid.attention import attention
from univid.conditioning import Conditioning
from univid.diffusion import NoiseSchedule, training_loss
from univid.initialization import initialize
from univid.layers import reference_frames
from univid.unet import UNet

from .towers import Towers, frozen_towers
from .vae import frozen_vae

# The conditions that a sample shows: (text given, modality weights (lambda_t, lambda_v)).
NONE, TEXT, BOTH = (False, (1.0, 0.0)), (True, (1.0, 0.0)), (True, (1.0, 1.0))
IMAGE, IMAGE_ONLY = (False, (1.0, 1.0)), (False, (0.0, 1.0))


@dataclass(frozen=True)
class Stage:
    """One of the paper's three stages (IV-A).

    trains: whether a parameter of this name is trained. modes: conditions and how often they are shown.
    """

    trains: Callable[[str], bool]
    modes: Mapping[tuple[bool, tuple[float, float]], float]
    begin: Callable[[UNet, Towers], None] = lambda unet, towers: None


@dataclass(frozen=True)
class Samples:
    """One micro-batch: latents `[b c t h w]`, the noise on them, and the conditions to denoise under."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    cond: Conditioning
    reference_frames: Mapping[int, Tensor]


def is_temporal(name: str) -> bool:
    """Whether a parameter belongs to PSTConv, PSTAttn or TemAttn."""
    return any(part in name for part in ("temporal.", "pst_attn.", "norm_pst."))


def attention_in_float32(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Keep attention in float32 under autocast: on a CPU its bf16 backward pass is five times slower."""
    with torch.autocast(q.device.type, enabled=False):
        return attention(q.float(), k.float(), v.float(), heads)


class UNetTask:
    """Denoising of cached latents. Frames, noise, modes and reference frames are functions of the step."""

    def __init__(self, recipe: Recipe, root: Path, stage: Stage):
        options = recipe.options
        self.recipe, self.stage = recipe, stage
        self.config = CONFIGS[options["preset"]]
        self.schedule = NoiseSchedule(self.config.schedule)
        self.vae = frozen_vae(root / options["vae"])
        self.towers = frozen_towers(root / options["towers"])
        self.text = features.CaptionTokens(self.towers.text)
        self.data = features.prepare(
            root, self.vae, self.towers.vision, seed=options["data_seed"], clips=options["clips"],
            frames=options["frames"],
        )  # fmt: skip
        centers = [shapes.path_center(i, seed=options["data_seed"]) for i in range(options["clips"])]
        off = torch.tensor(np.abs(np.stack(centers) - 0.5).max(1))
        self.centered = (off < options["centered_within"]).nonzero()[:, 0]
        self.module = UNet(self.config.unet, attention=attention_in_float32)
        if options["start"] is None:
            initialize(self.module, recipe.seed)
        elif options["start_spatial_only"]:
            initialize(self.module, recipe.seed)
            saved = load(root / options["start"] / "final.pt")["ema"]
            own = self.module.state_dict()
            self.module.load_state_dict(own | {name: saved[name] for name in own if not is_temporal(name)})
        else:
            self.module.load_state_dict(load(root / options["start"] / "final.pt")["ema"])
            stage.begin(self.module, self.towers)
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(stage.trains(name))

    def parameter_groups(self) -> list[dict]:
        return parameter_groups(self.module)

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """Single frames first, then clips: the last backward pass reaches every parameter."""
        for modality in ("image", "video"):
            if size := self.recipe.batch.get(modality, 0):
                weight = self.recipe.options["loss_weights"][modality]
                positions = distributed.share(range(step * size, (step + 1) * size))
                yield MicroBatch(modality, weight, self.samples(modality, positions, size))

    def loss(self, batch: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        def network(x: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
            return self.module(x, timesteps, cond, reference_frames=batch.reference_frames)

        prediction = self.config.schedule.prediction
        loss = training_loss(
            network, self.schedule, prediction, batch.latents, batch.noise, batch.timesteps, batch.cond
        )
        return loss.mean(), {}

    def samples(self, modality: str, positions: range, size: int, seed: int | None = None) -> Samples:
        """The samples at global `positions`; `size` is that of the whole step's micro-batch."""
        seed = self.recipe.seed if seed is None else seed
        step = positions[0] // size
        drawn = [self._draw(modality, position, seed) for position in positions]
        latents, images, text, weights, noise, places = zip(*drawn, strict=True)
        # One offset a step and an even spread over it: the timesteps of a batch cover the schedule evenly.
        # A shift above 1 then moves them towards noise (SD3, eq. 23), where a clip's motion is decided.
        offset = torch.rand((), generator=generator(seed, f"{modality} timesteps", step))
        spread = (offset + (torch.tensor(positions) % size) / size) % 1
        shift = self.recipe.options["timestep_shift"][modality]
        spread = shift * spread / (1 + (shift - 1) * spread)
        timesteps = (spread * self.config.schedule.num_timesteps).long()
        frames = latents[0].shape[1]
        references = {
            factor: reference_frames(frames, segment, generator(seed, f"references {factor}", step))
            for factor, segment in zip(
                self.config.unet.factors, self.config.unet.temporal.segment_frames, strict=False
            )
        }
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
        if torch.rand((), generator=rng) < self.recipe.options["centered_share"]:
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
            if torch.rand((), generator=rng) < self.recipe.options["still_share"]:
                caption = scene.still_caption
            if caption == scene.still_caption or not self.recipe.options["places"]:
                places = torch.full_like(places, -1)
            elif self.recipe.options["picture_of_clip"]:
                reference = int(torch.randint(latents.shape[1], (), generator=rng))
        else:
            stride = self.recipe.options["frame_stride"]
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

"""The stages of the U-Net on the procedural set: micro-batches of single frames and of clips.

A stage says which parameters it trains and in which modes it shows text and picture; see stages.py.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from training import distributed
from training.config import Recipe
from training.rng import generator
from training.saved import FINAL, load, take_over
from training.stages.conditions import draw_modes
from training.stages.denoising import (
    Samples,
    denoising_losses,
    draw_references,
    spread_timesteps,
    step_offset,
)
from training.stages.known import draw_known
from training.task import MicroBatch, parameter_groups
from univid.attention import attention
from univid.conditioning import Conditioning, streams_on
from univid.diffusion import NoiseSchedule
from univid.initialization import initialize
from univid.model import UniVid
from univid.presets import PROFILES
from univid.unet import UNet
from univid.widened import widened

from . import features
from .draws import Drawer
from .options import COUNTED, ShapesOptions
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
    """Denoising of cached latents. Frames, noise, modes and reference frames are functions of the step.

    All that a step shows is drawn at once, on the device. Processes draw the same, and take their shares.
    """

    def __init__(self, recipe: Recipe, root: Path, device: torch.device | str = "cpu"):
        options: ShapesOptions = recipe.options
        self.recipe, self.stage = recipe, options.stage
        # The same in every step, or processes would reach different parameters.
        self.streams = streams_on(torch.tensor([weights for _, weights in self.stage.modes]))
        self.config = config_of(options.preset)
        self.schedule = NoiseSchedule(self.config.schedule)
        self.vae = frozen_vae(root / options.vae)
        self.towers = frozen_towers(root / options.towers)
        self.device = torch.device(device)
        self.text = features.CaptionTokens(self.towers.text, device)
        self.data = features.prepare(
            root, self.vae, self.towers.vision, seed=options.data_seed, clips=options.clips,
            moments=options.moments, device=device,
        )  # fmt: skip
        centered = (self.data.off < options.shown.centered_within).nonzero()[:, 0].to(device)
        self.drawer = Drawer(options.shown, options.clips, centered, options.moments)
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
        if options.joined is not None:
            base = UniVid(self.config, PROFILES["tiny"], self.module)
            wider = widened(base, options.joined.concat, kernel=attention_in_float32)
            self.config, self.module = wider.config, wider.unet.train()
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(self.stage.trains(name))

    def parameter_groups(self) -> list[dict]:
        return parameter_groups(self.module)

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """Single frames first, then clips: the last backward pass reaches every parameter."""
        for modality in ("image", "video"):
            if self.recipe.batch.get(modality, 0):
                weight = self.recipe.options.loss_weights[modality]
                frames = self.frames_at(step) if modality == "video" else 1
                size = self.size(modality, frames)
                mine = distributed.share(range(size))
                yield MicroBatch(modality, weight, self.samples(modality, step, size, frames, mine))

    def frames_at(self, step: int) -> int:
        """The length of the clips of a step."""
        lengths = self.recipe.options.lengths
        chances = torch.tensor(list(lengths.values()))
        drawn = torch.multinomial(chances, 1, generator=generator(self.recipe.seed, "length", step))
        return list(lengths)[int(drawn)]

    def size(self, modality: str, frames: int) -> int:
        """How many samples of so many frames a step has: as many frames in all at any length.

        An even number, for two processes.
        """
        size = self.recipe.batch[modality]
        if modality == "image":
            return size
        return 2 * max(1, round(size * COUNTED / frames / 2))

    def loss(self, batch: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        prediction = self.config.schedule.prediction
        return denoising_losses(self.module, self.schedule, prediction, batch).mean(), {}

    def samples(
        self, modality: str, step: int, size: int, frames: int, mine: range, seed: int | None = None
    ) -> Samples:
        """The samples `mine` of all `size` of a step, of `frames` frames each."""
        options: ShapesOptions = self.recipe.options
        seed = self.recipe.seed if seed is None else seed
        rng = generator(seed, modality, step, self.device)
        drawn = self.drawer.images(size, rng) if frames == 1 else self.drawer.videos(size, frames, rng)
        scenes = self.data.scenes[drawn.clips]
        latents = self.data.latents[drawn.clips[:, None], drawn.moments].transpose(1, 2).float()
        noise = torch.randn(latents.shape, generator=rng, device=self.device)
        has_text, weights = self._modes(size, seed, modality, step)
        rows = torch.where(drawn.still, self.text.of_still[scenes], self.text.of_scene[scenes])
        rows = torch.where(has_text.to(self.device, non_blocking=True), rows, self.text.empty)
        picked = slice(mine.start, mine.stop, mine.step)
        timesteps = spread_timesteps(
            torch.arange(size, device=self.device),
            size,
            step_offset(seed, f"{modality} timesteps", step),
            shift=options.timestep_shift[modality],
            num_timesteps=self.config.schedule.num_timesteps,
        )
        latents, known = latents[picked], None
        places = drawn.places(options.moments, modality == "video" or options.shown.places)[picked]
        if options.joined is not None:
            places = None  # even, as in sampling, which knows of a window only what it shows
            streams = [generator(seed, f"{modality} known", step * size + index) for index in mine]
            known = draw_known(options.joined, latents.shape, streams)
        cond = Conditioning(
            text=self.text.table[rows[picked]],
            image=self.data.image_tokens[drawn.clips, drawn.pictures][picked].float(),
            weights=weights[picked],
            places=places,
            concat=known and known.channels(options.joined.concat, latents),
        )
        references = draw_references(self.config.unet, frames, seed, step)
        return Samples(latents, noise[picked], timesteps[picked], cond, references, self.streams)

    def _modes(self, size: int, seed: int, modality: str, step: int) -> tuple[Tensor, Tensor]:
        """Whether there is text `[b]`, and the modality weights `[b 2]`; both on the CPU, which decides."""
        modes = draw_modes(self.stage.modes, size, seed, f"{modality} modes", step)
        has_text, weights = zip(*modes, strict=True)
        return torch.tensor(has_text), torch.tensor(weights)

    def validate(self, module: UNet) -> dict[str, float]:
        """Loss on samples that no step draws, always the same ones."""
        figures = {}
        trained, self.module = self.module, module
        for name, size, frames in (("image", 128, 1), ("video", 32, 12), ("long", 12, 32)):
            modality = "image" if frames == 1 else "video"
            if modality not in self.recipe.batch:
                continue
            samples = self.samples(
                modality, 0, size, min(frames, self.recipe.options.moments), range(size), seed=-1
            )
            figures[f"{name}_loss"] = self.loss(samples)[0].item()
        self.module = trained
        return figures

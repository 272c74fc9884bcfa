"""The U-Net on real data, for the paper's three stages and for finetuning.

Whatever a sample gets (noise, timestep, mode) is a function of the seed and of its place in the run.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from training.config import Recipe
from training.data.samples import Example, PreparedExample
from training.lora import store_frozen
from training.options import DenoiseOptions
from training.rng import generator
from training.task import MicroBatch, parameter_groups
from univid.biased import BiasedNoise
from univid.devices import beside
from univid.diffusion import NoiseSchedule
from univid.unet import UNet
from univid.video import fit, from_uint8, read_image

from .base import Encoders, base_evidence
from .building import Builder, Streams
from .checks import check
from .conditions import Mode, draw_modes
from .denoising import (
    Samples,
    denoising_losses,
    draw_noise,
    draw_references,
    spread_timesteps,
    step_offset,
)
from .feed import Batch, Feed, check_prepared
from .known import draw_known
from .networks import (
    build_network,
    joined,
    load_joined,
    modes_of,
    starts_from_video,
    timesteps_of,
    trained_profile,
    write_result,
)


class DenoiseTask:
    """Denoising of latents. root: the folder of all runs; this one's is the one of its name there.

    Raises:
        ValueError: a base, data and options that do not go together, in one sentence.
    """

    def __init__(self, recipe: Recipe, root: Path):
        options: DenoiseOptions = recipe.options
        self.recipe, self.options, self.root = recipe, options, root
        base = load_joined(options, recipe.seed)
        check(recipe, base)
        check_prepared(options.data, base)
        base.profile = trained_profile(options, base)  # samples of the run are drawn by it
        self.config, self.profile = base.config, base.profile
        self.timesteps = timesteps_of(options, base)
        self.schedule = NoiseSchedule(self.config.schedule)
        self.modes = modes_of(options, base)
        self.feed = Feed(recipe, options.data, options.loss_weights, root / recipe.name)
        self.evidence = self.feed.evidence | {"base": base_evidence(options.base)}
        self.module: UNet = build_network(options, base, recipe.seed, root)
        if (
            options.lora is not None and options.frozen_dtype == recipe.dtype
        ):  # autocast would cast them anyway
            store_frozen(self.module, getattr(torch, recipe.dtype))
        self.encoders = Encoders(base, getattr(torch, options.frozen_dtype))
        self.builder = Builder(base, self.encoders, options.data.fps)
        self.joined = joined(options, base)
        base.unet = None  # `module` is a copy of it

    def parameter_groups(self) -> list[dict]:
        return parameter_groups(self.module)

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """Pictures, frames, then clips: the last backward pass reaches every parameter."""
        for batch in self.feed(step):
            share = len(batch.indices) / self.feed.local(batch.modality)
            weight = self.options.loss_weights.get(batch.modality, 1.0)
            yield MicroBatch(batch.modality, share * weight, batch)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self._losses(self.module, self.samples(batch)).mean(), {}

    def step_modes(self, modality: str, step: int) -> list[Mode]:
        """The modes of all samples of a step, those of the other processes too."""
        size = self.feed.batch[modality]
        return draw_modes(self.modes, size, self.recipe.seed, f"{modality} modes", step)

    def step_streams(self, step: int) -> Streams:
        """Which streams all of a step's micro-batches run: those that any of its samples shows.

        Otherwise the parameters that a process reaches would hang on its luck, and processes that share a
        network out among them would wait for each other for ever.
        """
        return self.builder.streams([mode for m in self.feed.batch for mode in self.step_modes(m, step)])

    def samples(self, batch: Batch) -> Samples:
        """What the network is to denoise, on its device."""
        modality, step, seed = batch.modality, batch.step, self.recipe.seed
        size, modes = self.feed.batch[modality], self.step_modes(modality, step)
        positions = [step * size + index for index in batch.indices]
        return self._build(
            batch.examples,
            [modes[index] for index in batch.indices],
            [generator(seed, f"{modality} noise", position) for position in positions],
            spread_timesteps(
                torch.tensor(batch.indices),
                size,
                step_offset(seed, f"{modality} timesteps", step),
                shift=self.options.noise.shift.get(modality, 1.0),
                num_timesteps=len(self.timesteps),
            ),
            self.step_streams(step),
            step,
        )

    def _build(
        self,
        examples: Sequence[Example | PreparedExample],
        modes: Sequence[Mode],
        generators: Sequence[torch.Generator],
        places: Tensor,
        streams: Streams,
        step: int,
    ) -> Samples:
        """places: of the samples' timesteps among those that are drawn."""
        self.encoders.device = next(self.module.parameters()).device
        latents = self.builder.latents(examples)
        noise = torch.stack([draw_noise(latents.shape[1:], self.options.noise.offset, g) for g in generators])
        noise, timesteps = beside(noise, latents), beside(self.timesteps.start + places, latents)
        known = None if self.joined is None else draw_known(self.joined, latents.shape, generators)
        cond = self.builder.conditions(examples, modes, latents, streams, known)
        if biased := self.profile.start.biased_noise:
            shown = self.builder.degraded(examples) if cond.concat is None else cond.concat
            noise = BiasedNoise(biased, self.schedule).noise(noise, shown, latents, timesteps)
        return Samples(
            latents=latents,
            noise=noise,
            timesteps=timesteps,
            cond=cond,
            reference_frames=draw_references(self.config.unet, latents.shape[2], self.recipe.seed, step),
            streams=streams,
        )

    def _losses(self, module: nn.Module, samples: Samples) -> Tensor:
        weighting = "min_snr" if self.options.noise.min_snr else "uniform"
        return denoising_losses(module, self.schedule, self.config.schedule.prediction, samples, weighting)

    @cached_property
    def fixed_examples(self) -> dict[str, list[Example | PreparedExample]]:
        """A few examples of each modality, the same ones at every time and in every process.

        They come from the data, in an order of their own: of much data they are unseen, of twenty clips not.
        """
        return {m: self.feed.fixed(m, self.options.samples.validation) for m in self.feed.batch}

    @cached_property
    def _fixed_samples(self) -> dict[str, list[Samples]]:
        """They with noise, modes and timesteps that do not change either, one at a time."""
        size, seed, samples = self.options.samples.validation, self.recipe.seed, {}
        timesteps = spread_timesteps(
            torch.arange(size), size, 0.5 / size, shift=1.0, num_timesteps=len(self.timesteps)
        )
        for modality, examples in self.fixed_examples.items():
            stream = f"{modality} validation"
            modes = draw_modes(self.modes, size, seed, stream, 0)
            streams = self.builder.streams(modes)
            samples[modality] = [
                self._build(
                    [example],
                    [modes[i]],
                    [generator(seed, f"{stream} noise", i)],
                    timesteps[i : i + 1],
                    streams,
                    0,
                )
                for i, example in enumerate(examples)
            ]
        return samples

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Loss by modality on samples, noise and timesteps that never change."""
        fixed = self._fixed_samples
        with self._autocast():
            return {
                f"{modality}_loss": torch.cat([self._losses(module, s) for s in samples]).mean().item()
                for modality, samples in fixed.items()
            }

    def draw_samples(self, module: nn.Module, folder: Path, step: int) -> None:
        """Write step_<n>.png and a clip for each prompt. Every process calls, the first writes."""
        from . import drawing  # and with it what pictures are drawn and written with

        self.encoders.device = next(module.parameters()).device
        examples = list(self.fixed_examples.values())[-1][: self.options.samples.count]
        first = examples[0]
        if isinstance(first, Example):
            height, width = first.pixels.shape[1:3]
        else:
            height, width = (side * self.config.vae.factor for side in first.latents.shape[2:])
        prompts, pictures = self._shown(examples)
        from_video = starts_from_video(self.profile)
        videos = [self._start(example) for example in examples] if from_video else [None] * len(prompts)
        frames = self.options.data.max_frames if "video" in self.feed.batch else 1
        with self._autocast():
            clips = drawing.draw(
                self.encoders.whole(module),
                prompts,
                pictures,
                videos,
                (frames, height, width),
                self.options.samples,
            )
        drawing.write(clips, prompts, folder, step, self.options.data.fps, self.recipe.name)

    def _shown(
        self, examples: Sequence[Example | PreparedExample]
    ) -> tuple[Sequence[str], Sequence[Tensor | None]]:
        """Prompts, and their pictures `[1 3 h w]`, to draw samples of."""
        asked = self.options.samples
        if asked.prompts:
            prompts = asked.prompts
            pictures = [read_image(picture) for picture in asked.pictures] or [None] * len(prompts)
        else:
            prompts, pictures = [example.caption for example in examples], [None] * len(examples)
            if self.profile.inputs.concat != "none":  # this model takes no prompt without a picture
                pictures = [self._first_frame(example) for example in examples]
        return prompts, pictures

    def _first_frame(self, example: Example | PreparedExample) -> Tensor:
        if isinstance(example, Example):
            return from_uint8(example.pixels[:1].numpy())[:, :, 0]
        return self._decoded(example.latents[:, :1])[:, :, 0]

    def _start(self, example: Example | PreparedExample) -> Tensor:
        """The video `[1 3 t h w]` that sampling starts from: the poor copy, else the clip at half size."""
        poor = example.degraded
        if isinstance(example, Example):
            video = from_uint8((example.pixels if poor is None else poor).numpy())
        else:
            video = self._decoded(example.latents if poor is None else poor)
        height, width = video.shape[-2:]
        return video if poor is not None else fit(fit(video, height // 2, width // 2), height, width)

    def _decoded(self, latents: Tensor) -> Tensor:
        """The video `[1 3 t h w]` of latents `[c t h w]`."""
        latents = latents[None].to(self.encoders.device)
        return self.encoders.part("vae").decode(latents).float().clamp(-1, 1).cpu()

    def export(self, state: Mapping[str, Tensor], step: int, path: Path) -> None:
        """Write the result of `step` steps, `state` being that of the network: a checkpoint, or the LoRA."""
        write_result(self.recipe, self.root, state, step, path)

    def _autocast(self) -> torch.autocast:
        """Compute as the training does; the loop puts it around the loss alone."""
        dtype = getattr(torch, self.recipe.dtype)
        return torch.autocast(self.encoders.device.type, dtype, enabled=dtype != torch.float32)

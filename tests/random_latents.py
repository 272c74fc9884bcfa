"""The U-Net trained on random latents and tokens, at the smallest size; for tests of the engine."""

import dataclasses

import torch

from training import distributed
from training.config import EngineConfig, LogsConfig, OptimConfig, Options, Recipe
from training.rng import generator
from training.task import MicroBatch, parameter_groups
from univid.conditioning import Conditioning
from univid.config import UNetConfig
from univid.diffusion import NoiseSchedule, training_loss
from univid.initialization import initialize
from univid.presets import TINY
from univid.unet import UNet

CONFIG = dataclasses.replace(
    TINY.unet, model_channels=16, head_channels=16, norm_groups=8, context_dim=32,
    image_stream=dataclasses.replace(TINY.unet.image_stream, width=32),
)  # fmt: skip
TEMPORAL = dataclasses.replace(CONFIG.temporal, conv_kernels=(3, 5), segment_frames=(8, 4))
SHALLOW = dataclasses.replace(CONFIG, channel_mult=(1, 2), attention_levels=(True, True), temporal=TEMPORAL)
SCHEDULE = NoiseSchedule(TINY.schedule)
FRAMES = {"image": 1, "video": 3}
STEPS, CUT = 10, 6


class Denoising:
    """The U-Net on random latents and tokens, which are functions of the sample's position."""

    def __init__(self, recipe: Recipe, config: UNetConfig = CONFIG):
        self.recipe = recipe
        self.module = UNet(config)
        initialize(self.module, 0)

    def parameter_groups(self):
        return parameter_groups(self.module)

    def micro_batches(self, step):
        for name, size in self.recipe.batch.items():
            positions = distributed.share(range(step * size, (step + 1) * size))
            passes = len(positions) // self.recipe.engine.micro_batch.get(name, len(positions))
            for part in range(passes):
                yield MicroBatch(name, 1 / passes, (name, positions[part::passes]))

    def loss(self, batch):
        name, positions = batch
        samples = [self.draw(name, position) for position in positions]
        x0, noise, text, image = (torch.stack(field) for field in zip(*samples, strict=True))
        timesteps = torch.tensor([(position * 377) % 1000 for position in positions])
        cond = Conditioning(text, image, torch.ones(len(positions), 2))
        loss = training_loss(self.module, SCHEDULE, "v", x0, noise, timesteps, cond)
        return loss.mean(), {"largest": loss.detach().amax()}

    def draw(self, name, position):
        rng = generator(self.recipe.seed, name, position)
        shapes = [(4, FRAMES[name], 8, 8)] * 2 + [(5, 32), (6, 32)]
        return [torch.randn(shape, generator=rng) for shape in shapes]

    def validate(self, module):
        assert not module.training
        return {"loss": self.loss(("video", range(-4, 0)))[0].item()}


def recipe(**engine) -> Recipe:
    return Recipe(
        name="denoising",
        seed=0,
        steps=STEPS,
        batch={"image": 4, "video": 4},
        optim=OptimConfig(lr=2e-3, warmup_steps=2, ema_decay=0.9, decay="constant"),
        options=Options(),
        engine=EngineConfig(**engine),
        logs=LogsConfig(save_every=CUT, validate_every=5),
    )

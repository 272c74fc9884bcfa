"""Golden numbers: the built-in architecture from a fixed seed, five training steps, one sampled latent.

They change when the network, its initial weights, the loss, the optimizer or a sampler changes; then say why
in the commit and renew them with `python tests/test_golden.py`.
"""

from dataclasses import replace

import pytest
import torch

from training.config import OptimConfig, Options, Recipe
from training.distributed import Network
from training.loop import build_optimizer, take_step
from training.state import State
from training.task import MicroBatch
from univid.conditioning import Conditioning
from univid.diffusion import Denoiser, NoiseSchedule, training_loss
from univid.guidance import Separate
from univid.initialization import initialize
from univid.presets import TINY
from univid.samplers import initial_x, sample_dpmpp_2m, sigma_schedule
from univid.unet import UNet

CONFIG = replace(TINY.unet, model_channels=24, head_channels=12, norm_groups=8, context_dim=16)
SCHEDULE = NoiseSchedule(TINY.schedule)

LOSSES = [1.000313, 0.986988, 0.967634, 0.944478, 0.927057]
LATENTS = [0.02851, 0.603, 1.11858, -0.20297]


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditions(clips: int) -> Conditioning:
    weights = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]).repeat(clips, 1)[:clips]
    return Conditioning(
        normal(clips, 5, 16, seed=1), normal(clips, 7, CONFIG.image_stream.width, seed=2), weights
    )


class Task:
    """Single frames and clips of fixed noise, as a stage of the U-Net shows them."""

    def __init__(self):
        self.module = UNet(CONFIG)
        initialize(self.module, seed=0)

    def parameter_groups(self):
        return [{"name": "all", "params": list(self.module.parameters())}]

    def micro_batches(self, step):
        for name, frames in (("image", 1), ("video", 5)):
            yield MicroBatch(name, 0.5, frames)

    def loss(self, batch: int):
        x0, noise = normal(3, 4, batch, 8, 8, seed=3), normal(3, 4, batch, 8, 8, seed=6)
        timesteps = torch.tensor([100, 500, 999])
        loss = training_loss(self.module, SCHEDULE, "v", x0, noise, timesteps, conditions(3))
        return loss.mean(), {}


def five_losses() -> tuple[list[float], UNet]:
    task = Task()
    recipe = Recipe(
        name="golden",
        seed=0,
        steps=5,
        batch={},
        optim=OptimConfig(lr=2e-3, warmup_steps=1),
        options=Options(),
    )
    state = State(task.module, build_optimizer(recipe.optim, task.parameter_groups()))
    network = Network(task, recipe.engine)
    losses = [float(take_step(recipe, task, network, state, torch.device("cpu"))["loss"]) for _ in range(5)]
    return losses, task.module


@torch.no_grad()
def sampled_latents(unet: UNet) -> list[float]:
    """Four numbers of a clip after three steps of DPM++ 2M with separate guidance."""
    sigmas = sigma_schedule("sgm_uniform", SCHEDULE, 3)
    cond = conditions(2)
    uncond = Conditioning(normal(2, 5, 16, seed=4), None, torch.tensor([[1.0, 0.0]] * 2))
    denoiser, guider = Denoiser(unet, SCHEDULE, "v"), Separate(text=3.0, image=2.0)
    x = initial_x(normal(2, 4, 5, 8, 8, seed=5), sigmas[0], SCHEDULE)
    latents = sample_dpmpp_2m(lambda x, sigma: guider(denoiser, x, sigma, cond, uncond), x, sigmas)
    return [
        latents.mean().item(),
        latents.std().item(),
        latents[0, 0, 0, 0, 0].item(),
        latents[1, 3, 4, 7, 7].item(),
    ]


def test_five_training_steps_and_a_sample():
    losses, unet = five_losses()
    assert losses == pytest.approx(LOSSES, rel=1e-3)
    assert sampled_latents(unet) == pytest.approx(LATENTS, rel=2e-2, abs=2e-3)


if __name__ == "__main__":
    values, trained = five_losses()
    print(f"LOSSES = {[round(v, 6) for v in values]}")
    print(f"LATENTS = {[round(v, 5) for v in sampled_latents(trained)]}")

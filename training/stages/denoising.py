"""What every training of the U-Net shares: noisy latents under conditions, their timesteps and their loss."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from training.rng import generator
from univid.conditioning import Conditioning
from univid.config import UNetConfig
from univid.diffusion import NoiseSchedule, training_loss
from univid.layers import reference_frames
from univid.unet import UNet


@dataclass(frozen=True)
class Samples:
    """One micro-batch: latents `[b c t h w]`, the noise on them, and the conditions to denoise under.

    streams: whether the streams of text and image run; None = those with a weight somewhere. It has to be
        said where the micro-batches of a step show different modes: all shall reach the same parameters.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    cond: Conditioning
    reference_frames: Mapping[int, Tensor]
    streams: tuple[bool, bool] | None = None


def spread_timesteps(
    indices: Tensor, size: int, offset: Tensor | float, *, shift: float, num_timesteps: int
) -> Tensor:
    """Timesteps of the samples `indices` of a step of `size` samples, int64 of the same shape; where an
    expert draws only some of a schedule's, their places among those.

    One offset a step and an even spread over it: the timesteps of a batch cover the schedule evenly. A shift
    above 1 then moves them towards noise (SD3, eq. 23), where a clip's motion is decided.
    """
    spread = (offset + indices / size) % 1
    spread = shift * spread / (1 + (shift - 1) * spread)
    return (spread * num_timesteps).long().clamp(max=num_timesteps - 1)  # from 3 on, a shift may round to 1


def step_offset(seed: int, stream: str, step: int) -> Tensor:
    """The offset of a step's timesteps, in 0..1."""
    return torch.rand((), generator=generator(seed, stream, step))


def draw_references(config: UNetConfig, frames: int, seed: int, step: int) -> dict[int, Tensor]:
    """PSTAttn's reference frames of a step, the same for all its samples: {f: indices}."""
    return {
        factor: reference_frames(frames, segment, generator(seed, f"references {factor}", step))
        for factor, segment in zip(config.factors, config.temporal.segment_frames, strict=False)
    }


def denoising_losses(
    unet: UNet, schedule: NoiseSchedule, prediction: str, batch: Samples, weighting: str = "uniform"
) -> Tensor:
    """The loss of each sample, `[b]`."""

    def network(x: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        return unet(x, timesteps, cond, reference_frames=batch.reference_frames, streams=batch.streams)

    return training_loss(
        network, schedule, prediction, batch.latents, batch.noise, batch.timesteps, batch.cond, weighting
    )


def draw_noise(shape: torch.Size, offset: float, generator: torch.Generator) -> Tensor:
    """The noise on one clip's latents `[c t h w]`, on the CPU.

    offset: strength of offset noise (Guttenberg 2023; UniVG: 0.1): one number a channel, added everywhere.
        White noise hardly touches a picture's mean, so without it the network never learns to change that.
        paper: silent on what it is drawn for; we: for each clip, not each frame, because the frames of a clip
        have nearly the same mean, and offsets of their own would teach the network to flicker.
    """
    noise = torch.randn(shape, generator=generator)
    if offset:
        noise = noise + offset * torch.randn(shape[0], 1, 1, 1, generator=generator)
    return noise

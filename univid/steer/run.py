"""One run of sampling under a Steering: what acts at each noise level, and what is kept between them."""

import dataclasses
from functools import partial

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..config import UNetConfig
from ..curves import at_progress, progress
from ..diffusion import Denoiser
from .reuse import Kept
from .steering import Steering
from .temporal import TemporalGuidance


class Run:
    """A denoiser, whose network is a UNet, in one run of sampling.

    pictures: by what the shares of several are multiplied along it, `[1 POINTS p]`; None = by 1.
    """

    def __init__(self, denoiser: Denoiser, steering: Steering, pictures: Tensor | None = None):
        self.denoiser, self.steering, self.pictures = denoiser, steering, pictures
        self.kept = Kept(steering.reuse) if steering.reuses else None

    def at(self, sigma: Tensor) -> tuple[Denoiser, TemporalGuidance | None]:
        """The denoiser at a noise level, a number on the CPU, and what guides over time there."""
        schedule, steering = self.denoiser.schedule, self.steering
        if steering.dynamics is not None:
            steering = steering.at(progress(schedule.timestep(sigma), schedule.last).item())
        if self.kept is not None:
            self.kept.begin(sigma.item())
        network = partial(self._network, steering)
        denoiser = dataclasses.replace(self.denoiser, network=network)
        if not steering.temporal_guidance:
            return denoiser, None
        alone = dataclasses.replace(denoiser, network=partial(network, alone=True))
        return denoiser, TemporalGuidance(steering.temporal_guidance, alone)

    def shown(self, cond: Conditioning, sigma: Tensor) -> Conditioning:
        """The conditions at a noise level, a number on the CPU: each picture's map has its share there."""
        if self.pictures is None:
            return cond
        schedule = self.denoiser.schedule
        (shares,) = at_progress(self.pictures, progress(schedule.timestep(sigma), schedule.last))  # [p]
        factors = torch.cat([torch.ones(1), shares]).to(cond.maps)  # the text's is 1
        return dataclasses.replace(cond, maps=cond.maps * factors[:, None, None])

    def _network(self, steering: Steering, x: Tensor, timesteps: Tensor, cond, alone: bool = False) -> Tensor:
        network = partial(self.denoiser.network, steering=steering)
        if alone:
            network = partial(network, alone=True)
        if self.kept is not None:  # a branch has the same place in the batch of every call
            network = partial(network, kept=self.kept.ask([(len(x), i, alone) for i in range(len(x))], x))
        return network(x, timesteps, cond)


def check_steering(steering: Steering, config: UNetConfig) -> None:
    """Refuse, by a ValueError, what a network has no place for."""
    if steering.dynamics is not None and not config.temporal.attention:
        raise ValueError("this model has no attention over time, in which dynamics act; leave them out.")
    if steering.reuse is not None:
        steering.reuse.check(output_blocks(config))


def output_blocks(config: UNetConfig) -> int:
    """How many output blocks a network has."""
    return len(config.channel_mult) * (config.num_res_blocks + 1)

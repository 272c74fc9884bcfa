"""Consistency distillation: a network that answers in few steps, with one call each.

The teacher is the network as the run found it, under the guidance that its model is sampled with. From a
noisy clip it goes one short step of its ODE (2303.01469, alg. 2; 2310.04378). The student learns to give the
same clean clip at both ends of that step, and at the last one, where no noise is left, the teacher's own. So
it learns to jump to the end of the whole way, and guidance with it: afterwards it is sampled without, by
"lcm". It can be a LoRA, which turns other finetunes of the base into fast ones too (2311.05556).

paper: the student's moving average answers at the nearer end; we: the student itself, without a gradient,
which is as good (2310.14189, 3.2), and its pseudo-Huber loss.
"""

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from training.config import Recipe
from training.lora import store_frozen
from univid.conditioning import Conditioning, with_null_image
from univid.devices import beside
from univid.diffusion import Denoiser, NoiseSchedule, broadcast
from univid.guidance import Joint, Nested, Separate
from univid.pipeline import profile_guider
from univid.samplers import initial_x, sigma_schedule

from .base import describe_base
from .denoise import DenoiseTask
from .denoising import Samples

HUBER = 0.00054  # of the root mean square error: 2310.14189, 3.3


@dataclass(frozen=True)
class Distilled(Samples):
    """places: on the CPU, which interval of the teacher's way a sample is in, `[b]`: 0 = the last one, which
    ends without noise. timesteps: the same. uncond: what guidance leads away from.
    """

    places: Tensor | None = None
    uncond: Conditioning | None = None


class DistillTask(DenoiseTask):
    """Denoising in which the network is its own teacher.

    Raises:
        ValueError: as DenoiseTask.
    """

    def __init__(self, recipe: Recipe, root: Path):
        super().__init__(recipe, root)
        asked = self.options.noise.distill
        _, profile = describe_base(self.options.base)
        self.guider = profile_guider(profile) if asked.guidance is None else Joint(asked.guidance)
        self.schedule = self.schedule.starting(profile.start)
        self.sigmas = sigma_schedule("sgm_uniform", self.schedule, asked.intervals)
        self.timesteps = range(asked.intervals)
        # Nothing is learnt yet, and adapters start at zero.
        self.teacher = copy.deepcopy(self.module).eval().requires_grad_(False)
        if self.options.frozen_dtype == recipe.dtype:
            store_frozen(self.teacher, getattr(torch, recipe.dtype))

    def _build(self, examples, modes, generators, places: Tensor, streams, step) -> Distilled:
        samples = super()._build(examples, modes, generators, places, streams, step)
        cond = samples.cond
        nothing = self.encoders.text_tokens([""]).expand(cond.clips, -1, -1)
        weights = torch.tensor([[1.0, 0.0]]).expand(cond.clips, -1)
        uncond = Conditioning(nothing, None, weights, concat=cond.concat, numbers=cond.numbers)
        if (null := self.encoders.null_image()) is not None:
            uncond = with_null_image(uncond, null)
        return Distilled(**vars(samples), places=places, uncond=uncond)

    def _losses(self, module: nn.Module, samples: Distilled) -> Tensor:
        self.teacher.to(samples.latents.device)
        ends = self.sigmas.flip(0)
        nearer, sigmas = ends[samples.places], ends[samples.places + 1]
        looking = {"reference_frames": samples.reference_frames}
        student = self._denoiser(partial(module, **looking, streams=samples.streams))
        teacher = self._denoiser(partial(self.teacher, **looking))
        return consistency_losses(student, teacher, self.guider, samples, sigmas, nearer)

    def _denoiser(self, network) -> Denoiser:
        return Denoiser(network, self.schedule, self.config.schedule.prediction)


def consistency_losses(
    student: Denoiser,
    teacher: Denoiser,
    guider: Joint | Separate | Nested,
    samples: Distilled,
    sigmas: Tensor,
    nearer: Tensor,
) -> Tensor:
    """How far the student's answers at both ends of a step are apart, `[b]`.

    sigmas, nearer: of the step's ends, `[b]`; 0 = no noise is left there.
    """
    x = _noisy(samples, sigmas, student.schedule)
    with torch.no_grad():
        clean = guider(teacher, x, sigmas, samples.cond, samples.uncond)
        step = clean + (x - clean) * broadcast(nearer / sigmas, x)
        ended = beside(nearer == 0, x)[:, None, None, None, None]
        there = student(step, torch.where(nearer == 0, sigmas, nearer), samples.cond)
        target = torch.where(ended, clean, there)
    error = (student(x, sigmas, samples.cond) - target).square().flatten(1).mean(1)
    return (error + HUBER**2).sqrt() - HUBER


def _noisy(samples: Samples, sigmas: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The clips at sigmas `[b]`; at the largest there is noise alone, as sampling begins."""
    pure = schedule.from_noise & (sigmas >= schedule.sigma_max * (1 - 1e-5))
    return torch.cat(
        [
            initial_x(noise[None], sigma, schedule, None if alone else latents[None])
            for latents, noise, sigma, alone in zip(
                samples.latents, samples.noise, sigmas, pure.tolist(), strict=True
            )
        ]
    )

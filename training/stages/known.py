"""Known frames in training: which of a clip's frames the network is shown, and how noisy (Show-1 3.3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.options import JoinedOptions
from univid.config import KNOWN
from univid.known import known_channels

from . import joint
from .conditions import Stage


def _start(frames: int, generator: torch.Generator) -> list[int]:
    return list(range(int(torch.randint(1, frames, (), generator=generator))))


def _every(frames: int, generator: torch.Generator) -> list[int]:
    return list(range(0, frames, int(torch.randint(2, max(3, frames), (), generator=generator))))


# Frames that are known, of a clip of at least two.
PATTERNS: dict[str, Callable[[int, torch.Generator], list[int]]] = {
    "none": lambda frames, generator: [],
    "first": lambda frames, generator: [0],  # a picture that is animated
    "ends": lambda frames, generator: [0, frames - 1],  # from one picture to another, or round to the same
    "start": _start,  # a clip that goes on
    "every": _every,  # one that gets more frames
}


STAGE = Stage(trains=lambda name: True, modes=joint.STAGE.modes, takes=KNOWN)


@dataclass(frozen=True)
class Known:
    """Of `b` clips. mask: `[b t]` bool. levels: of noise, `[b]`. noise: `[b c t h w]`."""

    mask: Tensor
    levels: Tensor
    noise: Tensor

    def channels(self, kind: str, latents: Tensor) -> Tensor:
        """What joins the input, `[b c+1 t h w]`."""
        levels = self.levels.to(latents)[:, None, None, None, None]
        return known_channels(kind, latents + levels * self.noise.to(latents), self.mask.to(latents.device))


def draw_known(
    options: JoinedOptions, shape: torch.Size, generators: Sequence[torch.Generator]
) -> Known | None:
    """What is known of clips `[b c t h w]`, each drawn by its own generator; None = frames are not joined."""
    if options.concat not in KNOWN:
        return None
    names, frames = list(options.patterns), shape[2]
    chances = torch.tensor([options.patterns[name] for name in names])
    mask = torch.zeros(shape[0], frames, dtype=torch.bool)
    levels, noise = [], []
    for clip, generator in enumerate(generators):
        name = names[int(torch.multinomial(chances, 1, generator=generator))]
        levels.append(options.noise * torch.rand((), generator=generator))
        noise.append(torch.randn(shape[1:], generator=generator))
        if frames > 1:
            mask[clip, PATTERNS[name](frames, generator)] = True
    return Known(mask, torch.stack(levels), torch.stack(noise))

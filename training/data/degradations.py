"""What makes a poor video of a good one, so that super-resolution learns the way back (UniVG, 2401.09084).

What is drawn is drawn once a clip, by seed and position alone, and holds for all its frames: drawn for each
frame, what the degradations do would flicker, and the network would learn that its condition does.

The blurs are kornia's. Its `VideoSequential` is not used: it draws from torch's global generator, and its
blur has one kernel size and no direction. JPEG is Pillow's: kornia's, which is made for gradients, differs
from it by a third of the error that JPEG itself makes at quality 30, and takes eleven times as long.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from training.rng import generator, seed_for
from univid.video import from_uint8, to_uint8

from .config import DegradationConfig

KERNELS = (7, 21)  # odd sides of a blur's kernel, in pixels
SCALE = (0.25, 1.0)  # of a side, in each round
QUALITY = (30, 95)
MODES = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Blur:
    """Gaussian with sides of `kernel` pixels: standard deviations along x and y, both turned by `angle`."""

    kernel: int
    sigmas: tuple[float, float]
    angle: float

    def __call__(self, frames: Tensor) -> Tensor:
        from kornia.filters import filter2d, gaussian_blur2d  # a second of importing that few trainings need

        if self.angle == 0:
            sigmas = torch.tensor([self.sigmas[::-1]], device=frames.device)
            return gaussian_blur2d(frames, self.kernel, sigmas, border_type="replicate")
        axis = torch.arange(self.kernel) - self.kernel // 2
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        along, across = (x * cos + y * sin) / self.sigmas[0], (y * cos - x * sin) / self.sigmas[1]
        weights = (-(along.square() + across.square()) / 2).exp()
        kernel = (weights / weights.sum())[None].to(frames)
        return filter2d(frames, kernel, border_type="replicate")


@dataclass(frozen=True)
class Resize:
    """Both sides times `scale`, without aliasing; mode: of MODES."""

    scale: float
    mode: str

    def __call__(self, frames: Tensor) -> Tensor:
        height, width = (max(1, round(side * self.scale)) for side in frames.shape[-2:])
        return _resized(frames, (height, width), self.mode)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of `sigma` in levels of 0..255; each frame has its own, from `seed`."""

    sigma: float
    seed: int

    def __call__(self, frames: Tensor) -> Tensor:
        own = torch.Generator().manual_seed(self.seed)
        noise = torch.stack([torch.randn(frame.shape, generator=own) for frame in frames])
        return frames + self.sigma / 127.5 * noise.to(frames)


@dataclass(frozen=True)
class Jpeg:
    """Written and read as JPEG, colours at half the size, on the CPU wherever the frames are."""

    quality: int

    def __call__(self, frames: Tensor) -> Tensor:
        from PIL import Image

        pixels = ((frames.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
        coded = []
        for frame in rearrange(pixels, "t c h w -> t h w c").numpy():
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "JPEG", quality=self.quality)
            coded.append(np.array(Image.open(file)))
        return rearrange(torch.from_numpy(np.stack(coded)), "t h w c -> t c h w").to(frames) / 127.5 - 1


Step = Blur | Resize | Noise | Jpeg  # frames [t 3 h w] in -1..1 -> the same, of another size after a Resize


@dataclass(frozen=True)
class Round:
    """Ranges of one blur, resize, noise and JPEG: sigmas of the blur in pixels, of the noise in levels."""

    blur: tuple[float, float]
    noise: tuple[float, float]


# light: UniVG's. strong: the two rounds of Real-ESRGAN (2107.10833), with its ranges of blur and noise, and
# without the ringing filter that ends it.
FIRST, SECOND = Round(blur=(0.2, 3.0), noise=(1, 30)), Round(blur=(0.2, 1.5), noise=(1, 25))
PRESETS = {"light": (FIRST,), "strong": (FIRST, SECOND)}


def draw_steps(preset: str, generator: torch.Generator, noise: bool = False) -> tuple[Step, ...]:
    """What is done to one clip, in a random order in each round.

    noise: whether noise is among it; all else is drawn alike with and without.

    Raises:
        ValueError: an unknown preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"degradations must be one of {', '.join(PRESETS)}, got {preset!r}.")
    steps: list[Step] = []

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for ranges in PRESETS[preset]:
        kernel = 2 * whole(KERNELS[0] // 2, KERNELS[1] // 2) + 1
        sigmas, angle = (uniform(*ranges.blur), uniform(*ranges.blur)), uniform(0, math.pi)
        isotropic = whole(0, 1)
        drawn = (
            Blur(kernel, sigmas[:1] * 2, 0.0) if isotropic else Blur(kernel, sigmas, angle),
            Resize(uniform(*SCALE), MODES[whole(0, len(MODES) - 1)]),
            Noise(uniform(*ranges.noise), whole(0, 2**31 - 1)),
            Jpeg(whole(*QUALITY)),
        )
        order = torch.randperm(len(drawn), generator=generator).tolist()
        steps += [drawn[i] for i in order if noise or not isinstance(drawn[i], Noise)]
    return tuple(steps)


def apply_steps(clip: Tensor, steps: Sequence[Step], size: tuple[int, int] | None = None) -> Tensor:
    """The clip `[3 t h w]` in -1..1 after all steps, smaller; or enlarged to `size` (height, width), bicubic.

    Raises:
        ValueError: no such clip, or a size below 1.
    """
    if clip.dim() != 4 or clip.shape[0] != 3 or not clip.is_floating_point() or not clip.numel():
        raise ValueError(
            f"degradations take clips [3 t h w] of a float type, got {tuple(clip.shape)} of {clip.dtype}; "
            "give RGB frames."
        )
    low, high = clip.aminmax()
    if not (low >= -1 and high <= 1):
        raise ValueError(f"degradations take clips in -1..1, got {low:g}..{high:g}; scale or clamp them.")
    if size is not None and min(size) < 1:
        raise ValueError(f"a degraded clip can be enlarged to at least 1 x 1 pixels, got {size}.")
    frames = rearrange(clip, "c t h w -> t c h w")
    for step in steps:
        frames = step(frames)
    if size is not None:
        frames = _resized(frames, size, "bicubic")
    return rearrange(frames.clamp(-1, 1), "t c h w -> c t h w")


def degrade(
    video: Tensor,
    preset: str,
    seed: int,
    positions: Sequence[int],
    *,
    noise: bool = False,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Poor versions of clips `[b 3 t h w]` in -1..1, each by its own degradations.

    positions: global numbers of the samples; with the seed they say all that is drawn.
    size: (height, width) to enlarge to; None = each stays as small as it came out.

    Raises:
        ValueError: as `draw_steps` and `apply_steps`; clips of several sizes, or not a position for each.
    """
    if len(video) != len(positions):
        raise ValueError(
            f"degradations need a position for each of {len(video)} clips, got {len(positions)}."
        )
    clips = [
        apply_steps(clip, draw_steps(preset, generator(seed, "degradation", position), noise), size)
        for clip, position in zip(video, positions, strict=True)
    ]
    if len(sizes := {clip.shape for clip in clips}) > 1:
        raise ValueError(f"degraded clips came out in {len(sizes)} sizes; give one to enlarge them to.")
    return torch.stack(clips)


def poor_copy(pixels: Tensor, config: DegradationConfig, place: str, position: int) -> Tensor:
    """Frames uint8 `[t h w 3]` of one clip, degraded and enlarged to their size again.

    place, position: where the clip stands; the draw is a function of both and of the config's seed.
    """
    poor = degrade(
        from_uint8(pixels.numpy()),
        config.preset,
        seed_for(config.seed, place, 0),
        [position],
        noise=config.noise,
        size=tuple(pixels.shape[1:3]),
    )
    return torch.from_numpy(to_uint8(poor))


def _resized(frames: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    smooth = {} if mode == "area" else {"antialias": True}
    return F.interpolate(frames, size, mode=mode, **smooth)

"""Reproducible noise: one generator a clip, always on the CPU; and what a clip's first noise may be made of.

FreeNoise (2310.15169) gives a longer clip the noises of its first window again, in other orders. FreeInit
(2312.07537) and FrameInit (2402.04324) take a noise's low frequencies from a clip or a picture under noise.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from .diffusion import NoiseSchedule
from .steer import FrameWindows

# In words, for receipts: whoever draws in another way gives it another number.
RULE = "1: of a clip's seed, torch.randn(t, c, h, w) on the CPU, and again in each step that adds noise"

ORDER = 4  # of the Butterworth filter
FRESH = 1_000_000  # the fresh noise of a clip's run n, from 1 on, is that of its seed + n * FRESH


class ClipNoise:
    """Noise for a batch of clips, each from its own seed; every call draws the next noise.

    A clip's noise is one `randn(t, c, h, w)`, as the host makes a batch of pictures. So the first noise of a
    frame depends on the clip's seed alone, not on length, batch or device (where c h w is a multiple of 16;
    for other sizes torch draws the last 16 numbers of a clip anew).

    seeds: one a clip; the convention for a batch from one seed is seed, seed + 1, ...
    start: frame of longer clips at which these begin: their first noise is that of its frames.
    windows: for FreeNoise, which the first noise is then; None = every frame has its own.
    """

    def __init__(self, seeds: list[int], start: int = 0, windows: FrameWindows | None = None):
        self._before, self._windows, self._seeds = start, windows, seeds
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise of shape (b c t h w), float32 on the CPU.

        Raises:
            ValueError: b is not the number of seeds.
        """
        b, c, t, h, w = shape
        if b != len(self._generators):
            raise ValueError(f"expected one seed for each of {b} clips, got {len(self._generators)} seeds.")
        before, self._before = self._before, 0
        windows, self._windows = self._windows, None
        clips = [torch.randn(before + t, c, h, w, generator=each) for each in self._generators]
        if windows is not None:
            clips = [
                clip[free_order(len(clip), windows, seed)]
                for clip, seed in zip(clips, self._seeds, strict=True)
            ]
        return rearrange([clip[before:] for clip in clips], "b t c h w -> b c t h w")


def free_order(frames: int, windows: FrameWindows, seed: int) -> Tensor:
    """Which frame's noise each frame of a clip has under FreeNoise, `[t]`.

    Past the first window each stride has the noises that the stride a window before it has, in an order drawn
    from `seed`; so every window, the last one too, has those of the first. The host's context windows have
    the same order.
    """
    generator, order = torch.Generator().manual_seed(seed), torch.arange(frames)
    starts = windows.starts(frames) if frames > windows.length else [0]
    for start, end in zip(starts, starts[1:], strict=False):
        drawn = start + torch.randperm(end - start, generator=generator)
        order[windows.length + start : windows.length + end] = order[drawn]
    return order


@dataclass(frozen=True)
class LowBand:
    """What the low frequencies of a clip's first noise are taken from, where not from noise alone.

    runs: how often the clip is made in all; each but the first one takes them from the one before (FreeInit).
    picture: whether the first run takes them from the still picture (FrameInit).
    cutoff: above 0: where the low band ends, as a share of the highest frequency in time, height and width.
    level: above 0, to 1: the share of the timesteps after which clip or picture are under noise. 1 = all of
        them, as FreeInit does; under zero terminal SNR nothing of them is left there.

    Raises:
        ValueError: a number out of range.
    """

    runs: int = 1
    picture: bool = False
    cutoff: float = 0.25
    level: float = 0.85

    def __post_init__(self):
        if self.runs < 1:
            raise ValueError(f"FreeInit makes a clip at least once, got {self.runs} runs.")
        if not 0 < self.cutoff < float("inf"):
            raise ValueError(f"the cut-off of the low band must be above 0, got {self.cutoff}.")
        if not 0 < self.level <= 1:
            raise ValueError(
                f"the noise level of the low band must be above 0 and at most 1, got {self.level}."
            )

    def start(self, latents: Tensor, noise: Tensor, fresh: Tensor, schedule: NoiseSchedule) -> Tensor:
        """The noise that a run starts from, `[b c t h w]` float32 on the CPU, of variance 1 as far as
        `latents` under noise have that.

        latents: of the clip, or of the picture with t = 1. noise: that the latents get. fresh: another one,
        whose high band it is.
        """
        latents, noise, fresh = (x.float().cpu() for x in (latents, noise, fresh))
        timestep = torch.full((len(noise),), max(1, round(self.level * schedule.last)))
        return mixed(schedule.add_noise(latents.expand_as(noise), noise, timestep), fresh, self.cutoff)


def low_pass(t: int, h: int, w: int, cutoff: float) -> Tensor:
    """FreeInit's Butterworth filter of order 4, `[t h w]` as `torch.fft.fftn` orders frequencies.

    The highest frequency of each dimension is 1, and a constant is frequency 0 for odd sizes too.
    """
    axes = torch.meshgrid(*(2 * torch.fft.fftfreq(n) for n in (t, h, w)), indexing="ij")
    distance = sum(axis.square() for axis in axes) / cutoff**2
    return 1 / (1 + distance**ORDER)


def mixed(low: Tensor, high: Tensor, cutoff: float) -> Tensor:
    """The low band of one clip and the high band of another, `[... t h w]`.

    paper: L and 1 - L; we: L and sqrt(1 - L^2), so that two independent noises make one of variance 1.
    """
    band, dims = low_pass(*low.shape[-3:], cutoff), (-3, -2, -1)
    spectrum = band * torch.fft.fftn(low, dim=dims)
    spectrum = spectrum + (1 - band.square()).sqrt() * torch.fft.fftn(high, dim=dims)
    return torch.fft.ifftn(spectrum, dim=dims).real

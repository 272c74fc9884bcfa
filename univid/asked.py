"""What `generate` is asked for beside words and a picture, in groups; and one of several pictures."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import SamplingProfile
from .curves import POINTS, Curve
from .noise import ClipNoise, LowBand
from .steer import Masks, Steering


@dataclass(frozen=True)
class Clip:
    """What to make. What is None comes from the source's video, else from the checkpoint's sampling profile.

    frames, height, width: height and width in pixels, multiples of the VAE's factor (8).
    fps_number: what a model with an fps embedding is told, in the profile's unit. It changes how much moves
        from frame to frame, not how fast the result is played.
    start: frame of a longer clip at which this one begins: from there on it has that one's noise.
    """

    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps_number: float | None = None
    start: int = 0


@dataclass(frozen=True, eq=False)
class Picture:
    """One of several pictures that a clip takes its content from.

    image: as of `generate`. weight: its share of lambda_v.
    frames: the first and the last in which it counts, from 0; None = all.
    mask: where in the frames it counts, as of `Masks`.
    over_steps: multiplies the weight along the sampling, by its noise levels.

    Raises:
        ValueError: a weight that is negative or not finite, frames in no order, or as `Masks`.
    """

    image: Tensor
    weight: float = 1.0
    frames: tuple[int, int] | None = None
    mask: Tensor | None = None
    over_steps: Curve = Curve()

    def __post_init__(self):
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"a picture's weight must be a finite number of at least 0, got {self.weight}.")
        if self.frames is not None and not 0 <= self.frames[0] <= self.frames[1]:
            raise ValueError(
                f"a picture's frames must be the first and the last, from 0 on, got {self.frames[0]} and "
                f"{self.frames[1]}."
            )
        Masks(image=self.mask)

    def share(self, frames: int) -> Tensor:
        """Of lambda_v, in a clip of so many frames, before `over_steps`: `[1|t h w]`.

        Raises:
            ValueError: frames or a mask of a longer clip.
        """
        Masks(image=self.mask).check(frames)
        mask = torch.ones(1, 1, 1) if self.mask is None else self.mask.float()
        if not any(self.over_steps.values):
            mask = mask * 0
        if self.frames is None:
            return self.weight * mask
        first, last = self.frames
        if last >= frames:
            raise ValueError(
                f"a picture is for frame {last}, and the clip ends with {frames - 1}; give less."
            )
        at = torch.arange(frames)[:, None, None]
        return self.weight * ((first <= at) & (at <= last)) * mask


def pictures_of(image: Tensor | Sequence[Picture] | None) -> tuple[Picture, ...]:
    """The pictures that `generate` is given as one, several, or None."""
    if image is None:
        return ()
    return (Picture(image),) if isinstance(image, Tensor) else tuple(image)


def over_steps(pictures: Sequence[Picture]) -> Tensor | None:
    """By what their shares are multiplied along the sampling, `[1 POINTS p]`; None = by 1."""
    if all(set(picture.over_steps.values) == {1.0} for picture in pictures):
        return None
    return torch.stack([picture.over_steps.sample(POINTS) for picture in pictures], -1)[None].float()


@dataclass(frozen=True)
class Source:
    """From what else than a prompt and a picture.

    video: clip `[1 3 t h w]` in -1..1 to start from (video to video); it sets frames, height and width. A
        model that refines or turns another's video needs it, unless biased noise leads it from its picture.
    denoise: above 0, at most 1: how much of `video` is made anew; 1 = as much as the profile says.
    last_image: picture of the last frame, as `generate`'s image, for a model that goes from one picture to
        another; without it such a model returns to its first.
    known: frames of `video` that are known, counted from 0, ascending, for a model that makes the others;
        nothing else of `video` is looked at then.
    kept: first frames of the clip, `[1 3 k h w]` in -1..1, that are made already, of any model: the others go
        on from them, because each step's denoised video has them.
    known_noise: 0 to 1, how much noise the known frames' latents get, in their own deviations, for a model
        that was trained with it: it follows them less closely. None = the profile's.
    """

    video: Tensor | None = None
    denoise: float = 1.0
    last_image: Tensor | None = None
    known: tuple[int, ...] = ()
    kept: Tensor | None = None
    known_noise: float | None = None


@dataclass(frozen=True)
class Sampling:
    """By which steps. What is None comes from the checkpoint's sampling profile.

    eta: of the sampler "ddim", 0 to 1: how much of a step's noise is fresh.
    references: number of reference frames that PSTAttn looks at, by level of the pyramid, {f: n}: 0 = none,
        it is off there; more than the clip has = all. A level left out, or None: as the model was trained.
    biased_noise: of a model that starts from it, one of `biased.MODES`; None = "consistent" where the model
        sees its condition as concat latents, else "paper".
    tile: pixels, a multiple of the VAE's factor (8): frames with a longer side are made in tiles of that side
        that overlap by a quarter, from one field of noise; None = whole frames.
    steering: how the network runs other than it was trained to.
    free_noise: whether a longer clip's first noise is FreeNoise's, for the steering's windows.
    low_band: what the low frequencies of the first noise are taken from: FreeInit, FrameInit.

    Raises:
        ValueError: free_noise without windows.
    """

    steps: int | None = None
    sampler: str | None = None
    sigma_schedule: str | None = None
    eta: float | None = None
    references: Mapping[int, int] | None = None
    biased_noise: str | None = None
    tile: int | None = None
    steering: Steering = Steering()
    free_noise: bool = False
    low_band: LowBand = LowBand()

    def __post_init__(self):
        if self.free_noise and self.steering.windows is None:
            raise ValueError("FreeNoise needs windows, got none; say how many frames a window has.")

    def noise(self, seeds: list[int], start: int) -> ClipNoise:
        """That of clips, each from its seed; start: as of `Clip`."""
        return ClipNoise(seeds, start, self.steering.windows if self.free_noise else None)

    def by(self, profile: SamplingProfile) -> "Sampling":
        """With the profile's in the places of None, where it has such."""
        names = {field.name for field in dataclasses.fields(self)} - {"references", "biased_noise", "tile"}
        missing = {name: getattr(profile, name) for name in names if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)


LEAST_TILE = 4  # latent cells: a network of four levels halves them three times


def check_size(height: int, width: int, factor: int) -> None:
    """Refuse, by a ValueError, frames that are no whole number of latent cells of `factor` pixels."""
    for name, value in (("height", height), ("width", width)):
        if value < factor or value % factor:
            near = max(1, round(value / factor)) * factor
            raise ValueError(f"{name} must be a positive multiple of {factor}, got {value}; try {near}.")


def tile_cells(pixels: int | None, factor: int) -> int | None:
    """A tile's side in latent cells of `factor` pixels.

    Raises:
        ValueError: not a whole number of them, or too few.
    """
    if pixels is None:
        return None
    if pixels < LEAST_TILE * factor or pixels % factor:
        raise ValueError(
            f"tile must be a multiple of {factor} pixels from {LEAST_TILE * factor} on, got {pixels}."
        )
    return pixels // factor


def own_tile(profile: SamplingProfile, height: int, width: int, factor: int) -> int | None:
    """Pixels a side of the tiles for frames larger than a model was trained on; None = whole frames."""
    trained = profile.height * profile.width
    return round(trained**0.5 / factor) * factor if height * width > trained else None

"""What `generate` is asked for beside words and a picture, in three groups."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .config import SamplingProfile


@dataclass(frozen=True)
class Clip:
    """What to make. What is None comes from the source's video, else from the checkpoint's sampling profile.

    frames, height, width: height and width in pixels, multiples of the VAE's factor (8).
    fps_number: what a model with an fps embedding is told, in the profile's unit. It changes how much moves
        from frame to frame, not how fast the result is played.
    """

    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps_number: float | None = None


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
    known_noise: 0 to 1, how much noise the known frames' latents get, in their own deviations, for a model
        that was trained with it: it follows them less closely. None = the profile's.
    """

    video: Tensor | None = None
    denoise: float = 1.0
    last_image: Tensor | None = None
    known: tuple[int, ...] = ()
    known_noise: float | None = None


@dataclass(frozen=True)
class Sampling:
    """By which steps. What is None comes from the checkpoint's sampling profile.

    eta: of the sampler "ddim", 0 to 1: how much of a step's noise is fresh.
    references: number of reference frames that PSTAttn looks at, by level of the pyramid, {f: n}: 0 = none,
        it is off there; more than the clip has = all. A level left out, or None: as the model was trained.
    biased_noise: of a model that starts from it, one of `biased.MODES`; None = "consistent" where the model
        sees its condition as concat latents, else "paper".
    """

    steps: int | None = None
    sampler: str | None = None
    sigma_schedule: str | None = None
    eta: float | None = None
    references: Mapping[int, int] | None = None
    biased_noise: str | None = None

    def by(self, profile: SamplingProfile) -> "Sampling":
        """With the profile's in the places of None, where it has such."""
        names = {field.name for field in dataclasses.fields(self)} - {"references", "biased_noise"}
        missing = {name: getattr(profile, name) for name in names if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)

"""Modality weights that change over the frames of a clip and over the progress of sampling.

A weight is a number times a curve over the frames times a curve over the sampling progress, which goes by the
noise level: 0 = all noise, where a schedule of steps starts, 1 = none left. So steps of any spacing, a run in
several stages and one that starts late (denoise below 1) see the same weight at the same noise. A curve is
written as text:

    0.8                     a constant; empty text is the constant 1
    1..0                    from 1 to 0, evenly; 0..1..0 goes through any number of values
    1..0 ease_in_out        the same with one of the EASINGS between two values
    1, 0.5, 0               a list: over the frames one value a frame, over the progress spread evenly, joined
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from .conditioning import check_weights

POINTS = 64  # of sampling progress at which a curve over the steps is stored

# How far one is from one value to the next, at 0..1 of the way.
EASINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda u: u,
    "ease_in": lambda u: u**2,
    "ease_out": lambda u: 1 - (1 - u) ** 2,
    "ease_in_out": lambda u: u**2 * (3 - 2 * u),
    "step": lambda u: (u >= 0.5).to(u),
}
GRAMMAR = "write a number, a range such as 1..0 or 1..0 ease_in_out, or a list such as 1, 0.5, 0"


@dataclass(frozen=True)
class Curve:
    """Values at equidistant points of 0..1, and the way between two of them.

    easing: a name in EASINGS. listed: the values are a list, which over the frames has one a frame.

    Raises:
        ValueError: no value, or one that is negative or not finite.
    """

    values: tuple[float, ...] = (1.0,)
    easing: str = "linear"
    listed: bool = False

    def __post_init__(self):
        if not self.values:
            raise ValueError("expected at least one value, got none.")
        for value in self.values:
            if not 0 <= value < math.inf:
                raise ValueError(f"every value must be a finite number of at least 0, got {value:g}.")

    @property
    def constant(self) -> bool:
        """Whether it has the same value everywhere."""
        return len(set(self.values)) == 1

    def sample(self, n: int) -> Tensor:
        """The values at `n` equidistant points of 0..1, float64 `[n]`; one point is the beginning.

        A constant and, with as many points as values, a list come back exactly.
        """
        last = len(self.values) - 1
        place = torch.arange(n, dtype=torch.float64) * last / max(n - 1, 1)
        before = place.floor().long()
        values = torch.tensor(self.values, dtype=torch.float64)
        after = values[(before + 1).clamp(max=last)]
        return torch.lerp(values[before], after, EASINGS[self.easing](place - before))


@dataclass(frozen=True)
class Weight:
    """One modality's weight: `value` times the curve over the frames times the curve over the steps."""

    value: float = 1.0
    over_frames: Curve = Curve()
    over_steps: Curve = Curve()


def parse(text: str) -> Curve:
    """Read a curve; the grammar is the module's.

    Raises:
        ValueError: text that is no curve, or a value that is negative or not finite.
    """
    body, easing = text.strip(), None
    if not body:
        return Curve()
    words = body.split()
    if words[-1] in EASINGS:
        body, easing = " ".join(words[:-1]), words[-1]
    ranged = ".." in body
    if easing and not ranged:
        raise ValueError(f"an easing belongs to a range, such as 1..0 {easing}, got {text!r}.")
    numbers = [_number(n, text) for n in (body.split("..") if ranged else re.split(r"\s*,\s*|\s+", body))]
    return Curve(tuple(numbers), easing or "linear", listed=not ranged and len(numbers) > 1)


def read(name: str, reader: Callable[..., Curve], value) -> Curve:
    """What `parse` or `from_list` makes of a value; an error begins with the value's name."""
    try:
        return reader(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def from_list(values: Sequence[float]) -> Curve:
    """A curve of one value a frame, or of one value for all.

    Raises:
        ValueError: no value, or one that is no number, negative or not finite.
    """
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"expected a list of numbers, got {value!r} in it.")
    return Curve(tuple(float(value) for value in values), listed=len(values) > 1)


def modality_weights(text: Weight, image: Weight, frames: int | None = None) -> Tensor:
    """(lambda_t, lambda_v) of every frame and at every point of the sampling progress.

    frames: of the clip; None takes the length of a list over the frames, if there is one.

    Returns:
        float32 `[1 | t, 1 | POINTS, 2]`; a dimension is 1 where nothing changes along it.

    Raises:
        ValueError: a weight that is negative or not finite, a list whose length is not the number of frames,
            or a curve over the frames without that number.
    """
    check_weights(text.value, image.value)
    pair = {"text": text, "image": image}
    over_frames = {name: weight.over_frames for name, weight in pair.items()}
    lists = {name: len(c.values) for name, c in over_frames.items() if c.listed}
    frames = frames or next(iter(lists.values()), None)
    for name, length in lists.items():
        if length != frames:
            raise ValueError(
                f"the list of {name} weights must have one value or one a frame ({frames}), got {length}; "
                "change the list or the number of frames."
            )
    changing = [name for name, curve in over_frames.items() if not curve.constant]
    if changing and frames is None:
        raise ValueError(
            f"the {changing[0]} weight changes over the frames, but their number is not known; "
            "set frames to the clip's."
        )
    t = frames if changing else 1
    points = 1 if all(weight.over_steps.constant for weight in pair.values()) else POINTS
    columns = [
        w.value * torch.outer(w.over_frames.sample(t), w.over_steps.sample(points)) for w in pair.values()
    ]
    weights = torch.stack(columns, -1).float()  # [t points 2]
    if not weights.isfinite().all():
        raise ValueError("a weight times its curves is too large a number; make one of them smaller.")
    return weights


def progress(timestep: Tensor, first: int) -> Tensor:
    """How far a run is whose noise level is that of `timestep`: 0 at timestep `first`, 1 at 0; float32.

    first: of the schedule of steps. What is noisier counts as 0.
    """
    return (1 - timestep.float() / first).clamp(0, 1)


def at_progress(weights: Tensor, progress: Tensor) -> Tensor:
    """The weights `[t 2]` at a progress of sampling, linear between the points of `weights` `[t s 2]`.

    progress: a scalar or `[t]`, in 0..1, on the device of the weights, where it stays. Weights that do not
    change over the progress come back exactly; all are float32, whatever type a host keeps them in.
    """
    last = weights.shape[1] - 1
    place = (progress.float() * last).expand(weights.shape[0])  # [t]
    before, rows = place.long(), torch.arange(weights.shape[0], device=weights.device)
    here, after = (weights[rows, point].float() for point in (before, (before + 1).clamp(max=last)))
    return torch.lerp(here, after, (place - before)[:, None])


def resample(weights: Tensor, points: int = POINTS) -> Tensor:
    """Weights `[t s 2]` at `points` points of the sampling progress: `[t points 2]`."""
    if weights.shape[1] in (1, points):
        return weights.expand(-1, points, -1)
    return torch.stack([at_progress(weights, at) for at in torch.linspace(0, 1, points)], 1)


def _number(word: str, text: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        unknown = text.split()[-1]
        hint = f"; the easings are {', '.join(EASINGS)}" if unknown.replace("_", "").isalpha() else ""
        raise ValueError(f"{text!r} is no curve; {GRAMMAR}{hint}.") from error

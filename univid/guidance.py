"""Guidance: how the answers to a video's conditions combine into one denoised video.

Four branches exist: e0 (no condition), T (text), I (image), TI (both). A guider goes from e0 along some
directions, each from one branch to another, `e0 + sum of scale (to - base)`; everything else is common. In x0
and in eps this is the same formula.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .conditioning import Conditioning, cat
from .devices import beside
from .diffusion import Denoiser, v_to_x0, x0_to_v
from .steer.temporal import TemporalGuidance


@dataclass(frozen=True)
class Direction:
    """scale (to - base), between the answers of two branches."""

    to: str
    base: str
    scale: float


def merge(name: str, has_text: bool, has_image: bool) -> str:
    """The branch that one is where the text or the picture has no weight."""
    return ("T" if has_text and "T" in name else "") + ("I" if has_image and "I" in name else "") or "e0"


class _Guider(ABC):
    """What the guiders share; a subclass is a frozen dataclass of scales with `all_directions()`."""

    rescale: float

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"guidance {name} must be a finite number of at least 0, got {value}.")
        if self.rescale > 1:
            raise ValueError(f"guidance rescale must be between 0 and 1, got {self.rescale}.")

    @abstractmethod
    def all_directions(self) -> tuple[Direction, ...]:
        """Where it goes from e0, before anything is merged."""

    def directions(self, has_text: bool, has_image: bool) -> tuple[Direction, ...]:
        """Where it goes from e0, without the directions that a weight or a scale of 0 makes nothing of.

        Without any image weight I is e0 and TI is T; without any text weight T is e0 and TI is I.
        """
        merged = (
            Direction(merge(d.to, has_text, has_image), merge(d.base, has_text, has_image), d.scale)
            for d in self.all_directions()
        )
        return tuple(d for d in merged if d.scale and d.to != d.base)

    def plan(self, has_text: bool, has_image: bool) -> dict[str, float]:
        """The branches to compute and their coefficients, which sum to 1.

        Branches that a coefficient of 0 makes irrelevant are left out.
        """
        coefficients: dict[str, float] = {}
        for d in self.directions(has_text, has_image):
            coefficients[d.to] = coefficients.get(d.to, 0.0) + d.scale
            coefficients[d.base] = coefficients.get(d.base, 0.0) - d.scale
        coefficients.pop("e0", None)
        coefficients["e0"] = 1 - sum(coefficients.values())
        return {name: value for name, value in coefficients.items() if value}

    def branches(self, has_text: bool, has_image: bool, temporal: bool = False) -> list[str]:
        """Those to compute: the planned ones, and for guidance over time that of all conditions."""
        planned, told = list(self.plan(has_text, has_image)), merge("TI", has_text, has_image)
        return [*planned, told] if temporal and told not in planned else planned

    def combine(
        self,
        answers: Mapping[str, Tensor],
        coefficients: Mapping[str, float],
        x: Tensor,
        sigma: Tensor,
        has_text: Tensor,
        x0_scale: Tensor,
    ) -> Tensor:
        """The guided x0 `[b c t h w]` of the planned branches' answers.

        x, sigma: what they answer to. has_text: clips with a text weight, `[b]` bool.
        x0_scale: the schedule's factor of x0 at sigma, of its shape.
        """
        if len(coefficients) == 1:  # coefficients sum to 1, so this one has 1
            return answers[next(iter(coefficients))]
        guided = sum(value * answers[name] for name, value in coefficients.items())
        return self.rescaled(guided, answers, x, sigma, has_text, x0_scale)

    def rescaled(
        self,
        guided: Tensor,
        answers: Mapping[str, Tensor],
        x: Tensor,
        sigma: Tensor,
        has_text: Tensor,
        x0_scale: Tensor,
    ) -> Tensor:
        """A guided x0 after `rescale`; the arguments are those of `combine`."""
        if not self.rescale:
            return guided
        s = beside(x0_scale, x, x.dtype).reshape(-1, 1, 1, 1, 1)
        reference = _most_conditioned(answers, has_text)
        return _rescale(guided * s, reference * s, x * s, sigma * x0_scale, self.rescale) / s

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        uncond: Conditioning,
        temporal: TemporalGuidance | None = None,
    ) -> Tensor:
        """The guided x0 `[b c t h w]`; all branches go through the denoiser as one batch.

        x: `[b c t h w]`; sigma: a scalar or `[b]`.
        cond: all conditions, with their modality weights; a clip whose weights are all 0 is unconditional.
        uncond: the empty or negative text, weights (1, 0).
        temporal: added to what is guided, on the branch of all conditions.
        """
        has = _has(cond)
        given = has.any(0).tolist()
        coefficients, names = self.plan(*given), self.branches(*given, temporal is not None)
        branches = _branches(cond, uncond)
        answers = denoiser(
            x.repeat(len(names), 1, 1, 1, 1),
            sigma.expand(x.shape[0]).repeat(len(names)),
            cat([branches[name] for name in names]),
        ).chunk(len(names))
        named = dict(zip(names, answers, strict=True))
        planned = {name: named[name] for name in coefficients}
        scale = denoiser.schedule.x0_scale(sigma)
        guided = self.combine(planned, coefficients, x, sigma, has[:, 0], scale)
        if temporal is None:
            return guided
        told = merge("TI", *given)
        return temporal(guided, named[told], x, sigma, branches[told])


@dataclass(frozen=True)
class Joint(_Guider):
    """e0 + scale (TI - e0): classifier-free guidance (2207.12598) by both conditions at once."""

    scale: float
    rescale: float = 0.0

    def all_directions(self) -> tuple[Direction, ...]:
        return (Direction("TI", "e0", self.scale),)


@dataclass(frozen=True)
class Separate(_Guider):
    """e0 + text (T - e0) + image (I - e0), as in UniVG (2401.09084)."""

    text: float
    image: float
    rescale: float = 0.0

    def all_directions(self) -> tuple[Direction, ...]:
        return (Direction("T", "e0", self.text), Direction("I", "e0", self.image))


@dataclass(frozen=True)
class Nested(_Guider):
    """e0 + image (I - e0) + text (TI - I), as in DynamiCrafter (2310.12190)."""

    text: float
    image: float
    rescale: float = 0.0

    def all_directions(self) -> tuple[Direction, ...]:
        return (Direction("I", "e0", self.image), Direction("TI", "I", self.text))


GUIDERS = {"joint": Joint, "separate": Separate, "nested": Nested}


@dataclass(frozen=True)
class Pulls:
    """How far text and picture pull a step's denoised video, before their guidance scales.

    text, image: root mean square of the pull in x0, in latent units. cosine: of the angle between the two,
    1 = the same way, -1 = against each other.
    """

    text: float
    image: float
    cosine: float


def pulls(answers: Mapping[str, Tensor]) -> Tensor | None:
    """The pulls that the answers `[b c t h w]` of Separate's or Nested's branches already show, else None.

    `[3]`, the fields of `Pulls`, on the answers' device: who reads them there waits for it.
    Separate: T - e0 and I - e0. Nested: TI - I and I - e0.
    """
    if {"e0", "T", "I"} <= answers.keys():
        text, image = answers["T"] - answers["e0"], answers["I"] - answers["e0"]
    elif {"e0", "I", "TI"} <= answers.keys():
        text, image = answers["TI"] - answers["I"], answers["I"] - answers["e0"]
    else:
        return None
    cosine = torch.nn.functional.cosine_similarity(text.flatten(), image.flatten(), dim=0)
    return torch.stack([*(x.square().mean().sqrt() for x in (text, image)), cosine])


def _has(cond: Conditioning) -> Tensor:
    """Which clips have a text weight and an image weight anywhere: `[b 2]`."""
    return cond.weights.reshape(cond.clips, -1, 2).any(1)


def _branches(cond: Conditioning, uncond: Conditioning) -> dict[str, Conditioning]:
    """The conditions of every branch, clip by clip: in a clip without text weight T is e0, and so on.

    The level weights are the user's, the same in every branch.
    """
    e0 = dataclasses.replace(uncond, level_weights=cond.level_weights)
    has_text, has_image = _has(cond).unbind(1)
    lambda_t, lambda_v = cond.weights.unbind(-1)
    maps = cond.maps
    if maps is not None:
        text_map, image_maps = maps[..., :1, :, :], maps[..., 1:, :, :]
        maps = torch.cat([(text_map > 0).to(image_maps), image_maps], -3)
    image_only = dataclasses.replace(
        # The empty text has weight 1, or none where the user switched the text stream off.
        cond,
        text=uncond.text,
        weights=torch.stack([(lambda_t > 0).to(lambda_v), lambda_v], -1),
        maps=maps,
    )
    return {
        "e0": e0,
        "T": _where(has_text, cond.scaled(1, 0), e0),
        "I": _where(has_image, image_only, e0),
        "TI": _where(has_text | has_image, cond, e0),
    }


def _where(mask: Tensor, chosen: Conditioning, e0: Conditioning) -> Conditioning:
    """`chosen` in the clips of mask `[b]`, else e0; e0 has no image weight, so the image tokens may stay."""
    if mask.all():
        return chosen
    pick = {}
    for name in ("text", "weights", "maps"):
        a, b = getattr(chosen, name), getattr(e0, name)
        if a is None:
            continue
        if b is None:  # no maps are 1 everywhere
            b = torch.ones_like(a)
        if a.dim() != b.dim():  # one of them is per frame
            a, b = (v.unsqueeze(1) if v.dim() < max(a.dim(), b.dim()) else v for v in (a, b))
        pick[name] = torch.where(beside(mask, a).reshape(-1, *[1] * (a.dim() - 1)), a, b)
    return dataclasses.replace(chosen, **pick)


def _most_conditioned(e: Mapping[str, Tensor], has_text: Tensor) -> Tensor:
    """TI, else T, else I; clip by clip, because T is e0 in a clip without text weight."""
    if "T" in e and "I" in e:
        return torch.where(beside(has_text, e["T"]).reshape(-1, 1, 1, 1, 1), e["T"], e["I"])
    return next(e[name] for name in ("TI", "T", "I") if name in e)


def _rescale(guided: Tensor, reference: Tensor, x: Tensor, sigma: Tensor, phi: float) -> Tensor:
    """Pull the deviation of v back to that of the conditional answer (Lin et al. 2305.08891, sec. 3.4)."""
    v, v_reference = x0_to_v(guided, x, sigma), x0_to_v(reference, x, sigma)
    clip = (1, 2, 3, 4)
    restored = v * (v_reference.std(clip, keepdim=True) / v.std(clip, keepdim=True))
    return v_to_x0(torch.lerp(v, restored, phi), x, sigma)

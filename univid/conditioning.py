"""What steers a video: text tokens, image tokens and the modality weights stay separate fields."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .devices import beside

FLOAT32 = ("weights", "places")  # stay so, and numbers too, when the other fields change their type


@dataclass(frozen=True)
class Conditioning:
    """The conditions of `b` clips of `t` frames.

    text: text tokens `[b n d]`, or per frame `[b t n d]`.
    image: image tokens `[b m d]` or `[b t m d]`; None = the image stream is off.
    weights: modality weights `[b 2]` or per frame `[b t 2]`, order (lambda_t, lambda_v), on the CPU: they say
        which streams and branches are computed, and a value on another device is waited for.
    level_weights: multipliers of the weights a level, {f: (text, image)}; a level left out has (1, 1).
    concat: latents joined to the input along channels, `[b c t h w]`.
    numbers: what a model with embeddings of numbers was trained to be told, {name: `[b]`}: "fps", frames a
        second, or how many frames of the source lie between two of the clip (DynamiCrafter at 256 pixels).
    places: where in its clip each frame is, `[b t]`: 0 = the beginning, 1 = the end, negative = a picture of
        its own. None: the frames are a whole clip, and a single frame is a picture of its own.

    Raises:
        ValueError: fields whose clips or frames disagree.
    """

    text: Tensor
    image: Tensor | None
    weights: Tensor
    level_weights: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    concat: Tensor | None = None
    places: Tensor | None = None
    numbers: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        tensors = {
            "text": (self.text, (3, 4)),
            "image": (self.image, (3, 4)),
            "weights": (self.weights, (2, 3)),
            "concat": (self.concat, (5, 5)),
            "places": (self.places, (2, 2)),
            **{name: (number, (1, 1)) for name, number in self.numbers.items()},
        }
        for name, (tensor, ranks) in tensors.items():
            if tensor is None:
                continue
            if tensor.dim() not in ranks or tensor.shape[0] != self.clips:
                raise ValueError(
                    f"{name} must have {' or '.join(map(str, sorted(set(ranks))))} dimensions, "
                    f"the first {self.clips} clips, "
                    f"got shape {tuple(tensor.shape)}."
                )
        if len(self._frames()) > 1:
            raise ValueError(
                f"per-frame conditions must agree on the number of frames, got {sorted(self._frames())}."
            )
        if self.weights.shape[-1] != 2:
            raise ValueError(f"weights must end in 2 (text, image), got shape {tuple(self.weights.shape)}.")

    @property
    def clips(self) -> int:
        return self.text.shape[0]

    @property
    def frames(self) -> int | None:
        """Frames of the fields that are per frame; None where all frames share everything."""
        return next(iter(self._frames()), None)

    def to(self, device=None, dtype: torch.dtype | None = None) -> "Conditioning":
        """Move every tensor but the weights; weights, places and numbers keep float32."""
        moved = {
            name: value.to(
                device=None if name == "weights" else device,
                dtype=torch.float32 if name in FLOAT32 else dtype,
            )
            for name, value in self._tensors()
        }
        numbers = {name: value.to(device=device, dtype=torch.float32) for name, value in self.numbers.items()}
        return dataclasses.replace(self, **moved, numbers=numbers)

    def streams(self) -> tuple[bool, bool]:
        """Whether the streams of text and image have a weight other than 0 anywhere."""
        return streams_on(self.weights)

    def at_level(self, factor: int) -> Tensor:
        """The modality weights `[b 1 2]` or `[b t 2]` at the level of a factor."""
        weights = self.weights if self.weights.dim() == 3 else self.weights[:, None]
        text, image = self.level_weights.get(factor, (1.0, 1.0))
        return torch.stack([weights[..., 0] * text, weights[..., 1] * image], -1)

    def with_weights(self, weights: Tensor) -> "Conditioning":
        """The same conditions under other modality weights `[b 2]` or `[b t 2]`."""
        return dataclasses.replace(self, weights=weights)

    def scaled(self, text: float, image: float) -> "Conditioning":
        """The same conditions with lambda_t and lambda_v multiplied."""
        return self.with_weights(self.weights * self.weights.new_tensor([text, image]))

    def _frames(self) -> set[int]:
        concat = self.concat if self.concat is None else self.concat[:, 0]
        per_frame = [(self.text, 4), (self.image, 4), (self.weights, 3), (self.places, 2), (concat, 4)]
        return {tensor.shape[1] for tensor, rank in per_frame if tensor is not None and tensor.dim() == rank}

    def _tensors(self) -> list[tuple[str, Tensor]]:
        pairs = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return [(name, value) for name, value in pairs if isinstance(value, Tensor)]


def streams_on(weights: Tensor) -> tuple[bool, bool]:
    """Which of text and image have a weight other than 0 anywhere in `[... 2]`."""
    return tuple((weights != 0).flatten(0, -2).any(0).tolist())


def cat(conditions: list[Conditioning]) -> Conditioning:
    """Join conditions along the clips, so that one call of the network serves all of them.

    A condition without image tokens gets zeros in their place; its image weight has to be zero already.
    A field that is per frame in one of them becomes per frame in all.
    """
    first = conditions[0]
    if len(conditions) == 1:
        return first
    images = [c.image for c in conditions]
    template = next((image for image in images if image is not None), None)
    if template is not None:
        images = [
            template.new_zeros(c.clips, *template.shape[-2:]) if image is None else image
            for c, image in zip(conditions, images, strict=True)
        ]
    return Conditioning(
        text=_cat_frames([c.text for c in conditions], 3),
        image=None if template is None else _cat_frames(images, 3),
        weights=_cat_frames([c.weights for c in conditions], 2),
        level_weights=first.level_weights,
        **{name: _cat_all(name, [getattr(c, name) for c in conditions]) for name in ("concat", "places")},
        numbers={
            name: _cat_all(name, [c.numbers.get(name) for c in conditions])
            for name in sorted({name for c in conditions for name in c.numbers})
        },
    )


def with_null_image(cond: Conditioning, tokens: Tensor) -> Conditioning:
    """The same conditions, with `tokens` `[1 m d]` at image weight 1 in every clip without image weight.

    A clip that has one in some frames keeps its own tokens in all, so that a curve may touch 0.
    """
    shown = cond.weights[..., 1].reshape(cond.clips, -1).any(1)  # [b]
    if cond.image is None:
        if shown.all():
            return cond  # which the network refuses: a weight, and nothing that it could weigh
        image = tokens.to(cond.text.device).expand(cond.clips, -1, -1)
    else:
        own = beside(shown.reshape(-1, *[1] * (cond.image.dim() - 1)), cond.image)
        image = torch.where(own, cond.image, tokens.to(cond.image))
    text, weight = cond.weights.unbind(-1)
    weight = torch.where(shown.reshape(-1, *[1] * (weight.dim() - 1)), weight, 1.0)
    return dataclasses.replace(cond, image=image, weights=torch.stack([text, weight], -1))


def concat_frames(kind: str, first: Tensor, last: Tensor | None, frames: int) -> Tensor:
    """Concat latents `[b c t h w]` of the first frame's picture and the last's, both `[b c 1 h w]`.

    kind: of the sampling profile, "first": the picture in every frame; "ends": it in the first, the other in
        the last (without another the same again), zeros between.
    """
    if kind == "first" or frames == 1:
        return first.expand(-1, -1, frames, -1, -1)
    between = torch.zeros_like(first).expand(-1, -1, frames - 2, -1, -1)
    return torch.cat([first, between, first if last is None else last], dim=2)


def _cat_all(name: str, tensors: list[Tensor | None]) -> Tensor | None:
    """Concatenate what all conditions have, or none has."""
    if all(tensor is None for tensor in tensors):
        return None
    if any(tensor is None for tensor in tensors):
        raise ValueError(f"conditions joined along the clips must all have {name} or none, got both.")
    return torch.cat(tensors)


def _cat_frames(tensors: list[Tensor], rank: int) -> Tensor:
    """Concatenate tensors of `rank` dimensions (per clip) or one more (per frame, second dimension)."""
    frames = max((x.shape[1] for x in tensors if x.dim() == rank + 1), default=None)
    if frames is not None:
        tensors = [
            x if x.dim() == rank + 1 else x.unsqueeze(1).expand(-1, frames, *x.shape[1:]) for x in tensors
        ]
    return torch.cat(tensors)


def check_weights(text_weight: float, image_weight: float) -> None:
    """Refuse modality weights that a user cannot have meant."""
    for name, value in (("text_weight", text_weight), ("image_weight", image_weight)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}.")

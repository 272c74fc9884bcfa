"""What steers a video: text tokens, image tokens and the modality weights stay separate fields."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from .devices import beside
from .steer.plane import averaged
from .tiles import Tile

FLOAT32 = ("weights", "places", "maps")  # stay so, and numbers too, when the other fields change their type


@dataclass(frozen=True)
class Conditioning:
    """The conditions of `b` clips of `t` frames.

    text: text tokens `[b n d]`, or per frame `[b t n d]`.
    image: image tokens `[b m d]` or `[b t m d]`, of several pictures one after another; None = the image
        stream is off.
    weights: modality weights `[b 2]` or per frame `[b t 2]`, order (lambda_t, lambda_v), on the CPU: they say
        which streams and branches are computed, and a value on another device is waited for.
    level_weights: multipliers of the weights a level, {f: (text, image)}; a level left out has (1, 1).
    concat: latents joined to the input along channels, `[b c t h w]`.
    numbers: what a model with embeddings of numbers was trained to be told, {name: `[b]`}: "fps", frames a
        second, or how many frames of the source lie between two of the clip (DynamiCrafter at 256 pixels).
    maps: by what the weights are multiplied in each place of a frame, `[b 1+p h w]` or `[b t 1+p h w]`: that
        of the text, and those of p pictures, each with lambda_v. Of the latents' size or any other, which is
        averaged to theirs; of one cell they are numbers. None = 1 for the text, and 1 for one picture. Which
        streams and branches are computed `weights` say alone, so one that maps make 0 everywhere is better 0.
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
    maps: Tensor | None = None
    numbers: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        tensors = {
            "text": (self.text, (3, 4)),
            "image": (self.image, (3, 4)),
            "weights": (self.weights, (2, 3)),
            "concat": (self.concat, (5, 5)),
            "places": (self.places, (2, 2)),
            "maps": (self.maps, (4, 5)),
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
        if self.pictures < 1 or (self.image is not None and self.image.shape[-2] % self.pictures):
            count = "no" if self.image is None else self.image.shape[-2]
            raise ValueError(
                f"maps must be one of the text and one of each picture, got {self.pictures + 1} for {count} "
                "image tokens."
            )

    @property
    def clips(self) -> int:
        return self.text.shape[0]

    @property
    def pictures(self) -> int:
        """How many the image tokens are of."""
        return 1 if self.maps is None else self.maps.shape[-3] - 1

    @property
    def frames(self) -> int | None:
        """Frames of the fields that are per frame; None where all frames share everything."""
        return next(iter(self._frames()), None)

    def to(self, device=None, dtype: torch.dtype | None = None) -> "Conditioning":
        """Move every tensor but the weights; weights, places, maps and numbers keep float32."""
        moved = {
            name: value.to(
                device=None if name == "weights" else device,
                dtype=torch.float32 if name in FLOAT32 else dtype,
            )
            for name, value in self._tensors()
        }
        numbers = {name: value.to(device=device, dtype=torch.float32) for name, value in self.numbers.items()}
        return dataclasses.replace(self, **moved, numbers=numbers)

    def within(self, tile: Tile) -> "Conditioning":
        """Those of a part of the frames."""
        parts = {} if self.concat is None else {"concat": tile.of(self.concat)}
        if self.maps is not None and self.maps.shape[-2:] != (1, 1):  # one cell is the same everywhere
            parts["maps"] = tile.of(averaged(self.maps, *tile.frame))
        return dataclasses.replace(self, **parts) if parts else self

    def streams(self) -> tuple[bool, bool]:
        """Whether the streams of text and image have a weight other than 0 anywhere."""
        return streams_on(self.weights)

    def at_level(self, factor: int, height: int, width: int) -> Tensor:
        """The weights of the text and of each picture at the level of a factor, of latents of height x width.

        `[b 1 1 1+p]`, or `[b t s 1+p]` of each frame, of each token, row by row.
        """
        weights = self.weights if self.weights.dim() == 3 else self.weights[:, None]
        text, image = self.level_weights.get(factor, (1.0, 1.0))
        image = self.pictures * [weights[..., 1] * image]
        weights = torch.stack([weights[..., 0] * text, *image], -1)[:, :, None]
        if self.maps is None:
            return weights
        maps = averaged(self.maps, math.ceil(height / factor), math.ceil(width / factor))
        maps = maps if maps.dim() == 5 else maps[:, None]
        return beside(weights, maps) * rearrange(maps, "b t m h w -> b t (h w) m")

    def with_weights(self, weights: Tensor) -> "Conditioning":
        """The same conditions under other modality weights `[b 2]` or `[b t 2]`."""
        return dataclasses.replace(self, weights=weights)

    def scaled(self, text: float, image: float) -> "Conditioning":
        """The same conditions with lambda_t and lambda_v multiplied."""
        return self.with_weights(self.weights * self.weights.new_tensor([text, image]))

    def _frames(self) -> set[int]:
        concat = self.concat if self.concat is None else self.concat[:, 0]
        per_frame = [(self.text, 4), (self.image, 4), (self.weights, 3), (self.places, 2), (concat, 4)]
        per_frame.append((self.maps, 5))
        return {tensor.shape[1] for tensor, rank in per_frame if tensor is not None and tensor.dim() == rank}

    def _tensors(self) -> list[tuple[str, Tensor]]:
        pairs = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return [(name, value) for name, value in pairs if isinstance(value, Tensor)]


def streams_on(weights: Tensor) -> tuple[bool, bool]:
    """Which of text and image have a weight other than 0 anywhere in `[... 1+p]`, p pictures."""
    text, *pictures = (weights != 0).flatten(0, -2).any(0).tolist()
    return text, any(pictures)


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
        maps=_cat_maps(conditions),
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
    tokens = tokens.repeat(1, cond.pictures, 1)
    if cond.image is None:
        if shown.all():
            return cond  # which the network refuses: a weight, and nothing that it could weigh
        image = tokens.to(cond.text.device).expand(cond.clips, -1, -1)
    else:
        own = beside(shown.reshape(-1, *[1] * (cond.image.dim() - 1)), cond.image)
        image = torch.where(own, cond.image, tokens.to(cond.image))
    text, weight = cond.weights.unbind(-1)
    weight = torch.where(shown.reshape(-1, *[1] * (weight.dim() - 1)), weight, 1.0)
    maps = cond.maps
    if maps is not None:  # it is seen once and everywhere
        once = torch.zeros(cond.pictures, 1, 1).index_fill_(0, torch.tensor([0]), 1.0)
        own = beside(shown.reshape(-1, *[1] * (maps.dim() - 1)), maps)
        text_map, image_maps = maps[..., :1, :, :], maps[..., 1:, :, :]
        maps = torch.cat([text_map, torch.where(own, image_maps, beside(once, maps))], -3)
    return dataclasses.replace(cond, image=image, weights=torch.stack([text, weight], -1), maps=maps)


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


def _cat_maps(conditions: list[Conditioning]) -> Tensor | None:
    """Concatenate maps; a condition without them has 1 everywhere, for as many pictures as the others."""
    maps = [c.maps for c in conditions]
    sizes = {tuple(m.shape[-2:]) for m in maps if m is not None} - {(1, 1)}
    if len(sizes) > 1:
        raise ValueError(
            f"conditions joined along the clips must have maps of one size, got {sorted(sizes)}."
        )
    template = next((m for m in maps if m is not None), None)
    if template is None:
        return None
    size = next(iter(sizes), (1, 1))
    maps = [
        template.new_ones(c.clips, template.shape[-3], 1, 1) if m is None else m
        for c, m in zip(conditions, maps, strict=True)
    ]
    return _cat_frames([m.expand(*m.shape[:-2], *size) for m in maps], 4)


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

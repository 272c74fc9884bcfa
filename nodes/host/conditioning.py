"""What the pack adds to the host's CONDITIONING: image tokens and modality weights beside the text tokens.

An entry is `[text tokens [1|t n d], dict]`; the dict's keys that are ours stand here. Conditionings are
shared between nodes and cached, so nothing here changes one: every function builds a new one.
"""

from typing import NamedTuple

import comfy.conds
import torch
from torch import Tensor
from torch.nn.functional import pad

from ...univid.config import NUMBERS
from ...univid.steer import Masks

IMAGE = (
    "univid_image"  # image tokens [1|t m d]; zeros where there is no picture; of several one after another
)
HAS_IMAGE = "univid_has_image"  # bool
HAS_TEXT = "univid_has_text"  # bool: whether the prompt says anything
WEIGHTS = "univid_weights"  # (lambda_t, lambda_v), float32 [1|t S 2]: S points of the sampling's progress
SHARES = "univid_shares"  # of several pictures: of lambda_v, float32 [1|t S p]
MASKS = "univid_masks"  # a Masks: where in the frames text and picture count
REGIONS = "univid_regions"  # of several pictures: where in the frames each counts, [1|t h w] or None
MAPS = "univid_maps"  # in model_conds: by what the weights are multiplied in each cell, [1|t 1+p h w]
NULL = "univid_null_image"  # tokens [1 m d] of a grey picture, where there is a picture
NUMBER = {name: f"univid_{name}" for name in NUMBERS}  # float, what a model is told; in model_conds [1 1]
FIRST, LAST = "univid_first", "univid_last"  # latents [1 c h w] of the first frame and the last, unscaled
KNOWN = "univid_known"  # {frame: its latents [1 c h w], unscaled}
CONCAT = "univid_concat"  # in model_conds: latents joined to the input, [t c h w]
PLACES = "univid_places"  # in model_conds: where in the clip each frame is, [t 1]
TOLD = "univid_told"  # in model_conds: what a call decides by, one Told a clip

MODEL_CONDS = ("c_crossattn", IMAGE, WEIGHTS, MAPS, PLACES, TOLD, NULL, *NUMBER.values(), CONCAT)


class Told(NamedTuple):
    """Of one clip in one call, (text, image) each: whether all frames share the tokens, and whether the
    stream has a weight in any frame at any point of the sampling.
    """

    shared: tuple[bool, bool]
    on: tuple[bool, bool]


class CONDTold(comfy.conds.CONDRegular):
    """`(Told,)` for the model, one a clip. No tensor: the host moves those to where the model is."""

    def process_cond(self, batch_size: int, **_) -> "CONDTold":
        return self

    def can_concat(self, other: "CONDTold") -> bool:
        return True

    def concat(self, others: list["CONDTold"]) -> tuple[Told, ...]:
        return sum((other.cond for other in others), self.cond)

    def size(self) -> list[int]:
        return [1]


class CONDTokens(comfy.conds.CONDRegular):
    """Image tokens `[t (p m) d]` of p pictures; fewer pictures get zeros behind theirs."""

    def can_concat(self, other: "CONDTokens") -> bool:
        (t, few, d), (u, many, e) = sorted((c.cond.shape for c in (self, other)), key=lambda shape: shape[1])
        return (t, d) == (u, e) and many % few == 0 and self.cond.device == other.cond.device

    def concat(self, others: list["CONDTokens"]) -> Tensor:
        return _alike([self.cond, *(other.cond for other in others)], 0.0)


class CONDWeights(comfy.conds.CONDRegular):
    """Weights `[t S 1+p]` of the text and of p pictures; others weigh 0."""

    def can_concat(self, other: "CONDWeights") -> bool:
        return self.cond.shape[:2] == other.cond.shape[:2] and self.cond.device == other.cond.device

    def concat(self, others: list["CONDWeights"]) -> Tensor:
        return _alike([self.cond, *(other.cond for other in others)], 0.0, dim=2)


class CONDMaps(comfy.conds.CONDNoiseShape):
    """Maps `[t 1+p h w]`; those of one cell, which are the same everywhere, go with any others."""

    def process_cond(self, batch_size: int, area: list[int] | None, **more) -> "CONDMaps":
        inside = None if self.cond.shape[-2:] == (1, 1) else area
        return super().process_cond(batch_size, inside, **more)

    def can_concat(self, other: "CONDMaps") -> bool:
        alike = len({c.cond.shape[-2:] for c in (self, other)} - {(1, 1)}) < 2
        return alike and self.cond.device == other.cond.device

    def concat(self, others: list["CONDMaps"]) -> Tensor:
        maps = [self.cond, *(other.cond for other in others)]
        size = max(m.shape[-2:] for m in maps)
        return _alike([m.expand(-1, -1, *size) for m in maps], 1.0)


def _alike(tensors: list[Tensor], value: float, dim: int = 1) -> Tensor:
    """Concatenate along the clips what is longer and shorter along a dimension, with `value` behind."""
    most = max(x.shape[dim] for x in tensors)
    later = [0, 0] * (tensors[0].dim() - 1 - dim)  # the dimensions behind it, which `pad` takes first
    return torch.cat([pad(x, [*later, 0, most - x.shape[dim]], value=value) for x in tensors])


def maps_of(extras: dict, frames: int, height: int, width: int) -> CONDMaps:
    """The maps of an entry, for a clip of so many latent cells; without masks one cell of 1."""
    shares = [torch.ones(1, 1, 1) if region is None else region for region in extras.get(REGIONS, ())]
    maps = extras.get(MASKS, Masks()).maps(frames, height, width, shares)
    if maps is None:
        return CONDMaps(torch.ones(1, 2, 1, 1))
    return CONDMaps(maps.reshape(-1, *maps.shape[-3:]))


def weights_and_maps(weights: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[n 1+p]` and maps `[n 1+p h w]` as a Conditioning has them: weights `[n 2]`, maps as before.

    Of several pictures the weights go into their maps.
    """
    if weights.shape[1] == 2:
        return weights, maps
    text, pictures = weights[:, :1], weights[:, 1:]
    shown = (pictures != 0).any(1, keepdim=True)
    maps = torch.cat([maps[:, :1], maps[:, 1:] * pictures[..., None, None]], 1)
    return torch.cat([text, shown.to(text)], 1), maps


def with_picture(conditioning: list, tokens: Tensor, share: Tensor, region: Tensor | None) -> list:
    """The same conditioning with one more picture.

    tokens: `[1|t m d]`. share: of lambda_v, `[1|t S 1]`. region: where in the frames it counts, `[1|t h w]`.

    Raises:
        ValueError: tokens of another encoder than those of the pictures before.
    """
    return [[text, extras | _one_more(extras, tokens, share, region)] for text, extras in conditioning]


def _one_more(extras: dict, tokens: Tensor, share: Tensor, region: Tensor | None) -> dict:
    if not extras.get(HAS_IMAGE, False):
        weights = weights_of(extras) * torch.tensor([1.0, 0.0]) + torch.tensor([0.0, 1.0])
        return {IMAGE: tokens, HAS_IMAGE: True, WEIGHTS: weights, SHARES: share, REGIONS: (region,)}
    before, shares = extras[IMAGE], extras.get(SHARES, torch.ones(1, 1, 1))
    if before.shape[1:] != (shares.shape[-1] * tokens.shape[1], tokens.shape[2]):
        raise ValueError(
            f"expected image tokens of width {before.shape[2]}, as of the pictures before, got "
            f"{tokens.shape[2]}; connect the CLIP_VISION that encoded those."
        )
    return {
        IMAGE: _joined([before, tokens], 1),
        SHARES: _joined([shares, share], 2),
        REGIONS: (*extras.get(REGIONS, (None,)), region),
    }


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    """Join along a dimension what has the same size along the others, or 1."""
    frames = sorted({len(x) for x in tensors} - {1})
    if len(frames) > 1:
        raise ValueError(
            f"expected pictures and weights for one number of frames, got {frames[0]} and {frames[1]}; give "
            "the clip's to all."
        )
    shape = [max(sizes) for sizes in zip(*(x.shape for x in tensors), strict=True)]
    sizes = [-1 if axis == dim else size for axis, size in enumerate(shape)]
    return torch.cat([x.expand(*sizes) for x in tensors], dim)


def with_weights(conditioning: list, weights: Tensor, masks: Masks = Masks()) -> list:  # noqa: B008
    """The same conditioning under modality weights `[1|t S 2]`; without a picture lambda_v stays 0."""
    weights = weights * torch.tensor(masks.counts())
    text_only = weights * torch.tensor([1.0, 0.0])
    return [
        [tokens, extras | {WEIGHTS: weights if extras.get(HAS_IMAGE, False) else text_only, MASKS: masks}]
        for tokens, extras in conditioning
    ]


def extended(conditioning: list, extras: dict) -> list:
    """The same conditioning with more in its dict."""
    return [[tokens, known | extras] for tokens, known in conditioning]


def has_image(conditioning: list) -> bool:
    """Whether any entry carries a picture."""
    return any(extras.get(HAS_IMAGE, False) for _, extras in conditioning)


def weights_of(extras: dict) -> Tensor:
    """The weights of the text and of each of p pictures of an entry, `[1|t S 1+p]`.

    Unset the modality weights are (1, 1) with a picture, else (1, 0).
    """
    weights = extras.get(WEIGHTS)
    if weights is None:
        weights = torch.tensor([[[1.0, float(extras.get(HAS_IMAGE, False))]]])
    if extras.get(SHARES) is None:
        return weights
    pictures = weights[..., 1:] * extras[SHARES]
    return _joined([weights[..., :1], pictures], 2)

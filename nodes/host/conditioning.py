"""What the pack adds to the host's CONDITIONING: image tokens and modality weights beside the text tokens.

An entry is `[text tokens [1|t n d], dict]`; the dict's keys that are ours stand here. Conditionings are
shared between nodes and cached, so nothing here changes one: every function builds a new one.
"""

from typing import NamedTuple

import comfy.conds
import torch
from torch import Tensor

from ...univid.config import NUMBERS

IMAGE = "univid_image"  # image tokens [1|t m d]; zeros where there is no picture
HAS_IMAGE = "univid_has_image"  # bool
HAS_TEXT = "univid_has_text"  # bool: whether the prompt says anything
WEIGHTS = "univid_weights"  # (lambda_t, lambda_v), float32 [1|t S 2]: S points of the sampling's progress
NULL = "univid_null_image"  # tokens [1 m d] of a grey picture, where there is a picture
NUMBER = {name: f"univid_{name}" for name in NUMBERS}  # float, what a model is told; in model_conds [1 1]
FIRST, LAST = "univid_first", "univid_last"  # latents [1 c h w] of the first frame and the last, unscaled
KNOWN = "univid_known"  # {frame: its latents [1 c h w], unscaled}
CONCAT = "univid_concat"  # in model_conds: latents joined to the input, [t c h w]
PLACES = "univid_places"  # in model_conds: where in the clip each frame is, [t 1]
TOLD = "univid_told"  # in model_conds: what a call decides by, one Told a clip

MODEL_CONDS = ("c_crossattn", IMAGE, WEIGHTS, PLACES, TOLD, NULL, *NUMBER.values(), CONCAT)


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


def with_weights(conditioning: list, weights: Tensor) -> list:
    """The same conditioning under modality weights `[1|t S 2]`; without a picture lambda_v stays 0."""
    text_only = weights * torch.tensor([1.0, 0.0])
    return [
        [tokens, extras | {WEIGHTS: weights if extras.get(HAS_IMAGE, False) else text_only}]
        for tokens, extras in conditioning
    ]


def extended(conditioning: list, extras: dict) -> list:
    """The same conditioning with more in its dict."""
    return [[tokens, known | extras] for tokens, known in conditioning]


def has_image(conditioning: list) -> bool:
    """Whether any entry carries a picture."""
    return any(extras.get(HAS_IMAGE, False) for _, extras in conditioning)


def weights_of(extras: dict) -> Tensor:
    """The modality weights `[1|t S 2]` of an entry; unset they are (1, 1) with a picture, else (1, 0)."""
    if extras.get(WEIGHTS) is not None:
        return extras[WEIGHTS]
    return torch.tensor([[[1.0, float(extras.get(HAS_IMAGE, False))]]])

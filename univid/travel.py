"""Prompt travel: prompts that are keyed to frames, and their text tokens blended between the keys.

0: a red circle / 12: a blue circle
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor

# A key starts the text or a line, or follows a slash that stands alone. "16:9" is none: a digit follows.
KEY = re.compile(r"(?:\A|\n|(?<=\s)/(?=\s))\s*(-?\d+)\s*:(?!\d)")
LAST_FRAME = 1_000_000


@dataclass(frozen=True)
class Key:
    """A prompt and the frame, counted from 0, at which it holds alone."""

    frame: int
    prompt: str


def parse(text: str) -> tuple[Key, ...]:
    """The keys of a text, by ascending frames; a text that does not start with `<frame>:` is one key at 0.

    Raises:
        ValueError: a frame that cannot be meant, or two keys at one frame.
    """
    found = list(KEY.finditer(text))
    if not found or text[: found[0].start()].strip():
        return (Key(0, text),)
    ends = [match.start() for match in found[1:]] + [len(text)]
    keys = sorted(
        (Key(int(match[1]), text[match.end() : end].strip()) for match, end in zip(found, ends, strict=True)),
        key=lambda key: key.frame,
    )
    frames = [key.frame for key in keys]
    if wrong := [frame for frame in frames if not 0 <= frame <= LAST_FRAME]:
        raise ValueError(f"prompt travel needs frames from 0 to {LAST_FRAME:,}, got {wrong[0]}.")
    if twice := sorted({frame for frame in frames if frames.count(frame) > 1}):
        raise ValueError(f"prompt travel has more than one prompt at frame {twice[0]}; keep one of them.")
    return tuple(keys)


def blend(tokens: Sequence[Tensor], keys: Sequence[int], frames: int) -> Tensor:
    """Text tokens of the keys to those of every frame: linear between keys, constant outside them.

    Args:
        tokens: `[1 n d]` of each key; n may differ, for long prompts.
        keys: their frames, ascending; those beyond the clip are travelled towards.
        frames: of the clip.

    Returns: `[t n d]`.
    """
    length = math.lcm(*(x.shape[1] for x in tokens))
    # Attention to tokens that stand there twice is attention to the tokens.
    stacked = torch.cat([repeat(x, "1 n d -> 1 (r n) d", r=length // x.shape[1]) for x in tokens])  # [k n d]
    at = torch.arange(frames).clamp(keys[0], keys[-1])
    ahead = torch.searchsorted(torch.tensor(keys), at)  # the first key at or after the frame
    behind = (ahead - 1).clamp(min=0)
    start, end = torch.tensor(keys)[behind], torch.tensor(keys)[ahead]
    share = (at - start) / (end - start).clamp(min=1)
    return torch.lerp(stacked[behind], stacked[ahead], share.to(stacked)[:, None, None])

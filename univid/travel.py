"""Prompts that change along a clip: keyed to frames and blended between them, or scene after scene.

0: a red circle / 12: a blue circle                             travels from frame 0 to frame 12
12 frames: a red circle / 12 frames: a blue circle              two scenes, cut hard
12 frames: a red circle / 12 frames fade 4: a blue circle       the same, blended over 4 frames at the cut

A frame's tokens are those of its own scene, as in TALC (2405.04682), or a mixture of two.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor

# A key starts the text or a line, or follows a slash that stands alone. "16:9" is none: a digit follows.
KEY = re.compile(r"(?:\A|\n|(?<=\s)/(?=\s))\s*(-?\d+)\s*:(?!\d)")
SCENE = re.compile(r"(?:\A|\n|(?<=\s)/(?=\s))\s*(\d+) +frames?(?: +fade +(\d+))? *:(?!\d)")
LAST_FRAME = 1_000_000


@dataclass(frozen=True)
class Key:
    """A prompt and the frame, counted from 0, at which it holds alone."""

    frame: int
    prompt: str


@dataclass(frozen=True)
class Scene:
    """A prompt that holds for some frames. fade: so many around its beginning mix with the one before."""

    frames: int
    fade: int
    prompt: str


def parse(text: str) -> tuple[Key, ...]:
    """The keys of a text, by ascending frames; one that starts with neither key nor scene is one key at 0.

    Raises:
        ValueError: a frame that cannot be meant, two keys at one frame, or a fade that does not fit.
    """
    if found := scenes(text):
        return _cut(found)
    keys = sorted(
        (Key(int(match[1]), prompt) for match, prompt in _parts(KEY, text)), key=lambda key: key.frame
    )
    if not keys:
        return (Key(0, text),)
    frames = [key.frame for key in keys]
    if wrong := [frame for frame in frames if not 0 <= frame <= LAST_FRAME]:
        raise ValueError(f"prompt travel needs frames from 0 to {LAST_FRAME:,}, got {wrong[0]}.")
    if twice := sorted({frame for frame in frames if frames.count(frame) > 1}):
        raise ValueError(f"prompt travel has more than one prompt at frame {twice[0]}; keep one of them.")
    return tuple(keys)


def scenes(text: str) -> tuple[Scene, ...]:
    """The scenes of a text that starts with one, else none."""
    return tuple(Scene(int(match[1]), int(match[2] or 0), prompt) for match, prompt in _parts(SCENE, text))


def length(text: str) -> int | None:
    """How many frames the scenes of a text have together; None without any."""
    return sum(scene.frames for scene in scenes(text)) or None


def encode(
    encoder: Callable[[list[str]], Tensor], prompts: Sequence[str], frames: int, start: int = 0
) -> Tensor:
    """Text tokens of prompts, one a clip: `[b n d]`, or `[b t n d]` where one of them changes.

    frames: of the clips, which begin at frame `start` of what the prompts are about.
    """
    paths = [parse(prompt) for prompt in prompts]
    tokens = encoder([key.prompt for path in paths for key in path])
    if len(tokens) == len(paths):
        return tokens
    return torch.stack(
        [
            blend(own.split(1), [key.frame for key in path], start + frames)[start:]
            for own, path in zip(tokens.split([len(path) for path in paths]), paths, strict=True)
        ]
    )


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


def _parts(start: re.Pattern, text: str) -> Iterator[tuple[re.Match, str]]:
    """What each match at a part's beginning says, and the part; nothing where the text does not start so."""
    found = list(start.finditer(text))
    if not found or text[: found[0].start()].strip():
        return
    ends = [match.start() for match in found[1:]] + [len(text)]
    for match, end in zip(found, ends, strict=True):
        yield match, text[match.end() : end].strip()


def _cut(found: Sequence[Scene]) -> tuple[Key, ...]:
    """Scenes as keys: where one is alone first and last. Beside each other the keys are a hard cut."""
    if found[0].fade:
        raise ValueError(
            f"the first scene has none before it to fade from, got fade {found[0].fade}; leave it out."
        )
    keys, begin = [], 0
    for number, scene in enumerate(found):
        end = begin + scene.frames
        if not 1 <= scene.frames <= end <= LAST_FRAME:
            raise ValueError(
                f"a scene must have at least 1 frame, and all together at most {LAST_FRAME:,}, got "
                f"{scene.frames}."
            )
        after = found[number + 1].fade if number + 1 < len(found) else 0
        first = begin - scene.fade // 2 + scene.fade if number else 0
        last = end - after // 2 - 1
        if first > last:
            raise ValueError(
                f"scene {number + 1} has {scene.frames} frames, too few to be blended at its cuts (fade "
                f"{scene.fade} and {after}); make it longer, or fade over fewer."
            )
        keys += [Key(frame, scene.prompt) for frame in sorted({first, last})]
        begin = end
    return tuple(keys)

"""Which videos of two folders belong together: those of one name, or those of one prompt."""

import logging
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from univid.messages import shown

from ..videos import Video, find_videos

NUMBER = re.compile(r"-\d+$")  # VBench's videos are called PROMPT-0 and so on
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """name: of both videos, or of A's where their prompt pairs them. picture: what both were given."""

    name: str
    a: Video
    b: Video
    prompt: str | None
    picture: Path | None


def find_pairs(a: Path, b: Path, asked: dict[str, str] | None = None) -> list[Pair]:
    """The pairs of two folders in the order of A's names.

    Videos of one name belong together, unless prompts say that the names mean other things in the other
    folder; then, or where no name is common, the first video of a prompt in A goes with the first of it in B,
    the second with the second.

    asked: prompts by the names of their videos; pairs of other prompts are left out.

    Raises:
        ValueError: the same folder twice, one without videos, no pair, or a picture that is missing.
    """
    if Path(a).resolve() == Path(b).resolve():
        raise ValueError(f"expected two folders to compare, got {shown(a)} twice; name another.")
    ours, theirs = ([_with_prompt(video, asked or {}) for video in find_videos(folder)] for folder in (a, b))
    pairs = _by_name(ours, theirs) or _by_prompt(ours, theirs)
    if not pairs:
        raise ValueError(
            f"no video of {shown(a)} has the name or the prompt of one in {shown(b)} (the first are called "
            f"{shown(ours[0].name, 60)} and {shown(theirs[0].name, 60)}); name them alike or give --prompts."
        )
    if alone := len(ours) + len(theirs) - 2 * len(pairs):
        log.warning("%d videos have no partner in the other folder and are left out", alone)
    if asked is not None:
        wanted = set(asked.values())
        pairs = [pair for pair in pairs if pair.prompt in wanted]
        if not pairs:
            raise ValueError("no pair has one of the prompts of --prompts; give the file that they are of.")
    for pair in pairs:
        if pair.picture is not None and not pair.picture.is_file():
            raise ValueError(
                f"the picture {shown(pair.picture)} of {shown(pair.name, 60)} is missing; put it there or "
                "take it out of the manifest."
            )
    return pairs


def _with_prompt(video: Video, asked: dict[str, str]) -> Video:
    """A video that does not say its prompt gets that of its name, with or without the number behind it."""
    named = asked.get(video.name) or asked.get(NUMBER.sub("", video.name))
    return replace(video, prompt=video.prompt or named)  # of a picture alone the prompt is empty


def _by_name(ours: Iterable[Video], theirs: Iterable[Video]) -> list[Pair]:
    """Pairs of one name; none where their prompts show that names do not tell what belongs together."""
    named = {video.name: video for video in theirs}
    pairs = [_pair(video, named[video.name]) for video in ours if video.name in named]
    differ = any(len({pair.a.prompt, pair.b.prompt} - {None}) == 2 for pair in pairs)
    return [] if differ else pairs


def _by_prompt(ours: Iterable[Video], theirs: Iterable[Video]) -> list[Pair]:
    waiting = defaultdict(list)
    for video in theirs:
        waiting[video.prompt].append(video)
    waiting.pop(None, None)
    return [_pair(video, waiting[video.prompt].pop(0)) for video in ours if waiting.get(video.prompt)]


def _pair(a: Video, b: Video) -> Pair:
    return Pair(a.name, a, b, a.prompt or b.prompt, a.picture or b.picture)


def draw(pairs: list[Pair], number: int | None, seed: int) -> list[Pair]:
    """So many of the pairs, by a seed; None = all.

    Raises:
        ValueError: there are fewer.
    """
    if number is not None and not 1 <= number <= len(pairs):
        raise ValueError(f"--pairs must be from 1 to the {len(pairs)} pairs that there are, got {number}.")
    return pairs if number is None else random.Random(seed).sample(pairs, number)

"""Which videos of two folders belong together: those of one name, or those of one prompt."""

import json
import logging
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from univid.files.regular import open_regular
from univid.messages import shown

from ..videos import Video, find_videos

NUMBER = re.compile(r"-\d+$")  # VBench's videos are called PROMPT-0 and so on
MOST = 2**25  # bytes of a file of prompts
FORMS = "give a text with one a line, or JSON: a list, or an object of prompts by name"
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

    asked: as `read_prompts` gives it; pairs of other prompts are left out.

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


def read_prompts(path: Path) -> dict[str, str]:
    """Prompts by the names of their videos, of the files that `sample` takes; else a prompt is its own name.

    They are a text with one a line, or JSON: an object of prompts by name, or a list (.jsonl: lines) of
    prompts or of objects that have one.

    Raises:
        ValueError: it cannot be read, or holds no prompts.
    """
    with open_regular(path) as file:
        content = file.read(MOST + 1)
    try:
        if len(content) > MOST:
            raise ValueError
        text, suffix = content.decode("utf-8-sig"), Path(path).suffix.lower()
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        rows = json.loads(text) if suffix == ".json" else lines
        if suffix in (".jsonl", ".ndjson"):
            rows = [json.loads(line) for line in lines]
        if isinstance(rows, list):
            prompts = [row["prompt"] if isinstance(row, dict) else row for row in rows]
            rows = dict(zip(prompts, prompts, strict=True))
        asked = dict(rows)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{shown(path)} is no file of prompts that can be read; {FORMS}.") from error
    if not asked or not all(isinstance(text, str) and text for text in asked.values()):
        raise ValueError(f"{shown(path)} holds no prompts; {FORMS}.")
    return asked


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

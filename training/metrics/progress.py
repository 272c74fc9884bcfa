"""Figures along a training, as UniVG shows FVD and CLIP similarity over steps (2401.09084, figure 5).

Of each saved state the same videos are made, from the same noise, and judged. A run keeps its newest two
states; `--logs.keep 20` keeps more.
"""

import argparse
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from univid.messages import shown

from .captions import Choice, pick
from .frames import METRICS
from .states import State
from .towers import Towers, own_towers
from .tradeoff import mean
from .videos import Video, find_videos

TEXT, CAPTIONS = "text", "captions"
OWN = (TEXT, CAPTIONS, *METRICS)
TITLES = {
    TEXT: "agrees with the text (cosine)",
    CAPTIONS: "own loss picks the caption (share)",
    "steadiness": "steadiness along the flow",
    "warp_error": "warp error",
    "motion": "motion (% of the side a frame)",
    "change": "change between frames (levels)",
    "flicker": "flicker (levels)",
}


@dataclass(frozen=True, eq=False)
class Judged:
    """How states are judged. metrics: of OWN, or of `score`.

    videos: with captions, for CAPTIONS. towers: for TEXT; None = each checkpoint's own. sample, score: more
    words for these two commands.

    Raises:
        ValueError: no metric, or captions without videos.
    """

    metrics: Sequence[str]
    prompts: str
    out: Path
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    videos: Path | None = None
    towers: Towers | None = None
    choice: Choice = Choice()
    sample: str = ""
    score: str = ""

    def __post_init__(self):
        if not self.metrics:
            raise ValueError(f"name at least one metric: {', '.join(OWN)}, or those of `score`.")
        if CAPTIONS in self.metrics and self.videos is None:
            raise ValueError("captions are picked for videos that have some; name their folder by --videos.")
        from .registry import METRICS as SCORED

        if unknown := [name for name in self.metrics if name not in (*OWN, *SCORED)]:
            known = ", ".join(dict.fromkeys((*OWN, *SCORED)))
            raise ValueError(f"the metrics are {known}; got {shown(', '.join(unknown))}.")


def judge(states: Sequence[State], how: Judged) -> dict:
    """All figures of all states, JSON values: {metric: [{"state", "step", "value", "low", "high"}]}.

    The videos of a state stay in its folder below `how.out`, where they are found again.

    Raises:
        ValueError: as `sample` and `score`, or a state that cannot be read.
    """
    figures: dict[str, list[dict]] = {name: [] for name in how.metrics}
    for state in states:
        with state.files() as (checkpoint, lora):
            found = _figures(checkpoint, lora, how.out / state.name, how)
        for name in how.metrics:
            figures[name].append({"state": state.name, "step": state.step, **found[name]})
    return figures


def _figures(checkpoint: Path | str, lora: Path | None, folder: Path, how: Judged) -> dict[str, Mapping]:
    from . import sample

    found: dict[str, Mapping] = {}
    if CAPTIONS in how.metrics:
        share = pick(_model(checkpoint, lora, how), find_videos(how.videos), how.choice)["accuracy"]
        found[CAPTIONS] = share
    if all(name == CAPTIONS for name in how.metrics):
        return found
    words = [
        "--checkpoint",
        str(checkpoint),
        "--prompts",
        how.prompts,
        "--out",
        str(folder),
        "--format",
        "png",
    ]
    words += ["--lora", str(lora)] if lora else []
    _call(sample, "sample", [*words, *shlex.split(how.sample)], how.device)
    videos = find_videos(folder)
    for name in how.metrics:
        if name in METRICS:
            found[name] = mean(torch.tensor([METRICS[name](video.read()[0]) for video in videos]))
    if TEXT in how.metrics:
        towers = how.towers or own_towers(_model(checkpoint, lora, how))
        found[TEXT] = mean(torch.tensor(_text_agreements(towers, videos)))
    if others := [name for name in how.metrics if name not in OWN]:
        found |= _scored(folder, others, how)
    return found


def _text_agreements(towers: Towers, videos: Sequence[Video]) -> list[float]:
    words = towers.words([video.prompt or "" for video in videos])
    pairs = zip(words, videos, strict=True)
    return [(towers.pictures(video.read()[0]) @ asked).mean().item() for asked, video in pairs]


def _scored(folder: Path, names: Sequence[str], how: Judged) -> dict[str, Mapping]:
    from . import score

    out = folder.with_name(f"{folder.name}.json")
    words = [str(folder), "--metrics", ",".join(names), "--out", str(out), *shlex.split(how.score)]
    _call(score, "score", words, how.device)
    result = json.loads(out.read_text("utf-8"))
    for name in names:
        if name not in result["metrics"]:
            raise ValueError(
                f"{name} cannot be computed: {shown(result['missing'].get(name, 'unknown'), 200)}"
            )
    return {n: {key: result["metrics"][n].get(key) for key in ("value", "low", "high")} for n in names}


def _model(checkpoint: Path | str, lora: Path | None, how: Judged):
    from univid.checkpoints import apply_lora, load

    model = load(checkpoint, device=how.device, dtype=how.dtype)
    if lora is not None:
        apply_lora(model, lora)
    return model


def _call(part: ModuleType, command: str, words: Sequence[str], device: str) -> str:
    """What a command of the command line makes of such words."""
    parser = argparse.ArgumentParser(prog="python -m training")
    part.add(parser.add_subparsers(dest="command"))
    options = parser.parse_args([command, *words])
    options.device = device
    run: Callable[[argparse.Namespace], str] = part.COMMANDS[command]
    return run(options)


def report(figures: Mapping[str, Sequence[Mapping]]) -> str:
    """A Markdown table, a row for each state."""
    names = list(figures)
    lines = [["state", *names], ["---", *["---:"] * len(names)]]
    for points in zip(*figures.values(), strict=True):
        cells = []
        for point in points:
            interval = "" if point["low"] is None else f" [{point['low']:.4g}, {point['high']:.4g}]"
            cells.append(f"{point['value']:.4g}{interval}")
        lines.append([shown(points[0]["state"], 40), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

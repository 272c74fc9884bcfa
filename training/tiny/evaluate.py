"""Scores a checkpoint: clips made under known conditions and read back off their pixels.

protocol.json fixes the rows, their seeds and their goals, held_out.json what is held out.
Scene, picture and noise of a row's clip are functions of (row.seed, index) alone, so a longer evaluation
contains a shorter one.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from training.folder import write_json
from univid.checkpoints import load
from univid.config import SamplingProfile
from univid.files.output import new_file
from univid.model import UniVid
from univid.pipeline import Clip, generate, profile_guider
from univid.video import to_uint8

from . import shapes, table
from .machine import Machine, forget_models
from .scorer import Reading, agreement, distance, read
from .shapes import Scene

SCENES = {"seen": shapes.SEEN_SCENES, "held_out": shapes.HELD_OUT_SCENES}
CONTENT = ("color", "shape", "background")  # what a picture can show
NEAR = 0.08  # sides, between the picture's position and a clip's nearest frame
SLACK = 0.05  # how far steering may go back on its way
CALM = 1.5  # times the change between neighbours that clips of the profile's length have: the most elsewhere
KINDS = {"steadiness": table.mean, "change": table.median, "flicker": table.median}
T2V, T2V_LONG = "T2V, seen", f"T2V, {table.LONG} frames"


@dataclass(frozen=True)
class Row:
    """One row of a table.

    given: "text"; "picture", with the empty text; "both", a frame of a clip of the text's scene; "conflict",
        a picture whose colour, shape and background all differ from the text's.
    weights: (lambda_t, lambda_v). frames: of its clips; None = as many as the profile has.
    like: the row that it repeats at another length, where neighbouring frames may hardly change more.
    control: "untrained", a U-Net as training starts from; "shuffled", the clips of the row T2V, each scored
        against the caption of the next one; None.
    at_least, at_most: the goals, bounds of figures.
    """

    name: str
    group: str
    given: str
    scenes: str
    weights: tuple[float, float]
    seed: int
    frames: int | None
    like: str | None
    control: str | None
    at_least: Mapping[str, float]
    at_most: Mapping[str, float]


PROTOCOL = json.loads(Path(__file__).with_name("protocol.json").read_text("utf-8"))
ROWS = {entry["name"]: Row(**entry) for entry in PROTOCOL["rows"]}


@dataclass(frozen=True, eq=False)
class Condition:
    """What one clip is asked for: the scene that the text names, the scene that the picture shows, or both.

    picture: uint8 `[h w 3]`.
    """

    text: Scene | None
    shown: Scene | None
    picture: np.ndarray | None


def conditions(row: Row, indices: range, profile: SamplingProfile) -> list[Condition]:
    """What the clips `indices` of a row are asked for."""
    return [_condition(row, index, row.frames or profile.frames, profile.height) for index in indices]


def _condition(row: Row, index: int, frames: int, size: int) -> Condition:
    """A row goes through its scenes evenly, in a shuffled order."""
    scenes, rng = SCENES[row.scenes], np.random.default_rng([row.seed, index])
    order = np.random.default_rng(row.seed).permutation(len(scenes))
    scene = shown = scenes[order[index % len(scenes)]]
    if row.given == "text":
        return Condition(scene, None, None)
    if row.given == "conflict":
        unlike = [s for s in scenes if all(getattr(s, word) != getattr(scene, word) for word in CONTENT)]
        shown = unlike[rng.integers(len(unlike))]
    clip = shapes.draw(shown, rng, frames, size)
    return Condition(None if row.given == "picture" else scene, shown, clip[rng.integers(frames)])


def make_clips(model: UniVid, row: Row, asked: Sequence[Condition], seed: int) -> np.ndarray:
    """The model's clips uint8 `[b t h w 3]` by its own profile; clip i starts from the noise of seed + i."""
    text_weight, image_weight = row.weights
    length = {"clip": Clip(frames=row.frames)} if row.frames else {}
    pictures = None
    if row.given != "text":
        stacked = torch.from_numpy(np.stack([c.picture for c in asked]))
        pictures = shapes.to_video(stacked[:, None])[:, :, 0]  # [b 3 h w]
    with torch.inference_mode():
        video = generate(
            model,
            [c.text.caption if c.text else "" for c in asked],
            pictures,
            text_weight=text_weight,
            image_weight=image_weight,
            seed=seed,
            **length,
        )
    return np.stack([to_uint8(clip) for clip in video.split(1)])


def read_clips(model: UniVid, row: Row, indices: range) -> list[Reading]:
    """Make the clips `indices` of a row as one batch and read them."""
    asked = conditions(row, indices, model.profile)
    return [read(clip) for clip in make_clips(model, row, asked, row.seed + indices[0])]


def drawn_flicker(row: Row, clips: int, profile: SamplingProfile) -> float | None:
    """The median flicker of the clips that a perfect generator would make for a row of texts."""
    found = []
    for index, asked in enumerate(conditions(row, range(clips), profile)):
        rng = np.random.default_rng([row.seed, index])
        found.append(read(shapes.draw(asked.text, rng, profile.frames, profile.height)).flicker)
    value = float(np.median(found))
    return value if np.isfinite(value) else None


def marks(asked: Condition, reading: Reading) -> dict[str, float]:
    """What is right about one clip; a clip in which nothing was found is wrong everywhere.

    text_*, picture_*: a word agrees with the text, with the picture; *_content: colour, shape and background
    at once; text_all: all four. near: some frame is within NEAR of the picture's position. both: the
    picture's content and the text's motion. moves, steadiness (0..1): as the scorer says.
    """
    found: dict[str, float] = {
        "found": reading.found,
        "moves": reading.moves,
        "steadiness": reading.steadiness,
        "change": reading.change,
    }
    if np.isfinite(reading.flicker):
        found["flicker"] = reading.flicker
    for name, scene in (("text", asked.text), ("picture", asked.shown)):
        if scene is not None:
            right = agreement(reading, scene)
            right["content"] = all(right[word] for word in CONTENT)
            words = [*CONTENT, "content", *(["motion", "all"] if name == "text" else [])]
            found |= {f"{name}_{word}": right[word] for word in words}
    if asked.picture is not None:
        found["near"] = distance(reading, read(asked.picture[None])) <= NEAR
        if asked.text is not None:
            found["both"] = found["picture_content"] and found["text_motion"]
    return found


def score(asked: Sequence[Condition], readings: Sequence[Reading]) -> dict[str, dict[str, float]]:
    """Value and 95 % interval of every mark over the clips of a row: shares, but for those of KINDS."""
    rows = [marks(one, reading) for one, reading in zip(asked, readings, strict=True)]
    return {name: KINDS.get(name, table.share)([row[name] for row in rows]) for name in rows[0]}


def evaluate(
    checkpoint: str | os.PathLike,
    *,
    out: Path,
    readme: Path | None = None,
    clips: int = PROTOCOL["clips"],
    ablation: Mapping[str, str | os.PathLike] | None = None,
    machine: Machine | None = None,
) -> dict:
    """Score a checkpoint by the protocol; write all figures to `out` (JSON) and the tables into `readme`.

    Args:
        checkpoint: a native checkpoint, or "built-in".
        clips: a row.
        ablation: name -> checkpoint trained for one equal budget; each is scored on T2V and T2V_LONG.

    Returns:
        What `out` holds: rows, ablation, and checks, the goals met and missed.

    Raises:
        ValueError: no clips, an unknown dtype, a README without its two markers, or a checkpoint that
            cannot be read.
    """
    machine, ablation = machine or Machine(), ablation or {}
    if clips < 1:
        raise ValueError(f"clips must be at least 1, got {clips}.")
    if readme is not None:
        table.replace_between(readme.read_bytes().decode(), "")  # fails now, not after an hour
    forget_models()
    model = machine.model(str(checkpoint))
    for path in ablation.values():
        load(path, parts=())
    profile = model.profile

    made = [row for row in ROWS.values() if row.control != "shuffled"]
    tasks = [(str(checkpoint), row) for row in made]
    tasks += [(str(path), ROWS[name]) for path in ablation.values() for name in (T2V, T2V_LONG)]
    readings = read_rows(tasks, clips, machine)
    by_name = dict(zip((row.name for row in made), readings, strict=False))
    rows = {}
    for name, row in ROWS.items():
        asked = conditions(row, range(clips), profile)
        if row.control == "shuffled":
            asked = asked[1:] + asked[:1]
        rows[name] = _entry(row, asked, by_name.get(name, by_name[T2V]))
    short, long = (
        [score(conditions(ROWS[name], range(clips), profile), each) for each in readings[len(made) + k :: 2]]
        for k, name in enumerate((T2V, T2V_LONG))
    )
    scores = [a | {f"{name}_{table.LONG}": b[name] for name in b} for a, b in zip(short, long, strict=True)]
    result = {
        "checkpoint": Path(checkpoint).name,
        "settings": (
            f"{clips} clips a row, {profile.frames} frames of {profile.width} x {profile.height}, "
            f"{profile.steps} steps of {profile.sampler} ({profile.sigma_schedule}), "
            f"{profile_guider(profile)}, weights in {machine.dtype} on {machine.device}"
        ),
        "clips": clips,
        "near": NEAR,
        "info": model.info,
        "checks": checks(rows),
        "drawn_flicker": drawn_flicker(ROWS[T2V], clips, profile),
        "ablation": dict(zip(ablation, scores, strict=True)),
        "rows": rows,
    }
    write_json(out, result)
    if readme is not None:
        text = table.replace_between(readme.read_bytes().decode(), table.markdown(result))
        with new_file(readme) as temporary:
            temporary.write_bytes(text.encode())
    return result


def checks(rows: Mapping[str, dict]) -> list[dict]:
    """Every goal of the protocol: what, the value, the bound, and whether it is met.

    rows: name -> {"figures": ...}. Steering has to go one way: no point may be more than SLACK worse than an
    earlier one.
    """

    found = [
        table.check(
            f"{row.name}: {table.COLUMNS[figure]}", rows[row.name]["figures"][figure]["value"], sign, bound
        )
        for row in ROWS.values()
        for sign, bounds in ((">=", row.at_least), ("<=", row.at_most))
        for figure, bound in bounds.items()
    ]
    change = {name: rows[name]["figures"]["change"]["value"] for name in ROWS}
    for row in ROWS.values():
        if row.like is not None:
            most = CALM * change[row.like]
            found.append(table.check(f"{row.name}: {table.CHANGE}", change[row.name], "<=", most, unit=1))
    steering = [rows[name]["figures"] for name, row in ROWS.items() if row.group == "steering"]
    falling = [figures["text_content"]["value"] for figures in steering]
    rising = [figures["picture_content"]["value"] for figures in steering]
    for what, values in (("text rises", falling), ("picture falls", rising[::-1])):
        back = max(value - min(values[: i + 1]) for i, value in enumerate(values))
        found.append(table.check(f"steering: on the way agreement with the {what} by", back, "<=", SLACK))
    return found


def _entry(row: Row, asked: Sequence[Condition], readings: Sequence[Reading]) -> dict:
    """A row's figures, and for each clip what was asked and what was seen."""
    clips = [_words(c, reading) for c, reading in zip(asked, readings, strict=True)]
    return {"group": row.group, "weights": row.weights, "figures": score(asked, readings), "clips": clips}


def _words(asked: Condition, reading: Reading) -> dict[str, str]:
    seen = Scene(*(getattr(reading, word) or "?" for word in ("color", "shape", "motion", "background")))
    words = {"text": asked.text and asked.text.caption, "picture": asked.shown and asked.shown.still_caption}
    return {name: word for name, word in words.items() if word} | {"seen": seen.caption}


Job = tuple[Machine, str, Row, range]  # checkpoint, row, indices


def read_rows(tasks: Sequence[tuple[str, Row]], clips: int, machine: Machine) -> list[list[Reading]]:
    """The readings of every (checkpoint, row)."""
    batch = PROTOCOL["batch"]
    spans = [range(start, min(start + batch, clips)) for start in range(0, clips, batch)]
    jobs = [(machine, path, row, span) for path, row in tasks for span in spans]
    done: list[Reading] = []
    with machine.mapper() as run, tqdm(total=clips * len(tasks), unit="clip", mininterval=1) as bar:
        for job, readings in zip(jobs, run(_read_job, jobs), strict=True):
            bar.set_description(f"{Path(job[1]).stem} {job[2].name}", refresh=False)
            bar.update(len(readings))
            done += readings
    return [done[i * clips : (i + 1) * clips] for i in range(len(tasks))]


def _read_job(job: Job) -> list[Reading]:
    machine, checkpoint, row, indices = job
    model = machine.model(checkpoint, row.seed if row.control == "untrained" else None)
    return read_clips(model, row, indices)

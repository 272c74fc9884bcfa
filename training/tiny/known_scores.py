"""Scores a model of known frames on clips whose truth is known: frames in between, and clips that go on.

Clip i of a row is a function of i alone, and none is of the set that is trained on.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from training.folder import write_json
from univid.cascade import Extend, Interpolate, Told, whole
from univid.model import UniVid
from univid.video import from_uint8, to_uint8

from . import shapes, table
from .machine import Machine
from .scorer import Reading, read
from .shapes import Scene

SEED = 960_000
KEYS, FACTOR = 4, 4  # frames that are known, and for each how many there are then
KNOWN, WINDOW, MOMENTS = 12, 24, 45  # of one path; three windows make the rest of it
OFF = 0.02  # sides, between a frame's place and the truth's
GOALS = (  # figure, sign, bound; of the model
    ("in between: place", ">=", 0.95),
    ("in between: colour and shape", ">=", 0.98),
    ("going on: steadiness lost at a seam", "<=", 0.02),
    ("going on: change at a seam to that inside", "<=", 1.5),
)

Figures = dict[str, dict[str, float]]


def truth(index: int, frames: int, size: int = 64) -> tuple[np.ndarray, Scene]:
    """Clip `index`, uint8 `[t h w 3]`, and what it shows."""
    return shapes.clip(index, seed=SEED, frames=frames, size=size)


def evaluate(checkpoint: str, clips: int, machine: Machine, out: Path | None = None) -> dict:
    """Figures of a checkpoint and of what needs none, as `report` shows them; written to `out` as JSON."""
    found = machine.each(checkpoint, of_clip, range(clips), "known frames")
    between, going = zip(*found, strict=True)
    rows = {name: [hit for rows in between for hit in rows[name]] for name in between[0]}
    result = {
        "clips": clips,
        "in between": {
            name: {word: table.share([hit[word] for hit in hits]) for word in hits[0]}
            for name, hits in rows.items()
        },
        "going on": {word: table.mean([clip[word] for clip in going]) for word in ("inside", "at seams")},
        "change": {
            word: table.median([clip[word] for clip in going])
            for word in ("change inside", "change at seams")
        },
    }
    result["checks"] = checks(result)
    if out is not None:
        write_json(out, result)
    return result


def of_clip(model: UniVid, index: int) -> tuple[dict[str, list[dict[str, bool]]], dict[str, float]]:
    """Of clip `index` the in-between frames by each method, and the seams of the model's longer one."""
    video, scene = truth(index, FACTOR * (KEYS - 1) + 1)
    keys = video[::FACTOR]
    made = {
        "model": between(model, keys, scene.caption, index),
        "model, without words": between(model, keys, "", index),
        "blending": blended(keys),
        "repeating": np.repeat(keys, FACTOR, axis=0)[: len(video)],
        "the VAE's truth": coded(model, video),
    }
    path, scene_of_path = truth(index, MOMENTS)
    longer = extended(model, path[:KNOWN], scene_of_path.caption, index)
    return {name: in_between(clip, video, scene) for name, clip in made.items()}, at_seams(longer)


def between(model: UniVid, keys: np.ndarray, caption: str, seed: int) -> np.ndarray:
    """The model's frames around the known ones."""
    longest = FACTOR * (len(keys) - 1) + 1
    return whole(Interpolate(model, keys, Told(caption, seed=seed, longest=longest), factor=FACTOR))


def extended(model: UniVid, known: np.ndarray, caption: str, seed: int) -> np.ndarray:
    """The model's clip of MOMENTS frames, of which the first ones are known."""
    told = Told(caption, seed=seed, longest=WINDOW)
    return whole(Extend(model, known, told, more=MOMENTS - len(known), known=KNOWN))


def blended(keys: np.ndarray) -> np.ndarray:
    """Each frame in between a mixture of its two neighbours."""
    shares = np.arange(FACTOR)[:, None, None, None] / FACTOR
    pairs = [(1 - shares) * a + shares * b for a, b in zip(keys.astype(np.float32), keys[1:], strict=False)]
    return np.rint(np.concatenate([*pairs, keys[-1:]])).astype(np.uint8)


@torch.no_grad()
def coded(model: UniVid, video: np.ndarray) -> np.ndarray:
    """What the autoencoder makes of a clip: the best that a network behind it can do."""
    return to_uint8(model.vae.decode(model.vae.encode(from_uint8(video))).clamp(-1, 1))


def in_between(made: np.ndarray, video: np.ndarray, scene: Scene) -> list[dict[str, bool]]:
    """Of each frame that was not known: whether its place is the truth's, and its colour and shape."""
    hits = []
    for place in range(len(video)):
        if place % FACTOR:
            seen, true = read(made[place : place + 1]), read(video[place : place + 1])
            off = np.linalg.norm(seen.positions[0] - true.positions[0])
            hits.append({"place": bool(off <= OFF), "colour and shape": _words(seen) == _words(scene)})
    return hits


def _words(of: Reading | Scene) -> tuple[str | None, str | None]:
    return of.color, of.shape


def at_seams(video: np.ndarray) -> dict[str, float]:
    """Share of steady neighbours, and their change in levels, where a window begins and elsewhere."""
    seams = np.zeros(len(video) - 1, bool)
    seams[KNOWN - 1 :: WINDOW - KNOWN] = True
    made = np.arange(len(seams)) >= KNOWN - 1
    change = np.abs(np.diff(video.astype(np.float32), axis=0)).mean((1, 2, 3))
    pairs, inside = read(video).pairs, made & ~seams
    return {
        "inside": float(pairs[inside].mean()),
        "at seams": float(pairs[seams].mean()),
        "change inside": float(change[inside].mean()),
        "change at seams": float(change[seams].mean()),
    }


def checks(result: Mapping) -> list[dict]:
    """Every goal: what, the value, the bound, and whether it is met."""
    model, going, change = result["in between"]["model"], result["going on"], result["change"]
    values = (
        model["place"]["value"],
        model["colour and shape"]["value"],
        going["inside"]["value"] - going["at seams"]["value"],
        change["change at seams"]["value"] / max(1e-6, change["change inside"]["value"]),
    )
    return [
        table.check(what, value, sign, bound, 1 if bound > 1 else 100)
        for (what, sign, bound), value in zip(GOALS, values, strict=True)
    ]


def report(result: Mapping) -> str:
    """The figures as text, with 95 % intervals."""

    def cell(figure: Mapping[str, float], unit: float = 100) -> str:
        return "{:.1f} [{:.1f}, {:.1f}]".format(*(unit * figure[key] for key in ("value", "low", "high")))

    lines = [f"{result['clips']} clips", table.goals(result["checks"])]
    for name, figures in result["in between"].items():
        words = ", ".join(f"{word} {cell(figure)}" for word, figure in figures.items())
        lines.append(f"in between, {name}: {words}")
    lines += [f"going on, steady {word}: {cell(figure)}" for word, figure in result["going on"].items()]
    lines += [f"going on, {word}: {cell(figure, 1)}" for word, figure in result["change"].items()]
    return "\n".join(lines)

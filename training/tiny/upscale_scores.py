"""Scores an upscaling model on clips that are drawn at both sizes, so that the larger truth is known.

Clip i is a function of i alone, and none is of the set that is trained on.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from training.folder import write_json
from univid.cascade import Told, Upscale, whole
from univid.model import UniVid
from univid.video import fit, from_uint8, to_uint8

from . import shapes, table
from .known_scores import coded
from .machine import Machine

SEED = 970_000
FRAMES, SMALL = 12, 64  # of a clip that is enlarged to the model's own size
DECIBELS, NEAR = 2.0, 1.0  # above bicubic's, and below the autoencoder's of the truth
CHANGE = 1.1  # most, of neighbours, in the truth's

Figures = dict[str, dict[str, float]]


def evaluate(checkpoint: str, clips: int, machine: Machine, out: Path | None = None) -> dict:
    """Figures of a checkpoint and of what needs none, as `report` shows them; written to `out` as JSON."""
    found = machine.each(checkpoint, of_clip, range(clips), "upscale")
    result = {"clips": clips, "rows": {name: _mean([rows[name] for rows in found]) for name in found[0]}}
    result["checks"] = checks(result["rows"])
    if out is not None:
        write_json(out, result)
    return result


def of_clip(model: UniVid, index: int) -> dict[str, dict[str, float]]:
    """The figures of clip `index`, enlarged by each method."""
    size = model.profile.height
    small, scene = shapes.clip(index, seed=SEED, frames=FRAMES, size=SMALL)
    truth, _ = shapes.clip(index, seed=SEED, frames=FRAMES, size=size)
    made = {
        "model": upscaled(model, small, scene.caption, index),
        "model, without words": upscaled(model, small, "", index),
        "bicubic": enlarged(small, size),
        "the VAE's truth": coded(model, truth),
        "truth": truth,
    }
    return {name: figures(clip, truth) for name, clip in made.items()}


def upscaled(model: UniVid, small: np.ndarray, caption: str, seed: int) -> np.ndarray:
    """The model's larger clip."""
    return whole(Upscale(model, small, Told(caption, seed=seed)))


def enlarged(small: np.ndarray, size: int) -> np.ndarray:
    """What the model starts from."""
    return to_uint8(torch.cat([fit(from_uint8(frame[None]), size, size) for frame in small], dim=2))


def figures(made: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """PSNR in dB (of the truth itself that of one level), mean gradient, and change between neighbours, in
    levels.
    """
    video = made.astype(np.float32)
    error = max(1.0, float(np.square(video - truth).mean()))
    across = np.abs(np.diff(video, axis=1)).mean() + np.abs(np.diff(video, axis=2)).mean()
    return {
        "PSNR": 10 * math.log10(255**2 / error),
        "gradient": float(across) / 2,
        "change": float(np.abs(np.diff(video, axis=0)).mean()),
    }


def _mean(rows: list[dict[str, float]]) -> Figures:
    """Means and their normal 95 % intervals."""
    return {word: table.unbounded_mean([row[word] for row in rows]) for word in rows[0]}


def checks(rows: Mapping[str, Figures]) -> list[dict]:
    """Every goal: what, the value, the bound, and whether it is met."""
    value = {name: {word: figure["value"] for word, figure in row.items()} for name, row in rows.items()}
    model, bicubic, truth = value["model"], value["bicubic"], value["truth"]
    slack, change = model["PSNR"] - value["the VAE's truth"]["PSNR"], model["change"] / truth["change"]
    low, high = sorted((bicubic["gradient"], truth["gradient"]))
    return [
        table.check("PSNR above bicubic's", model["PSNR"] - bicubic["PSNR"], ">=", DECIBELS, 1),
        table.check("PSNR above that of the truth through the VAE", slack, ">=", -NEAR, 1),
        table.check("gradient", model["gradient"], ">=", low, 1),
        table.check("gradient", model["gradient"], "<=", high, 1),
        table.check("change of neighbours to the truth's", change, "<=", CHANGE, 1),
    ]


def report(result: Mapping) -> str:
    """The figures as text, with 95 % intervals."""
    lines = [f"{result['clips']} clips", table.goals(result["checks"])]
    for name, row in result["rows"].items():
        words = (
            "{} {:.2f} [{:.2f}, {:.2f}]".format(word, *(figure[key] for key in ("value", "low", "high")))
            for word, figure in row.items()
        )
        lines.append(f"{name}: {', '.join(words)}")
    return "\n".join(lines)

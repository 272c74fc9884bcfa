"""Motion customisation (Show-1, 3.7), measured: one clip of a motion that the built-in model does not know.

The temporal attention alone is finetuned on that clip, as users do it; then the model is asked for other
objects. None of them has the clip's colour, shape or background, so what they share with it is the motion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from training import distributed
from training.config import LogsConfig, OptimConfig, Recipe
from training.folder import write_json
from training.lora import LoraConfig
from training.options import NoiseOptions
from training.recipes_univid import finetune
from training.runs import run
from training.saved import FINAL
from univid.checkpoints import apply_lora, load
from univid.checkpoints.native import BUILT_IN
from univid.model import UniVid
from univid.pipeline import generate
from univid.video import to_uint8

from . import clips, shapes, table
from .scorer import Reading, read
from .shapes import BACKGROUNDS, COLORS, SHAPES, Scene

CONTENT = ("color", "shape", "background")
PARTS = "temporal-attention"
LORA, FULL = "tiny_motion_lora", "tiny_motion_full"  # the runs: low rank, and every weight of those layers
# The caption says what is nearest to the motion of what the model knows. Alone, it knows no way but straight.
CLIP = Scene("red", "circle", "moves right", "gray")
FRAMES, SIZE, FPS = 12, 64, 8
START, END = (0.3, 0.3, 0.17), (0.7, 0.7, 0.17)  # (x, y, radius): from the upper left to the lower right
SEED, BATCH = 970_000, 10
# What counts: a way to the right and as clear a way down, along which the shape wavers (mean distance from
# the straight line, in sides) by less than a tenth of its length.
WAVER, TRAVEL, RATIO = 0.05, 0.15, 2.0
GOALS = {LORA: 0.8, FULL: 0.8}  # of the clips; before, none
ROWS = {None: "before", LORA: "LoRA", FULL: "full rank"}
COLUMNS = ("customised", "text_color", "text_shape", "text_background", "steadiness")


def draw(folder: Path) -> None:
    """Write the one clip and its caption; what is there stays."""
    clips.write(folder / "clip.mkv", clip(CLIP), CLIP.caption, FPS)


def clip(scene: Scene, start: Sequence[float] = START, end: Sequence[float] = END) -> np.ndarray:
    """The scene's object on a straight path, uint8 `[t h w 3]`."""
    times = np.linspace(0, 1, FRAMES)[:, None]
    return shapes.render(scene, np.array(start) + times * (np.array(end) - start), SIZE)


def recipe(name: str, root: Path) -> Recipe:
    """Finetuning as users have it, with what one clip and a network for a CPU need.

    Where a shape goes is decided in the noisiest timesteps, so these are drawn more often. The clip is shown
    beside its text alone: a picture of it would say where the shape lies, and the motion would not have to.
    """
    full = name == FULL
    base = finetune(
        BUILT_IN, root / "tiny_motion_clip", name=name, full=full,
        steps=80 if full else 140, lora=None if full else LoraConfig(parts=PARTS),
    )  # fmt: skip
    return replace(
        base,
        batch={"video": 4},
        engine=replace(base.engine, micro_batch={"video": 4}),
        optim=OptimConfig(
            lr=2e-3 if full else 3e-3, weight_decay=0.0, warmup_steps=10, decay="cosine", ema_decay=0.95
        ),
        options=replace(
            base.options,
            parts=PARTS if full else None,  # a LoRA has its own
            modes={"text": 0.9, "none": 0.1},
            noise=NoiseOptions(shift={"video": 8.0}),
            data=replace(base.options.data, augment=False, workers=0),
        ),
        logs=LogsConfig(every=10, save_every=50),
    )


def train_missing(root: Path, device, steps: int | None = None) -> dict[str, Path]:
    """The results of both runs by name, trained where they are missing; steps: instead of the recipes'."""
    if distributed.rank() == 0:
        draw(root / "tiny_motion_clip")
    distributed.barrier()
    made = {}
    for name in (LORA, FULL):
        asked = recipe(name, root)
        made[name] = root / name / f"{name}.safetensors"
        if not (root / name / FINAL).exists() or not made[name].exists():
            run(asked if steps is None else replace(asked, steps=steps), root, device)
    return made


def others() -> list[Scene]:
    """All objects that share neither colour nor shape nor background with the clip, in a shuffled order."""
    scenes = [
        Scene(color, shape, CLIP.motion, background)
        for color, shape, background in product(COLORS, SHAPES, BACKGROUNDS)
        if color != CLIP.color and shape != CLIP.shape and background != CLIP.background
    ]
    return [scenes[index] for index in np.random.default_rng(SEED).permutation(len(scenes))]


def travel(reading: Reading) -> np.ndarray:
    """How far the shape goes to the right and down, in sides, along the line nearest to its path."""
    seen = np.isfinite(reading.positions[:, 0])
    if not reading.found or seen.sum() < 2:
        return np.zeros(2)
    times = np.arange(len(seen))
    return np.polyfit(times[seen], reading.positions[seen], 1)[0] * times[-1]


def diagonal(reading: Reading) -> bool:
    """Whether the clip shows the motion: a shape on its way to the lower right."""
    if not reading.found or reading.jitter > WAVER:
        return False
    less, more = np.sort(travel(reading))
    return bool(less >= TRAVEL and more <= RATIO * less)


def marks(scene: Scene, reading: Reading) -> dict[str, float]:
    """What is right about one clip; nothing found is wrong everywhere."""
    return {
        "customised": diagonal(reading),
        **{f"text_{word}": getattr(reading, word) == getattr(scene, word) for word in CONTENT},
        "steadiness": reading.steadiness,
    }


def make(model: UniVid, indices: range) -> np.ndarray:
    """Clips `indices` from text alone by the model's profile, uint8 `[b t h w 3]`, each of its own noise."""
    scenes = others()
    prompts = [scenes[index % len(scenes)].caption for index in indices]
    with torch.inference_mode():
        video = generate(model, prompts, seed=SEED + indices[0])
    return np.stack([to_uint8(one) for one in video.split(1)])


def figures(model: UniVid, count: int) -> tuple[dict[str, dict[str, float]], list[dict]]:
    """Every mark over so many clips, with 95 % intervals; and of each clip the prompt, and what was seen."""
    scenes, rows, seen = others(), [], []
    with tqdm(total=count, unit="clip", mininterval=5) as bar:
        for start in range(0, count, BATCH):
            indices = range(start, min(start + BATCH, count))
            for index, video in zip(indices, make(model, indices), strict=True):
                scene, reading = scenes[index % len(scenes)], read(video)
                rows.append(marks(scene, reading))
                seen.append({"prompt": scene.caption, "travel": travel(reading).round(3).tolist()} | rows[-1])
            bar.update(len(indices))
    kinds = {"steadiness": table.mean}
    return {name: kinds.get(name, table.share)([row[name] for row in rows]) for name in COLUMNS}, seen


def evaluate(made: Mapping[str, Path], count: int, out: Path, device: str = "cpu") -> dict:
    """Score the model as it is and as the runs of `made` leave it; written to `out` as JSON.

    Raises:
        ValueError: no clips.
    """
    if count < 1:
        raise ValueError(f"expected at least one clip, got {count}; ask for more.")
    result = {"clips": count, "caption": CLIP.caption, "rows": {}, "seen": {}}
    for name, title in ROWS.items():
        model = load(made[name] if name == FULL else BUILT_IN, device=device, dtype=torch.float32)
        if name == LORA:
            apply_lora(model, made[name])
        result["rows"][title], result["seen"][title] = figures(model, count)
    result["checks"] = [
        table.check(ROWS[name], result["rows"][ROWS[name]]["customised"]["value"], ">=", goal)
        for name, goal in GOALS.items()
    ]
    write_json(out, result)
    return result


def report(result: Mapping) -> str:
    """The figures as a table, in percent with 95 % intervals."""
    rows = table.grid(f"{result['clips']} clips", COLUMNS, result["rows"])
    return f"{table.goals(result['checks'])}\n\n{rows}"

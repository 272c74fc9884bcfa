"""The built-in model in few steps: a LoRA by consistency distillation, scored beside the model itself.

It is trained as one of full size is (stage `distill`), on clips of the built-in world as users have them.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from training import distributed
from training.config import LogsConfig, OptimConfig, Recipe
from training.data.config import DataConfig, SourceConfig
from training.folder import write_json
from training.lora import LoraConfig
from training.options import DenoiseOptions, DistillOptions, NoiseOptions
from training.prepare import PrepareConfig, WorkConfig, prepare
from training.runs import run
from training.saved import FINAL
from training.stages.networks import few_steps
from univid import checkpoints
from univid.checkpoints import apply_lora
from univid.checkpoints.native import BUILT_IN

from . import clips, table
from .evaluate import ROWS, T2V, conditions, read_rows, score
from .machine import Machine

NAME = "tiny_turbo"  # the run
SEED, CLIPS, FRAMES, SIZE, FPS = 9, 4000, 12, 64, 8
RANK = 7  # of all layers: 1.8 MB in float16
FULL, EQUAL = "the model, 10 steps", "the model, 2 steps, which cost as much as 4 of the LoRA"
UNTAUGHT = "4 steps of lcm without guidance and without the LoRA"
TURBO = {steps: f"LoRA, {steps} steps" for steps in (4, 2, 1)}
SCORED = (T2V, "(T+I)2V")
COLUMNS = ("text_all", "both", "text_motion", "near", "steadiness", "change")
POINTS = 0.05  # of which 4 steps may be worse than the model in any figure of these
COMPARED = ("text_all", "both", "text_motion", "steadiness")


def recipe(root: Path, gpu: bool = False) -> Recipe:
    return Recipe(
        name=NAME,
        seed=21,
        steps=2000,
        batch={"video": 128 if gpu else 8},
        optim=OptimConfig(
            lr=2e-3 if gpu else 1e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup_steps=50, ema_decay=0.995
        ),
        options=DenoiseOptions(
            stage="distill",
            data=DataConfig(
                clips=SourceConfig((str(_prepared(root) / "clips"),)), buckets=((SIZE, SIZE),),
                min_frames=FRAMES, max_frames=FRAMES, fps=FPS, workers=1,
            ),
            base=BUILT_IN,
            lora=LoraConfig(rank=RANK, alpha=RANK),
            noise=NoiseOptions(distill=DistillOptions()),
        ),
        dtype="bfloat16" if gpu else "float32",
        logs=LogsConfig(every=10, save_every=250, validate_every=250),
    )  # fmt: skip


def draw(root: Path, count: int = CLIPS) -> None:
    """Clips as a run reads them; what is there stays."""
    folder = root / f"{NAME}_data" / "clips"
    clips.draw(folder, count, seed=SEED, frames=FRAMES, size=SIZE, fps=FPS)
    prepare(
        PrepareConfig(
            base=BUILT_IN, out=_prepared(root), clips=SourceConfig((str(folder),)), buckets=((SIZE, SIZE),),
            frames=FRAMES, min_frames=FRAMES, fps=FPS, work=WorkConfig(folder_shard=500),
        )
    )  # fmt: skip
    distributed.barrier()


def train_missing(root: Path, device) -> Path:
    """The LoRA, trained where it is missing."""
    asked, made = recipe(root, gpu=device.type != "cpu"), root / NAME / f"{NAME}.safetensors"
    if not (root / NAME / FINAL).exists() or not made.exists():
        draw(root)
        run(asked, root, device)
    return made


def write_models(lora: Path, folder: Path) -> dict[str, Path]:
    """The models to be scored, each a file with a profile of its own, by row."""
    model = checkpoints.load(BUILT_IN)
    profile, made = model.profile, {}
    asked = {FULL: profile, EQUAL: dataclasses.replace(profile, steps=2), UNTAUGHT: few_steps(profile, 4)}
    for taught in (False, True):
        if taught:
            apply_lora(model, lora)
            asked = {title: few_steps(profile, steps) for steps, title in TURBO.items()}
        for title, model.profile in asked.items():
            made[title] = folder / f"{len(made)}.safetensors"
            checkpoints.save(made[title], model, beside_built_in=True)
    return made


def evaluate(lora: Path, count: int, root: Path, out: Path, machine: Machine) -> dict:
    """Score the LoRA in few steps beside the model; written to `out` as JSON.

    Raises:
        ValueError: no clips.
    """
    if count < 1:
        raise ValueError(f"expected at least one clip, got {count}; ask for more.")
    models, profile = write_models(lora, root / NAME), checkpoints.load(BUILT_IN, parts=()).profile
    tasks = [(str(path), ROWS[name]) for path in models.values() for name in SCORED]
    found = iter(read_rows(tasks, count, machine))
    rows = {
        title: {name: score(conditions(ROWS[name], range(count), profile), next(found)) for name in SCORED}
        for title in models
    }
    result = {"clips": count, "rows": rows, "checks": _checks(rows)}
    write_json(out, result)
    return result


def _checks(rows: Mapping[str, Mapping]) -> list[dict]:
    full, few = rows[FULL], rows[TURBO[4]]
    return [
        table.check(f"{name}: {table.COLUMNS[figure]}", few[name][figure]["value"], ">=", bound - POINTS)
        for name in SCORED
        for figure in COMPARED
        if figure in full[name]
        for bound in [full[name][figure]["value"]]
    ]


def report(result: Mapping) -> str:
    """The figures as a table for each way to be asked, in percent with 95 % intervals."""
    grids = [
        table.grid(
            f"{name}, {result['clips']} clips", COLUMNS, {t: row[name] for t, row in result["rows"].items()}
        )
        for name in SCORED
    ]
    return "\n\n".join([table.goals(result["checks"]), *grids])


def _prepared(root: Path) -> Path:
    return root / f"{NAME}_data" / "prepared"

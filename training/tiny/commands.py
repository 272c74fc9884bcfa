"""What `python -m training` does with the built-in model: the one door by which training comes in here.

What a command needs is imported when it runs.
"""

import argparse
import shutil
from pathlib import Path

import torch

from training import distributed
from training.config import Recipe
from training.loop import train
from training.saved import FINAL
from univid.checkpoints import built_in_path
from univid.dtypes import DTYPES
from univid.files.output import new_file

from .recipes import EXPERTS, RECIPES, TINY, ablations

BUILT_IN = built_in_path()


def add(commands: argparse._SubParsersAction) -> None:
    """Give the command line the commands of COMMANDS."""
    make = commands.add_parser(
        "tiny", help="make the built-in model: autoencoder, towers, then the U-Net's three stages"
    )
    make.add_argument(
        "--adopt", type=Path, metavar="CHECKPOINT", help="start the last runs from this one's weights"
    )
    commands.add_parser("ablation", help="train the four networks of the ablation")
    commands.add_parser("experts", help="train the built-in model's experts, from the one that ships")

    score = commands.add_parser("evaluate", help="score a checkpoint on the procedural set")
    score.add_argument("--checkpoint", type=Path, default=BUILT_IN, help="default: the built-in one")
    score.add_argument("--clips", type=int, default=200, help="clips a row (default: %(default)s)")
    score.add_argument("--out", type=Path, help="JSON of all figures (default: evaluation.json in --root)")
    score.add_argument("--readme", type=Path, help="README to write the table into")
    score.add_argument(
        "--workers", type=int, default=1, help="single-threaded processes (default: %(default)s)"
    )
    score.add_argument("--dtype", default="fp32", choices=DTYPES)

    motion = commands.add_parser(
        "motion", help="teach the built-in model the motion of one clip, and score it on other objects"
    )
    motion.add_argument("--clips", type=int, default=50, help="clips a row (default: %(default)s)")
    motion.add_argument("--out", type=Path, help="a copy of the LoRA (default: in its run's folder alone)")

    gallery = commands.add_parser("gallery", help="draw samples.png and steering.png")
    gallery.add_argument("--checkpoint", type=Path, default=BUILT_IN, help="default: the built-in one")
    gallery.add_argument("--out", type=Path, required=True, help="folder")


def recipe(name: str, device: torch.device | str) -> Recipe:
    """The recipe of that name, with the budget for a device."""
    return RECIPES[name](gpu=torch.device(device).type != "cpu")


def run(recipe: Recipe, root: Path, device) -> None:
    """Train a recipe in its own folder below `root`."""
    from .tasks import build

    train(recipe, build(recipe, root, device), root / recipe.name, device=device)
    if recipe.name == "tiny_vae" and distributed.rank() == 0:
        check_reconstructions(root / recipe.name)


def run_missing(recipe: Recipe, root: Path, device) -> None:
    """Train a recipe unless that is done."""
    if not (root / recipe.name / FINAL).exists():
        run(recipe, root, device)


def check_reconstructions(folder: Path) -> None:
    """The U-Net can only be as good as the autoencoder: refuse one whose reconstructions lose the truth."""
    from .vae import frozen_vae, reconstruction_figures

    figures = reconstruction_figures(frozen_vae(folder), clips=400)
    print("reconstructions:", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    if figures["all"] < 0.99:
        raise ValueError(
            f"99 % of the reconstructions must keep the truth, got {figures['all']:.1%}; train longer."
        )


def tiny(options: argparse.Namespace, device) -> None:
    names = TINY
    if options.adopt is not None:
        from .adopt import ADOPTED, adopt

        if distributed.rank() == 0:
            adopt(options.adopt, options.root)
        distributed.barrier()
        names = TINY[TINY.index(ADOPTED) + 1 :]
    for name in names:
        run_missing(recipe(name, device), options.root, device)


def experts(options: argparse.Namespace, device) -> None:
    from training.runs import run as run_on_files

    from . import enlarging
    from .adopt import adopt

    known = recipe("tiny_known", device)
    if distributed.rank() == 0:
        adopt(BUILT_IN, options.root, (known.options.start,))
    distributed.barrier()
    run_missing(known, options.root, device)
    gpu = device.type != "cpu"
    run_missing(enlarging.decoder(gpu), options.root, device)
    if not (options.root / enlarging.NAME / FINAL).exists():
        if distributed.rank() == 0:
            enlarging.write_base(options.root)
        distributed.barrier()
        enlarging.draw(options.root)
        run_on_files(enlarging.recipe(options.root, gpu), options.root, device)


def ablation(options: argparse.Namespace, device) -> None:
    from .adopt import adopt

    if distributed.rank() == 0:
        adopt(BUILT_IN, options.root, TINY[-1:])
    distributed.barrier()
    for variant in ablations(gpu=device.type != "cpu").values():
        run_missing(variant, options.root, device)


def export(root: Path, run: str, out: Path | None) -> None:
    """Write a run and those before it as one file: as the one that ships, where nothing else is said."""
    from .export import export as write

    out = out or (built_in_path("built-in-known") if run in EXPERTS else BUILT_IN)
    write(root, run, out)
    print(out)


def evaluate(options: argparse.Namespace, device) -> None:
    """Score the checkpoint, and the ablation's networks where they are trained; an expert by its own rows."""
    from univid.checkpoints import load
    from univid.roles import role

    from . import known_scores, upscale_scores
    from .machine import Machine

    machine = Machine(workers=options.workers, device=options.device, dtype=options.dtype)
    kind = role(load(options.checkpoint, parts=()).profile)
    if kind in ("known", "upscale"):
        scores = known_scores if kind == "known" else upscale_scores
        out = options.out or options.root / f"{kind}.json"
        print(scores.report(scores.evaluate(str(options.checkpoint), options.clips, machine, out)))
        return
    from .evaluate import evaluate as score
    from .export import export as write

    variants = {}
    for variant, recipe in ablations().items():
        if (options.root / recipe.name / FINAL).exists():
            variants[variant] = options.root / f"{recipe.name}.safetensors"
            write(options.root, recipe.name, variants[variant])
    score(
        options.checkpoint,
        out=options.out or options.root / "evaluation.json",
        readme=options.readme,
        clips=options.clips,
        ablation=variants,
        machine=machine,
    )


def motion(options: argparse.Namespace, device) -> None:
    """Train what is missing, and score the model before and after; all figures are in motion.json."""
    from . import motion as customised

    made = customised.train_missing(options.root, device)
    if distributed.rank() > 0:
        return
    result = customised.evaluate(made, options.clips, options.root / "motion.json", options.device)
    print(customised.report(result))
    if options.out is not None:
        with new_file(options.out) as temporary:
            shutil.copy(made[customised.LORA], temporary)
        print(options.out)


def gallery(options: argparse.Namespace, device) -> None:
    from .gallery import write_gallery

    print(*write_gallery(options.checkpoint, options.out), sep="\n")


COMMANDS = {command.__name__: command for command in (tiny, experts, ablation, evaluate, motion, gallery)}

"""What `python -m training` does with the built-in model: the one door by which training comes in here.

What a command needs is imported when it runs.
"""

import argparse
from pathlib import Path

import torch

from training import distributed
from training.config import Recipe
from training.loop import train
from training.saved import FINAL
from univid.checkpoints import built_in_path
from univid.dtypes import DTYPES

from .recipes import RECIPES, TINY, ablations

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

    score = commands.add_parser("evaluate", help="score a checkpoint on the procedural set")
    score.add_argument("--checkpoint", type=Path, default=BUILT_IN, help="default: the built-in one")
    score.add_argument("--clips", type=int, default=200, help="clips a row (default: %(default)s)")
    score.add_argument("--out", type=Path, help="JSON of all figures (default: evaluation.json in --root)")
    score.add_argument("--readme", type=Path, help="README to write the table into")
    score.add_argument(
        "--workers", type=int, default=1, help="single-threaded processes (default: %(default)s)"
    )
    score.add_argument("--dtype", default="fp32", choices=DTYPES)

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


def ablation(options: argparse.Namespace, device) -> None:
    for variant in ablations(gpu=device.type != "cpu").values():
        run_missing(variant, options.root, device)


def export(root: Path, run: str, out: Path | None) -> None:
    """Write a run and those before it as one file: the built-in checkpoint where nothing else is said."""
    from .export import export as write

    write(root, run, out or BUILT_IN)
    print(out or BUILT_IN)


def evaluate(options: argparse.Namespace, device) -> None:
    """Score the checkpoint, and the ablation's networks where they are trained."""
    from .evaluate import Machine
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
        machine=Machine(workers=options.workers, device=options.device, dtype=options.dtype),
    )


def gallery(options: argparse.Namespace, device) -> None:
    from .gallery import write_gallery

    print(*write_gallery(options.checkpoint, options.out), sep="\n")


COMMANDS = {command.__name__: command for command in (tiny, ablation, evaluate, gallery)}

"""`python -m training`: train a recipe, make the built-in checkpoint, score a checkpoint.

With several processes: `torchrun --nproc-per-node 2 -m training train RECIPE`.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from univid.checkpoints import built_in_path

from . import distributed
from .loop import train
from .recipes import RECIPES, TINY, ablations
from .stages import TASKS

DEFAULT_ROOT = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "univid"
BUILT_IN = built_in_path()


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m training", description=__doc__.splitlines()[0])
    root.add_argument(
        "--root", type=Path, default=DEFAULT_ROOT, help="folder of all runs (default: %(default)s)"
    )
    commands = root.add_subparsers(dest="command", required=True)

    one = commands.add_parser("train", help="run one recipe, or continue it where it was cut")
    one.add_argument("recipe", choices=RECIPES)
    one.add_argument("--steps", type=int, help="instead of the recipe's own number")
    commands.add_parser(
        "tiny", help="make the built-in model: autoencoder, towers, then the U-Net's three stages"
    )
    commands.add_parser("ablation", help="train the four networks of the ablation")

    out = commands.add_parser(
        "export", help="write a finished U-Net run, its autoencoder and towers as one file"
    )
    out.add_argument(
        "--run", default=TINY[-1], choices=RECIPES, help="the U-Net's run (default: %(default)s)"
    )
    out.add_argument("--out", type=Path, default=BUILT_IN, help="default: the built-in checkpoint")

    score = commands.add_parser("evaluate", help="score a checkpoint on the procedural set")
    score.add_argument("--checkpoint", type=Path, default=BUILT_IN, help="default: the built-in one")
    score.add_argument("--clips", type=int, default=200, help="clips a row (default: %(default)s)")
    score.add_argument("--out", type=Path, help="JSON of all figures (default: evaluation.json in --root)")
    score.add_argument("--readme", type=Path, help="README to write the table into")
    score.add_argument(
        "--workers", type=int, default=1, help="single-threaded processes (default: %(default)s)"
    )
    score.add_argument("--device", default="cpu")
    score.add_argument("--dtype", default="fp32", choices=["fp32", "bf16", "fp16"])

    gallery = commands.add_parser("gallery", help="draw samples.png and steering.png")
    gallery.add_argument("--checkpoint", type=Path, default=BUILT_IN, help="default: the built-in one")
    gallery.add_argument("--out", type=Path, required=True, help="folder")
    return root


def run(name: str, root: Path, steps: int | None = None) -> None:
    """Train a recipe in its own folder below `root`, unless that is already done."""
    if steps is None and (root / name / "final.pt").exists():
        return
    recipe = RECIPES[name]()
    if steps is not None:
        recipe = dataclasses.replace(recipe, steps=steps)
    train(recipe, TASKS[recipe.task](recipe, root), root / name)
    if name == "tiny_vae" and distributed.rank() == 0:
        check_reconstructions(root / name)


def check_reconstructions(folder: Path) -> None:
    """The U-Net can only be as good as the autoencoder: refuse one whose reconstructions lose the truth."""
    from .stages.vae import frozen_vae, reconstruction_figures

    figures = reconstruction_figures(frozen_vae(folder), clips=400)
    print("reconstructions:", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    if figures["all"] < 0.99:
        raise ValueError(
            f"99 % of the reconstructions must keep the truth, got {figures['all']:.1%}; train longer."
        )


def evaluate(options: argparse.Namespace) -> None:
    """Score the checkpoint, and the ablation's networks where they are trained."""
    from .export import export
    from .metrics.evaluate import Machine
    from .metrics.evaluate import evaluate as score

    variants = {}
    for variant, recipe in ablations().items():
        if (options.root / recipe.name / "final.pt").exists():
            variants[variant] = options.root / f"{recipe.name}.safetensors"
            export(options.root, recipe.name, variants[variant])
    score(
        options.checkpoint,
        out=options.out or options.root / "evaluation.json",
        readme=options.readme,
        clips=options.clips,
        ablation=variants,
        machine=Machine(workers=options.workers, device=options.device, dtype=options.dtype),
    )


def main(argv: list[str] | None = None) -> None:
    options = parser().parse_args(argv)
    with distributed.process_group():
        if options.command == "train":
            run(options.recipe, options.root, options.steps)
        elif options.command == "tiny":
            for name in TINY:
                run(name, options.root)
        elif options.command == "ablation":
            for recipe in ablations().values():
                run(recipe.name, options.root)
        elif options.command == "export":
            from .export import export

            export(options.root, options.run, options.out)
            print(options.out)
        elif options.command == "evaluate":
            evaluate(options)
        else:
            from .metrics.gallery import write_gallery

            print(*write_gallery(options.checkpoint, options.out), sep="\n")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

"""`python -m training`: train a recipe, make the built-in checkpoint, score a checkpoint.

With several processes: `torchrun --nproc-per-node 2 -m training train RECIPE`.
"""

import argparse
import os
import sys
from pathlib import Path

from . import distributed
from .loop import train
from .recipes import RECIPES, TINY
from .stages import TASKS

DEFAULT_ROOT = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "univid"
BUILT_IN = Path(__file__).parents[1] / "univid" / "assets" / "univid-tiny.safetensors"


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
    out = commands.add_parser("export", help="write the newest finished runs as one native checkpoint")
    out.add_argument(
        "--run", default=TINY[-1], choices=RECIPES, help="the U-Net's run (default: %(default)s)"
    )
    out.add_argument("--out", type=Path, default=BUILT_IN, help="default: the built-in checkpoint")
    return root


def run(name: str, root: Path, steps: int | None = None) -> None:
    import dataclasses

    recipe = RECIPES[name]()
    if steps is not None:
        recipe = dataclasses.replace(recipe, steps=steps)
    train(recipe, TASKS[recipe.task](recipe, root), root / name)
    if name == "tiny_vae":
        check_reconstructions(root / name)


def check_reconstructions(folder: Path) -> None:
    """The U-Net can only be as good as the autoencoder: refuse one whose reconstructions lose the truth."""
    from .stages.vae import frozen_vae, reconstruction_figures

    figures = reconstruction_figures(frozen_vae(folder), clips=400)
    print("reconstructions:", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    if figures["all"] < 0.99:
        raise ValueError(
            f"the scorer must agree on 99 % of the reconstructions, got {figures['all']:.1%}; train longer."
        )


def main(argv: list[str] | None = None) -> None:
    options = parser().parse_args(argv)
    with distributed.process_group():
        if options.command == "train":
            run(options.recipe, options.root, options.steps)
        elif options.command == "tiny":
            for name in TINY:
                if not (options.root / name / "final.pt").exists():
                    run(name, options.root)
        elif options.command == "export":
            from .export import export

            export(options.root, options.run, options.out)
            print(options.out)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

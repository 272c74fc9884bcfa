"""`python -m training`: train, finetune, plan and prepare; make the built-in checkpoint, score a checkpoint.

With several processes: `torchrun --nproc-per-node 2 -m training train RECIPE`.
"""

import argparse
import contextlib
import shutil
import sys
from pathlib import Path

from . import cli, distributed
from .config import Recipe
from .loop import train
from .options import DenoiseOptions
from .recipes import RECIPES, TINY, ablations
from .stages import TASKS
from .stages.denoise import DenoiseTask
from .state import atomic, load, newest, read_state


def run(recipe: Recipe, root: Path, device) -> None:
    """Train a recipe in its own folder below `root`; of real data also write what ComfyUI loads."""
    task = TASKS[recipe.task](recipe, root)
    with contextlib.ExitStack() as stack:
        if isinstance(task, DenoiseTask):
            stack.callback(task.feed.close)
        train(recipe, task, root / recipe.name, device=device)
    if distributed.rank() == 0:
        if recipe.name == "tiny_vae":
            check_reconstructions(root / recipe.name)
        if isinstance(recipe.options, DenoiseOptions):
            result(recipe, root, root / recipe.name / f"{recipe.name}.safetensors")


def run_missing(recipe: Recipe, root: Path, device) -> None:
    """Train a recipe unless that is done."""
    if not (root / recipe.name / "final.pt").exists():
        run(recipe, root, device)


def result(recipe: Recipe, root: Path, out: Path) -> None:
    """Write what the run of a recipe on real data has made: a checkpoint, or a LoRA."""
    from .stages.networks import write_result

    folder = root / recipe.name
    if (folder / "final.pt").exists():
        saved = load(folder / "final.pt")
    elif state := newest(folder):  # of a run that is not at its end
        saved = read_state(state)
    else:
        raise ValueError(f"expected a state in {folder}, got none yet; let the run reach its first one.")
    write_result(recipe, root, saved["ema"], int(saved["step"]), out)
    print(out)


def check_reconstructions(folder: Path) -> None:
    """The U-Net can only be as good as the autoencoder: refuse one whose reconstructions lose the truth."""
    from .stages.vae import frozen_vae, reconstruction_figures

    figures = reconstruction_figures(frozen_vae(folder), clips=400)
    print("reconstructions:", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    if figures["all"] < 0.99:
        raise ValueError(
            f"99 % of the reconstructions must keep the truth, got {figures['all']:.1%}; train longer."
        )


def finetune(recipe: Recipe, options: argparse.Namespace, device) -> None:
    run(recipe, options.root, device)
    if options.out and distributed.rank() == 0:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic(options.out) as temporary:
            shutil.copy(options.root / recipe.name / f"{recipe.name}.safetensors", temporary)
        print(options.out)


def plan(recipe: Recipe, options: argparse.Namespace) -> None:
    from . import plan as planning
    from .plan.recipe import workload_of

    cluster = planning.Cluster(
        options.gpu, options.gpus, options.mfu, per_node=options.per_node, network=options.network
    )
    print(planning.report(planning.plan(workload_of(recipe, options.prepared), recipe.engine, cluster)))


def prepare(options: argparse.Namespace, settings: list[str]) -> None:
    if options.verify:
        from .data.output import verify

        if problems := verify(options.out):
            raise ValueError("\n".join(problems))
        print(f"{options.out}: all shards are what was written")
        return
    from . import prepare as preparing

    print(preparing.prepare(cli.prepare_config(options, settings)))


def export(options: argparse.Namespace) -> None:
    from .export import export as export_tiny
    from .export import saved_recipe

    recipe = saved_recipe(options.root / options.run)
    if recipe is None:
        export_tiny(options.root, options.run, options.out or cli.BUILT_IN)
        print(options.out or cli.BUILT_IN)
    else:
        result(recipe, options.root, options.out or options.root / options.run / f"{options.run}.safetensors")


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
    options, settings = cli.parse(argv)
    if options.command == "plan":
        plan(cli.recipe_of(options, settings), options)
        return
    with distributed.process_group(options.device) as device:
        if options.command == "train":
            run(cli.recipe_of(options, settings), options.root, device)
        elif options.command == "finetune":
            finetune(cli.recipe_of(options, settings), options, device)
        elif options.command == "prepare":
            prepare(options, settings)
        elif options.command == "tiny":
            for name in TINY:
                run_missing(RECIPES[name](), options.root, device)
        elif options.command == "ablation":
            for recipe in ablations().values():
                run_missing(recipe, options.root, device)
        elif options.command == "export":
            export(options)
        elif options.command == "evaluate":
            evaluate(options)
        else:
            from .metrics.gallery import write_gallery

            print(*write_gallery(options.checkpoint, options.out), sep="\n")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        sys.exit(f"error: {error}")

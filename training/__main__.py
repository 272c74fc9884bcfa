"""`python -m training`: train, finetune, plan and prepare; make the built-in checkpoint, score a checkpoint.

With several processes: `torchrun --nproc-per-node 2 -m training train RECIPE`.
"""

import argparse
import contextlib
import shutil
import sys
from pathlib import Path

from univid.files.output import new_file
from univid.messages import sentence, show_safely
from univid.signals import stoppable

from . import cli, distributed
from .config import Recipe
from .loop import train
from .options import DenoiseOptions
from .recipes import RECIPES, TINY, ablations
from .saved import FINAL, newest_weights
from .stages import build
from .stages.denoise import DenoiseTask


def run(recipe: Recipe, root: Path, device) -> None:
    """Train a recipe in its own folder below `root`; of real data also write what ComfyUI loads."""
    task = build(recipe, root)
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
    if not (root / recipe.name / FINAL).exists():
        run(recipe, root, device)


def result(recipe: Recipe, root: Path, out: Path) -> None:
    """Write what the run of a recipe on real data has made: a checkpoint, or a LoRA."""
    from .stages.networks import write_result

    saved = newest_weights(root / recipe.name)
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
        with new_file(options.out) as temporary:
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
            print(*map(sentence, problems), sep="\n")
            raise ValueError(f"{len(problems)} shards are not what was written, the first: {problems[0]}")
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
        if (options.root / recipe.name / FINAL).exists():
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
    """Run one command.

    Raises:
        ValueError, OSError, FloatingPointError, RuntimeError: what is wrong, in one sentence.
        SystemExit: words that are no options; a run that was told to stop, after saving.
    """
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


def program() -> int:
    """`main` as a program; the exit status: 0 done, 2 an error (one line on stderr), 130 and more stopped."""
    show_safely("%(levelname)s: %(message)s")
    try:
        with stoppable():  # the loop saves; all else removes what is unfinished
            main()
    except KeyboardInterrupt as stop:
        print("stopped; run it again to go on.", file=sys.stderr)
        return getattr(stop, "status", 130)
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        print(sentence(f"error: {_reason(error)}"), file=sys.stderr)
        return 2
    return 0


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; look at that file or folder."
    return str(error)


if __name__ == "__main__":
    sys.exit(program())

"""`python -m training`: train, finetune, plan and prepare; make the built-in checkpoint, score a checkpoint.

With several processes: `torchrun --nproc-per-node 2 -m training train RECIPE`.
"""

import argparse
import shutil
import sys

from univid.files.output import new_file
from univid.messages import sentence, show_safely
from univid.signals import stoppable

from . import cli, distributed
from .config import Recipe
from .export import saved_recipe
from .metrics import commands as metrics
from .options import DenoiseOptions
from .runs import result, run
from .tiny import commands as tiny


def finetune(recipe: Recipe, options: argparse.Namespace, device) -> None:
    made = run(recipe, options.root, device)
    if distributed.rank() == 0:
        print(made)
        if options.out:
            with new_file(options.out) as temporary:
                shutil.copy(made, temporary)
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
    recipe = saved_recipe(options.root / options.run)
    if recipe is None:
        tiny.export(options.root, options.run, options.out)
    else:
        out = options.out or options.root / options.run / f"{options.run}.safetensors"
        result(recipe, options.root, out, beside_built_in=options.beside_built_in)
        print(out)


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
            recipe = cli.recipe_of(options, settings)
            if isinstance(recipe.options, DenoiseOptions):
                made = run(recipe, options.root, device)
                if distributed.rank() == 0:
                    print(made)
            else:
                tiny.run(recipe, options.root, device)
        elif options.command == "finetune":
            finetune(cli.recipe_of(options, settings), options, device)
        elif options.command == "prepare":
            prepare(options, settings)
        elif options.command == "export":
            export(options)
        elif options.command in metrics.COMMANDS:
            if options.command not in metrics.SHARED and distributed.processes() > 1:
                raise ValueError(
                    f"{options.command} is the work of one process, got {distributed.processes()}; start it "
                    "without torchrun."
                )
            options.device = str(device)  # of several processes each has its own
            said = metrics.COMMANDS[options.command](options)
            if distributed.rank() == 0:
                print(said)
        else:
            tiny.COMMANDS[options.command](options, device)


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

"""What `python -m training` is asked on its command line; __main__.py does it."""

import argparse
from pathlib import Path

import tyro

from univid.files.hashes import cache_folder

from . import recipes_cascade, recipes_univid
from .config import Recipe
from .data.config import DEGRADATIONS, DegradationConfig, SourceConfig
from .lora import PARTS, LoraConfig
from .metrics import commands as metrics
from .plan import GPUS, Cluster
from .prepare import PrepareConfig, WorkConfig
from .settable import renamed, settable, settled
from .tiny import commands as tiny

DEFAULT_ROOT = cache_folder()
FULL_SIZE = recipes_univid.RECIPES | recipes_cascade.RECIPES
RECIPES = FULL_SIZE | tiny.RECIPES
SETTINGS = "and any setting of the recipe, as --optim.lr 1e-5; all of them: RECIPE --settings"


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="python -m training",
        description="Train a recipe or on own clips, plan, prepare data; make and score the built-in model.",
        epilog="With several processes: torchrun --nproc-per-node 8 -m training train RECIPE.",
    )
    root.add_argument(
        "--root", type=Path, default=DEFAULT_ROOT, help="folder of all runs (default: %(default)s)"
    )
    root.add_argument(
        "--device",
        default="cpu",
        help="as torch names it (default: %(default)s)",
    )
    commands = root.add_subparsers(dest="command", required=True)

    one = commands.add_parser(
        "train", help="run one recipe, or continue it where it was cut", epilog=SETTINGS, allow_abbrev=False
    )
    one.add_argument("recipe", choices=RECIPES, metavar="RECIPE", help=", ".join(RECIPES))

    own = commands.add_parser(
        "finetune",
        help="teach a checkpoint one's own clips: a LoRA, or the whole network",
        epilog=SETTINGS,
        allow_abbrev=False,
    )
    own.add_argument("--base", default="built-in", help="checkpoint to start from (default: %(default)s)")
    own.add_argument("--data", required=True, help="folder of clips, each with its caption as NAME.txt")
    own.add_argument("--name", default="finetune", help="of the run's folder (default: %(default)s)")
    own.add_argument("--steps", type=int, default=1000)
    own.add_argument("--full", action="store_true", help="train every weight, not a LoRA")
    own.add_argument("--rank", type=int, default=LoraConfig.rank, help="of the LoRA (default: %(default)s)")
    own.add_argument("--alpha", type=float, help="default: the rank")
    own.add_argument(
        "--parts", choices=PARTS, default=LoraConfig.parts, help="what it adapts (default: %(default)s)"
    )
    own.add_argument("--out", type=Path, help="the result (default: NAME.safetensors in the run's folder)")

    ahead = commands.add_parser(
        "plan",
        help="memory, time and storage that a recipe will need",
        epilog=SETTINGS,
        allow_abbrev=False,
    )
    planned = [*FULL_SIZE, "finetune"]
    ahead.add_argument("recipe", choices=planned, metavar="RECIPE", help=", ".join(planned))
    ahead.add_argument("--gpus", type=int, default=Cluster.gpus, help="default: %(default)s")
    ahead.add_argument("--gpu", choices=GPUS, default=Cluster.gpu, help="default: %(default)s")
    ahead.add_argument(
        "--mfu", type=float, default=Cluster.mfu, help="assumed share of its peak (default: %(default)s)"
    )
    ahead.add_argument("--prepared", action="store_true", help="latents and tokens are read, not made")
    ahead.add_argument("--per-node", type=int, default=Cluster.per_node, help="GPUs (default: %(default)s)")
    ahead.add_argument(
        "--network",
        type=float,
        default=Cluster.network,
        help="bytes a second between nodes, for each GPU, one way (default: %(default).0f)",
    )

    ready = commands.add_parser(
        "prepare",
        help="turn pictures and clips into shards of latents and tokens",
        epilog="and any setting of it, as --fps 12 or --clips.at-least motion 2; all of them: --settings",
        allow_abbrev=False,
    )
    ready.add_argument("--base", default="built-in", help="checkpoint that encodes (default: %(default)s)")
    ready.add_argument("--out", type=Path, required=True, help="folder")
    ready.add_argument("--images", nargs="+", metavar="PATH", help="folders, or tar shards: a/{000..099}.tar")
    ready.add_argument("--clips", nargs="+", metavar="PATH", help="likewise")
    ready.add_argument(
        "--degradations", choices=DEGRADATIONS, help="beside each sample a poor copy, for super-resolution"
    )
    ready.add_argument("--verify", action="store_true", help="compare what is there with its checksums")

    out = commands.add_parser("export", help="write a run's network and all it needs as one file")
    out.add_argument("--run", default=tiny.TINY[-1], help="its folder's name (default: %(default)s)")
    out.add_argument("--out", type=Path, help="default: the built-in checkpoint; of others, in their folder")
    out.add_argument(
        "--beside-built-in", action="store_true", help="leave out what the built-in checkpoint has as well"
    )

    metrics.add(commands)
    tiny.add(commands)
    return root


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the words that are settings of a recipe or of `prepare`."""
    root = parser()
    options, settings = root.parse_known_args(argv)
    if settings and options.command not in ("train", "finetune", "plan", "prepare"):
        root.error(f"unrecognized arguments: {' '.join(settings)}")
    return options, ["--help" if word == "--settings" else word for word in settings]


def recipe_of(options: argparse.Namespace, settings: list[str]) -> Recipe:
    """The recipe of `train`, `finetune` or `plan` with its settings changed, each checked by its type."""
    if options.command == "finetune":
        alpha = options.rank if options.alpha is None else options.alpha
        recipe = recipes_univid.finetune(
            options.base,
            options.data,
            name=options.name,
            full=options.full,
            lora=None if options.full else LoraConfig(options.rank, float(alpha), options.parts),
            steps=options.steps,
        )
    elif options.recipe == "finetune":
        recipe = recipes_univid.finetune("paper")
    elif options.recipe in tiny.RECIPES:
        recipe = tiny.recipe(options.recipe, options.device)
    else:
        recipe = RECIPES[options.recipe]()
    prog = f"python -m training {options.command} {recipe.name}"
    settings = renamed(settings)
    default = settable(recipe, settings)
    chosen = tyro.cli(Recipe, default=default, args=settings, prog=prog, config=(tyro.conf.AvoidSubcommands,))
    return settled(chosen, recipe)


def prepare_config(options: argparse.Namespace, settings: list[str]) -> PrepareConfig:
    """What `prepare` is to do."""
    images, clips = (
        SourceConfig(tuple(paths)) if paths else None for paths in (options.images, options.clips)
    )
    config = PrepareConfig(
        base=options.base,
        out=options.out,
        images=images,
        clips=clips,
        degradations=DegradationConfig(options.degradations) if options.degradations else None,
        work=WorkConfig(device=options.device),
    )
    return tyro.cli(
        PrepareConfig,
        default=config,
        args=settings,
        prog="python -m training prepare",
        config=(tyro.conf.AvoidSubcommands,),
    )

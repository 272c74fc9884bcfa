"""The command line's arguments. Imports no torch, so that --help answers at once."""

import argparse

from . import cli_receipt, cli_stages
from .cli_groups import conditions, guidance, machine, sampling, size
from .cli_steer import steering
from .dtypes import DTYPES

ORIGINS = (
    "modelscope, zeroscope, zeroscope-xl, show1-sr2; "
    "dynamicrafter-512, dynamicrafter-512-interp, dynamicrafter-1024"
)

EPILOG = """examples:
  python -m univid generate --prompt "a red circle moves left on a black background" --out clip.mp4
  python -m univid generate --image photo.png --out moving.gif --sheet frames.png
  python -m univid generate --image photo.png --prompt "it grows" --text-weight 0.7 --out both.webm
  python -m univid sweep --image photo.png --prompt "a red circle moves left" --out grid.png
  python -m univid receipt clip.mp4
"""


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument as one sentence through ValueError, as every other error here."""

    def error(self, message: str):
        raise ValueError(f"{message}; see `{self.prog} --help`.")


def build_parser() -> Parser:
    """All subcommands."""
    parser = Parser(
        prog="python -m univid",
        description="Make videos from text, from a picture, or from both.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=f"{summary}.", allow_abbrev=False)
        added.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return added

    generate = command("generate", "Make one clip")
    conditions(generate, image_required=False, several=True)
    generate.add_argument(
        "--last-image",
        metavar="FILE",
        help="the picture of the last frame, for a model that goes from one picture to another",
    )
    weights = generate.add_argument_group("balance of text and picture")
    weights.add_argument(
        "--text-weight", type=float, default=1.0, metavar="L", help="lambda_t, 0 or more (default: 1)"
    )
    weights.add_argument(
        "--image-weight", type=float, metavar="L", help="lambda_v, 0 or more (default: 1; only with --image)"
    )
    for name, what in (("text", "the words count"), ("image", "the picture counts")):
        weights.add_argument(
            f"--{name}-mask",
            metavar="FILE",
            help=f"where in the frames {what}: a picture, white = fully, black = not at all; or a video",
        )
    guidance(generate)
    sampling(generate)
    steering(generate)
    size(generate)
    source = generate.add_argument_group("video to video")
    source.add_argument(
        "--video",
        metavar="FILE",
        help="start from the first frames of this video, cropped at the centre and resized",
    )
    source.add_argument(
        "--denoise",
        type=float,
        metavar="D",
        help="how much of it is made anew, above 0 to 1 (default: 0.6; 1 for a model that refines)",
    )
    machine(generate)
    output = generate.add_argument_group("output")
    output.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help=".mp4, .webm or .gif; a name without suffix becomes a folder of frame_0001.png ...",
    )
    output.add_argument("--sheet", metavar="FILE.png", help="also write all frames as one labelled picture")

    cli_stages.add(command)

    sweep = command(
        "sweep", "Show how text and picture weights steer: a grid of clips as one labelled picture"
    )
    conditions(sweep, image_required=True)
    grid = sweep.add_argument_group("grid")
    for name, words in (("text", "lambda_t, one a row"), ("image", "lambda_v, one a column")):
        grid.add_argument(
            f"--{name}-weights",
            type=float,
            nargs="+",
            default=[0.0, 0.5, 1.0],
            metavar="L",
            help=f"{words} (default: 0 0.5 1)",
        )
    guidance(sweep)
    sampling(sweep)
    steering(sweep)
    size(sweep)
    machine(sweep)
    sweep.add_argument_group("output").add_argument(
        "--out", required=True, metavar="FILE.png", help="the picture to write"
    )

    demo = command(
        "demo", "Make a clip from text, one from a picture and one from both, with the built-in checkpoint"
    )
    demo.add_argument("--out", default="demo", metavar="FOLDER", help="where to write them (default: demo)")
    machine(demo)

    inspect = command(
        "inspect", "Print a checkpoint's parameters by part, sampling profile, source and config"
    )
    inspect.add_argument(
        "checkpoint",
        metavar="FILE",
        help="a checkpoint, what `import` takes, 'built-in', or a preset: paper, family, tiny",
    )

    for name, summary in (
        ("import", "Make a UniVid checkpoint from a public relative, or from Stable Diffusion 2.1"),
        ("inflate", "The same as import"),
    ):
        _import(command(name, summary))

    export = command("export", "Write an imported ModelScope network as a diffusers folder")
    export.add_argument(
        "checkpoint", metavar="FILE", help="a checkpoint, imported without --extend, or its source"
    )
    export.add_argument(
        "--out", required=True, metavar="FOLDER", help="gets unet/ with a config and the weights"
    )
    cli_receipt.add(command)
    return parser


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="one file (.safetensors, .ckpt, .pth, .pt, .bin) or a diffusers folder of Stable Diffusion 2.1 "
        "or 2.1-base, ModelScope, ZeroScope, Show-1's second super-resolution, VideoCrafter2, "
        "VideoCrafter1's image-to-video or DynamiCrafter; recognised by its tensors",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="the checkpoint to write (.safetensors); an older one is replaced once the new one is complete",
    )
    choices = parser.add_argument_group("what a file may not say")
    choices.add_argument(
        "--name", metavar="NAME", help=f"which of several models with the same tensors it is: {ORIGINS}"
    )
    choices.add_argument(
        "--prediction",
        choices=("eps", "v"),
        help="of Stable Diffusion as one file: eps for 2.1-base, v for 2.1",
    )
    choices.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="of all weights (default: auto, each part's own)",
    )
    start = parser.add_argument_group("a start for training")
    start.add_argument(
        "--extend",
        action="store_true",
        help="add the paper's longer temporal kernels, PSTAttn and image stream, all silent: the result "
        "still gives exactly what the source gives (Stable Diffusion always gets them)",
    )
    start.add_argument(
        "--vision",
        metavar="FILE",
        help="weights of CLIP ViT-H-14's vision tower, for an image stream that is new",
    )
    start.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the weights that are new (default: 0)"
    )

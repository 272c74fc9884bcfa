"""The command line's arguments. Imports no torch, so that --help answers at once."""

import argparse

from .dtypes import DTYPES

SAMPLERS = "euler, euler_ancestral, ddim, heun, dpmpp_2m, dpmpp_2m_sde"
SCHEDULES = "normal, karras, exponential, sgm_uniform, simple, ddim_uniform"
ORIGINS = (
    "modelscope, zeroscope, zeroscope-xl, show1-sr2; "
    "dynamicrafter-512, dynamicrafter-512-interp, dynamicrafter-1024"
)

EPILOG = """examples:
  python -m univid generate --prompt "a red circle moves left on a black background" --out clip.mp4
  python -m univid generate --image photo.png --out moving.gif --sheet frames.png
  python -m univid generate --image photo.png --prompt "it grows" --text-weight 0.7 --out both.webm
  python -m univid sweep --image photo.png --prompt "a red circle moves left" --out grid.png
"""


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument as one sentence through ValueError, as every other error here."""

    def error(self, message: str):
        raise ValueError(f"{message}; see `{self.prog} --help`.")


def build_parser() -> Parser:
    """Subcommands generate, sweep, demo, inspect, import, inflate and export."""
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
    _conditions(generate, image_required=False)
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
    _guidance(generate)
    _sampling(generate)
    _size(generate)
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
    _machine(generate)
    output = generate.add_argument_group("output")
    output.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help=".mp4, .webm or .gif; a name without suffix becomes a folder of frame_0001.png ...",
    )
    output.add_argument("--sheet", metavar="FILE.png", help="also write all frames as one labelled picture")

    sweep = command(
        "sweep", "Show how text and picture weights steer: a grid of clips as one labelled picture"
    )
    _conditions(sweep, image_required=True)
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
    _guidance(sweep)
    _sampling(sweep)
    _size(sweep)
    _machine(sweep)
    sweep.add_argument_group("output").add_argument(
        "--out", required=True, metavar="FILE.png", help="the picture to write"
    )

    demo = command(
        "demo", "Make a clip from text, one from a picture and one from both, with the built-in checkpoint"
    )
    demo.add_argument("--out", default="demo", metavar="FOLDER", help="where to write them (default: demo)")
    _machine(demo)

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


def _conditions(parser: argparse.ArgumentParser, *, image_required: bool) -> None:
    group = parser.add_argument_group("what the video shows")
    group.add_argument(
        "--prompt",
        default="",
        required=image_required,
        metavar="TEXT",
        help="what happens; at most 75 words or so count",
    )
    group.add_argument(
        "--image",
        required=image_required,
        metavar="FILE",
        help="the picture whose content the video takes up",
    )
    group.add_argument("--negative", default="", metavar="TEXT", help="what to stay away from")


def _guidance(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("guidance (default: the checkpoint's)")
    group.add_argument(
        "--guidance",
        choices=("joint", "separate", "nested"),
        help="joint: one scale for text and picture together; separate, nested: one scale each",
    )
    group.add_argument(
        "--guidance-scale", type=float, metavar="W", help="for joint; 1 is none, usual 3 to 10"
    )
    group.add_argument("--text-guidance", type=float, metavar="W", help="for separate and nested")
    group.add_argument("--image-guidance", type=float, metavar="W", help="for separate and nested")
    group.add_argument(
        "--guidance-rescale", type=float, metavar="PHI", help="0 to 1; against too strong contrast"
    )


def _sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling (default: the checkpoint's)")
    group.add_argument("--steps", type=int, metavar="N", help="denoising steps, 1 or more")
    group.add_argument("--sampler", metavar="NAME", help=SAMPLERS)
    group.add_argument("--schedule", metavar="NAME", help=f"sigma schedule: {SCHEDULES}")
    group.add_argument(
        "--eta", type=float, metavar="E", help="for ddim: 0 to 1, how much of a step's noise is fresh"
    )
    group.add_argument(
        "--fps-number",
        type=float,
        metavar="N",
        help="what a model with an fps embedding is told: frames a second, or the frame stride; it changes "
        "how much moves, --fps only how fast it is played",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed gives the same video (default: 0)"
    )
    group.add_argument(
        "--references",
        type=reference_count,
        nargs="+",
        metavar="LEVEL=N",
        help="frames that every frame looks at in a level of the pyramid (1, 2, 4, 8: from the finest): a "
        "number from 1 on, or off, as in 1=off 8=24; fewer or none are faster (default: as trained)",
    )


def reference_count(given: str) -> tuple[int, int]:
    """Level and number of reference frames of "LEVEL=N", 0 for off."""
    level, _, count = (part.strip() for part in given.partition("="))
    if not level.isdecimal() or not (count == "off" or count.isdecimal() and int(count)):
        raise argparse.ArgumentTypeError(
            f"expected LEVEL=N with a number from 1 on, or LEVEL=off, as in 1=off 8=24, got {given!r}"
        )
    return int(level), 0 if count == "off" else int(count)


def _size(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("size (default: the checkpoint's)")
    group.add_argument("--frames", type=int, metavar="N", help="1 or more; 1 is a picture")
    group.add_argument("--height", type=int, metavar="PIXELS", help="a multiple of 8")
    group.add_argument("--width", type=int, metavar="PIXELS", help="a multiple of 8")
    if parser.prog.endswith("generate"):
        group.add_argument("--fps", type=float, metavar="N", help="frames per second of the file")


def _machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and machine")
    group.add_argument(
        "--checkpoint",
        default="built-in",
        metavar="FILE",
        help="a UniVid checkpoint, or what `import` takes (default: the built-in one)",
    )
    group.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:S]",
        help="a LoRA trained on it, with strength S (default: 1); several add up",
    )
    group.add_argument(
        "--device", default="auto", metavar="NAME", help="auto: the accelerator if there is one, else cpu"
    )
    group.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="auto: fp32 on cpu, else bf16",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="translate the network for this size in the first step (torch.compile): it takes minutes, and "
        "pays for long or many clips",
    )

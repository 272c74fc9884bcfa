"""Groups of arguments that several commands share. Imports no torch, so that --help answers at once."""

import argparse

from . import cli_dynamics
from .dtypes import DTYPES

SAMPLERS = "euler, euler_ancestral, ddim, heun, dpmpp_2m, dpmpp_2m_sde, lcm"
SCHEDULES = "normal, karras, exponential, sgm_uniform, simple, ddim_uniform"


class Pictures(argparse.Action):
    """FILE[:W][@A-B], as often as it is given: all of them as `pictures`, the first one's file as `image`."""

    def __call__(self, parser, namespace, given, option=None):
        from .cli_shared import split_picture

        namespace.pictures = [*(getattr(namespace, "pictures", None) or ()), split_picture(given)]
        namespace.image = namespace.pictures[0].path


class OfPicture(argparse.Action):
    """Something of the picture that was named last."""

    def __call__(self, parser, namespace, given, option=None):
        if not namespace.pictures:
            parser.error(f"{option} belongs to the --image before it; give that first")
        *before, last = namespace.pictures
        name = self.dest.removeprefix("picture_")
        if getattr(last, name) is not None:
            parser.error(f"{option} is given twice for one --image; give it once")
        namespace.pictures = [*before, last._replace(**{name: given})]


def conditions(parser: argparse.ArgumentParser, *, image_required: bool, several: bool = False) -> None:
    """What the video shows: words and a picture, or several."""
    group = parser.add_argument_group("what the video shows")
    group.add_argument(
        "--prompt",
        default="",
        required=image_required,
        metavar="TEXT",
        help="what happens; at most 75 words or so count. `0: one / 12: another` goes from one to the other, "
        "`12 frames: one / 12 frames: another` cuts, `12 frames fade 4:` softly",
    )
    if several:
        group.add_argument(
            "--image",
            action=Pictures,
            metavar="FILE[:W][@A-B]",
            help="the picture whose content the video takes up; several add up, each with weight W "
            "(default: 1) in frames A to B, counted from 0 (default: all)",
        )
        group.add_argument(
            "--picture-mask",
            action=OfPicture,
            metavar="FILE",
            default=argparse.SUPPRESS,
            help="where in the frames the --image before it counts: a picture, white = fully, black = not at "
            "all; or a video",
        )
        group.add_argument(
            "--picture-steps",
            action=OfPicture,
            metavar="CURVE",
            default=argparse.SUPPRESS,
            help="multiplies the weight of the --image before it along the sampling, from all noise to none "
            "left: 1..0, 1..0 ease_in_out, 1..0 step, or a list 1, 0.5, 0",
        )
        parser.set_defaults(pictures=None)
    else:
        group.add_argument(
            "--image",
            required=image_required,
            metavar="FILE",
            help="the picture whose content the video takes up",
        )
    group.add_argument("--negative", default="", metavar="TEXT", help="what to stay away from")


def guidance(parser: argparse.ArgumentParser) -> None:
    """How strongly both are followed."""
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


def sampling(parser: argparse.ArgumentParser) -> None:
    """By which steps."""
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
        "--biased-noise",
        choices=("paper", "consistent"),
        help="how a model of biased noise is sampled: paper, with any sampler, or consistent, with one that "
        "adds no noise (default: consistent where it sees what it starts from, else paper)",
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
    cli_dynamics.add(parser)


def reference_count(given: str) -> tuple[int, int]:
    """Level and number of reference frames of "LEVEL=N", 0 for off."""
    level, _, count = (part.strip() for part in given.partition("="))
    if not level.isdecimal() or not (count == "off" or count.isdecimal() and int(count)):
        raise argparse.ArgumentTypeError(
            f"expected LEVEL=N with a number from 1 on, or LEVEL=off, as in 1=off 8=24, got {given!r}"
        )
    return int(level), 0 if count == "off" else int(count)


def size(parser: argparse.ArgumentParser) -> None:
    """Of the clip."""
    group = parser.add_argument_group("size (default: the checkpoint's)")
    group.add_argument("--frames", type=int, metavar="N", help="1 or more; 1 is a picture")
    group.add_argument("--height", type=int, metavar="PIXELS", help="a multiple of 8")
    group.add_argument("--width", type=int, metavar="PIXELS", help="a multiple of 8")
    if parser.prog.endswith(("generate", "sample")):
        group.add_argument("--fps", type=float, metavar="N", help="frames per second of the file")


def machine(parser: argparse.ArgumentParser, checkpoint: str = "built-in", device: bool = True) -> None:
    """Model, LoRAs, device and type of weights.

    checkpoint: that which serves where none is given. device: whether this command is the one to be told it.
    """
    group = parser.add_argument_group("model and machine")
    group.add_argument(
        "--checkpoint",
        default=checkpoint,
        metavar="FILE",
        help="a UniVid checkpoint, or what `import` takes (default: %(default)s)",
    )
    group.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:S]",
        help="a LoRA trained on it, with strength S (default: 1); several add up",
    )
    if device:
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

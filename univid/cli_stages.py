"""Arguments of the commands that make clips out of clips, window by window."""

import argparse
from collections.abc import Callable

from .cli_groups import conditions, guidance, machine, sampling

STAGES = ("base", "interpolate", "extend", "upscale")
EXPERTS = {"interpolate": "built-in-known", "extend": "built-in-known", "upscale": "built-in-upscale"}


def add(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Commands that make clips out of clips, window by window."""
    stages = {
        "interpolate": command("interpolate", "Make new frames between those of a video"),
        "extend": command("extend", "Make a video longer"),
        "upscale": command("upscale", "Make a video larger, with the detail that it lacks"),
    }
    for parser in stages.values():
        group = parser.add_argument_group("the video")
        group.add_argument("--video", required=True, metavar="FILE", help="what to start from")
        group.add_argument("--prompt", default="", metavar="TEXT", help="what it shows; may be left out")
        group.add_argument("--negative", default="", metavar="TEXT", help="what to stay away from")
        guidance(parser)
        sampling(parser)
    chain = command(
        "chain",
        "Make a clip and put it through further stages; guidance and sampler are the base's, steps, seed and "
        "prompt all stages'",
    )
    conditions(chain, image_required=False)
    guidance(chain)
    sampling(chain)
    stages["chain"] = chain
    chain.add_argument_group("stages").add_argument(
        "--stages",
        type=stage_names,
        default="base,interpolate,upscale",
        metavar="LIST",
        help=f"of {', '.join(STAGES)}, the first one base (default: %(default)s)",
    )
    for name, parser in stages.items():
        group = parser.add_argument_group("what is made")
        if name == "chain":
            group.add_argument("--frames", type=int, metavar="N", help="of base (default: the checkpoint's)")
        if name in ("interpolate", "chain"):
            group.add_argument(
                "--factor", type=int, default=4, metavar="N",
                help="interpolate: frames for one, of which the first is the known one (default: 4)",
            )  # fmt: skip
        if name in ("extend", "chain"):
            group.add_argument(
                "--more", type=int, metavar="N",
                help="extend: how many frames are added (default: those of one window)",
            )  # fmt: skip
            group.add_argument(
                "--known", type=int, metavar="N",
                help="extend: how many of the last frames a window is shown (default: a third of it)",
            )  # fmt: skip
        if name in ("upscale", "chain"):
            for side in ("height", "width"):
                group.add_argument(
                    f"--{side}", type=int, metavar="PIXELS",
                    help="upscale: a multiple of 8, at least the video's (default: the checkpoint's)",
                )  # fmt: skip
            group.add_argument(
                "--tile", type=int, metavar="PIXELS",
                help="upscale: the side of the tiles that larger frames are made in, a multiple of 8; "
                "smaller ones need less memory (default: the size that the model was trained on)",
            )  # fmt: skip
        group.add_argument(
            "--window", type=int, metavar="N",
            help="frames that are made at once at most (default: as the model was trained)",
        )  # fmt: skip
        machine(parser, EXPERTS.get(name, "built-in"))
        if name == "chain":
            for kind, words in (("known", "interpolate and extend"), ("upscale", "upscale")):
                parser.add_argument(
                    f"--{kind}-checkpoint",
                    metavar="FILE",
                    help=f"the model of {words} (default: the built-in one's own, of another none)",
                )
        output = parser.add_argument_group("output")
        output.add_argument(
            "--out", required=True, metavar="FILE", help=".mp4, .webm, .gif, or a folder of frames"
        )
        output.add_argument(
            "--fps", type=float, metavar="N", help="frames per second of the file (default: as they come)"
        )
        output.add_argument(
            "--work", metavar="FOLDER",
            help="where frames lie until the file is written: the same command goes on from there after "
            "it was stopped (default: beside --out, its name and .work)",
        )  # fmt: skip


def stage_names(given: str) -> tuple[str, ...]:
    """The stages of "base,interpolate,...".

    Raises:
        argparse.ArgumentTypeError: others, or another first one.
    """
    names = tuple(name.strip() for name in given.split(","))
    if names[0] != "base" or "base" in names[1:] or not set(names) <= set(STAGES):
        raise argparse.ArgumentTypeError(
            f"expected base and then any of {', '.join(STAGES[1:])}, with commas between, got {given!r}"
        )
    return names

"""`python -m training score`: the papers' figures on any folder of videos."""

import argparse
import dataclasses
from pathlib import Path

from univid.files.hashes import cache_folder

from .protocol import PROTOCOLS, Protocol

FEATURES = "features"  # of the user's cache folder


def add(commands: argparse._SubParsersAction) -> None:
    """Give the command line the commands of COMMANDS."""
    one = commands.add_parser(
        "score",
        help="score a folder of videos, whoever made them: FVD, IS, FID, CLIP-SIM and others",
        epilog="Protocols: " + "; ".join(f"{p.name}: {p.about}" for p in PROTOCOLS.values()) + ".",
    )
    one.add_argument("folder", type=Path, help="videos, folders of frames, .npy; prompts in manifest.jsonl")
    one.add_argument("--real", type=Path, help="folder of real videos, or a file of --save-real")
    one.add_argument("--metrics", required=True, help="names with commas; all: every one that can be had")
    one.add_argument("--weights", type=Path, help="folder of the networks' files")
    one.add_argument("--out", type=Path, required=True, help="JSON of all figures")
    one.add_argument("--save-real", type=Path, help="keep the real videos' statistics, for --real")
    one.add_argument(
        "--protocol", default="all", choices=PROTOCOLS, metavar="NAME", help="default: %(default)s"
    )
    one.add_argument("--videos", type=int, help="how many count, instead of the protocol's number")
    one.add_argument("--frames", type=int, help="of each, instead of the protocol's number, in a row")
    one.add_argument("--fps", type=float, help="at which frames are taken (default: the video's own)")
    one.add_argument("--pad", action="store_true", help="repeat the last frame of short videos")
    one.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="crop all frames to it")
    one.add_argument("--splits", type=int, help="of the Inception score")
    one.add_argument("--seed", type=int, help="which videos and frames are drawn (default: 0)")
    one.add_argument(
        "--bad-share",
        type=float,
        default=0.01,
        help="of videos that may be unusable (default: %(default)s)",
    )
    one.add_argument(
        "--resamples", type=int, default=100, help="of the bootstrap; 0: no intervals (default: %(default)s)"
    )
    one.add_argument("--cache", type=Path, default=cache_folder() / FEATURES, help="default: %(default)s")


def protocol_of(options: argparse.Namespace) -> Protocol:
    """The protocol that is named, with what is said besides changed and its name marked."""
    named = PROTOCOLS[options.protocol]
    said = {name: getattr(options, name) for name in ("fps", "splits", "seed")}
    said |= {"size": tuple(options.size) if options.size else None, "pad": options.pad or None}
    if options.videos is not None:
        if options.videos < 1:
            raise ValueError(f"--videos must be 1 or more, got {options.videos}.")
        said |= {"videos": options.videos, "inception_videos": options.videos}
    if options.frames is not None:
        said |= {"frames": options.frames, "window": options.frames}
    changes = {
        name: value for name, value in said.items() if value is not None and value != getattr(named, name)
    }
    if not changes:
        return named
    return dataclasses.replace(named, name=f"{named.name}, changed: {', '.join(changes)}", **changes)


def score(options: argparse.Namespace) -> str:
    """Score the folder; the Markdown row of its figures."""
    from .registry import METRICS
    from .scoring import ScoreConfig
    from .scoring import score as run

    names = [name.strip() for name in options.metrics.split(",") if name.strip()]
    config = ScoreConfig(
        folder=options.folder,
        out=options.out,
        metrics=tuple(METRICS if names == ["all"] else names),
        protocol=protocol_of(options),
        real=options.real,
        weights=options.weights,
        save_real=options.save_real,
        cache=options.cache,
        bad_share=options.bad_share,
        resamples=options.resamples,
        device=options.device,
    )
    return run(config)


COMMANDS = {"score": score}

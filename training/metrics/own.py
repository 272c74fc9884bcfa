"""The commands that look into a network: whose caption its loss picks, what it weighs, how it came along."""

import argparse
from pathlib import Path

from univid.messages import shown

from . import vbench_environment

NOTE = "Whose towers or CLIP judge is in the JSON and in the picture."


def add(commands: argparse._SubParsersAction) -> None:
    """Give the command line the commands of COMMANDS."""
    one = commands.add_parser("captions", help="does the network's own loss pick each video's caption?")
    one.add_argument("folder", type=Path, help="videos, each with NAME.txt, or with a manifest.jsonl")
    _checkpoint(one)
    _choice(one)
    one.add_argument("--out", type=Path, help="JSON of all losses (default: captions.json beside the videos)")

    one = commands.add_parser(
        "tradeoff", help="draw text agreement against picture agreement over the two weights", epilog=NOTE
    )
    _checkpoint(one)
    one.add_argument("--prompts", required=True, help="as of `sample`; a row without a picture gets one made")
    one.add_argument("--out", type=Path, required=True, help="folder of tradeoff.png and tradeoff.json")
    _clip(one)
    one.add_argument("--points", type=int, default=5, help="of the way (default: %(default)s)")
    one.add_argument("--steps", type=int, help="of sampling (default: the checkpoint's)")
    one.add_argument("--batch", type=int, default=1, help="clips at a time (default: %(default)s)")
    one.add_argument("--seed", type=int, default=0, help="of the first clip (default: %(default)s)")

    one = commands.add_parser(
        "progress", help="draw figures over the states of a run, or over checkpoints", epilog=NOTE
    )
    one.add_argument("states", type=Path, nargs="+", help="a run's folder, or checkpoint files")
    one.add_argument("--metrics", required=True, help="text, captions, flicker ..., those of `score`")
    one.add_argument("--prompts", default="", help="as of `sample`, which makes the videos")
    one.add_argument("--videos", type=Path, help="folder with captions, for the metric captions")
    one.add_argument("--out", type=Path, required=True, help="folder of the videos, progress.png and .json")
    one.add_argument("--sample", default="", metavar="WORDS", help='for `sample`: "--steps 20 --samples 4"')
    one.add_argument(
        "--score", default="", metavar="WORDS", help='for `score`: "--real FOLDER --weights FOLDER"'
    )
    _clip(one)
    _choice(one)
    _dtype(one)


def _checkpoint(one: argparse.ArgumentParser) -> None:
    one.add_argument("--checkpoint", default="built-in", help="default: %(default)s")
    _dtype(one)


def _dtype(one: argparse.ArgumentParser) -> None:
    from univid.dtypes import DTYPES

    one.add_argument(
        "--dtype", default="auto", choices=["auto", *DTYPES], help="auto: fp32 on the CPU, else bf16"
    )


def _choice(one: argparse.ArgumentParser) -> None:
    one.add_argument("--captions", type=int, default=10, help="to choose among (default: %(default)s)")
    one.add_argument("--draws", type=int, default=16, help="of noise and timestep (default: %(default)s)")
    one.add_argument("--captions-batch", type=int, default=4, help="at a time (default: %(default)s)")
    one.add_argument("--captions-seed", type=int, default=0, help="of noise (default: %(default)s)")


def _clip(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--clip", nargs=2, metavar=("MODEL", "FILE"),
        help="an open_clip model (ViT-B-32-quickgelu) and its weights (default: the checkpoint's towers)",
    )  # fmt: skip


def _choice_of(options: argparse.Namespace):
    from .captions import Choice

    return Choice(options.captions, options.draws, options.captions_seed, options.captions_batch)


def _towers_of(options: argparse.Namespace):
    from .towers import open_clip_towers

    return open_clip_towers(options.clip[0], Path(options.clip[1]), options.device) if options.clip else None


def _model_of(options: argparse.Namespace):
    from univid.checkpoints import load

    return load(options.checkpoint, device=options.device, dtype=_dtype_of(options))


def _dtype_of(options: argparse.Namespace):
    import torch

    from univid.dtypes import dtype_of

    best = "fp32" if torch.device(options.device).type == "cpu" else "bf16"
    return dtype_of(best if options.dtype == "auto" else options.dtype)


def _origin(checkpoint: str) -> dict[str, str]:
    from univid.checkpoints import built_in_path
    from univid.checkpoints.native import ASSETS
    from univid.files.hashes import noted_sha256

    path = built_in_path(checkpoint) if checkpoint in ASSETS else Path(checkpoint)
    return {"name": path.name, "sha256": noted_sha256(path) if path.is_file() else ""}


def captions(options: argparse.Namespace) -> str:
    """The share of videos whose own caption has the lowest loss."""
    from training.folder import write_json
    from univid.files.output import check_file

    from .captions import captions_for, pick
    from .videos import find_videos

    out = options.out or options.folder / "captions.json"
    videos, choice = find_videos(options.folder), _choice_of(options)
    captions_for(videos, choice)  # what is wrong with them is said before a model is read
    check_file(out, [video.path for video in videos])
    found = pick(_model_of(options), videos, choice)
    settings = {"seed": choice.seed, "dtype": str(_dtype_of(options)).removeprefix("torch.")}
    write_json(out, {"checkpoint": _origin(options.checkpoint), **settings, **found})
    share = found["accuracy"]
    return (
        f"own loss picks the caption of {100 * share['value']:.1f} % of {found['videos']} videos "
        f"[{100 * share['low']:.1f}, {100 * share['high']:.1f}]; chance {100 * found['chance']:.1f} % "
        f"({found['captions']} captions, {found['draws']} draws)\n{out}"
    )


def tradeoff(options: argparse.Namespace) -> str:
    """The curve as a table; its picture and JSON lie in the folder."""
    from training.folder import write_json
    from univid.files.output import check_file
    from univid.video import read_image, to_uint8

    from . import charts, prompts
    from .towers import own_towers
    from .tradeoff import Pair, Plan, check_model, measure, own_pairs, report

    plan = Plan(options.points, options.seed, options.batch, options.steps)
    rows = prompts.read(options.prompts, vbench_environment.default_folder())
    given = [row for row in rows if row.image is not None]
    if given and len(given) < len(rows) or not all(row.prompt.strip() for row in rows):
        raise ValueError(
            f"expected a prompt in each row of {shown(options.prompts)}, and pictures in all or none, got "
            f"{len(rows)} rows and {len(given)} pictures; add what is missing."
        )
    places = {name: options.out / f"tradeoff.{name}" for name in ("png", "json")}
    for place in places.values():
        check_file(place, [options.checkpoint, options.prompts, *(row.image for row in given)])
    model, towers = _model_of(options), _towers_of(options)
    check_model(model)
    towers = towers or own_towers(model)
    if given:
        pictures = [to_uint8(read_image(row.image)[:, :, None])[0] for row in given]
        pairs = [Pair(r.prompt, p, Path(r.image).name) for r, p in zip(given, pictures, strict=True)]
    else:
        pairs = own_pairs(model, [row.prompt for row in rows], plan)
    found, examples = measure(model, pairs, towers, plan)
    origin = _origin(options.checkpoint)
    steps = options.steps or model.profile.steps
    settings = {"checkpoint": origin, "seed": plan.seed, "steps": steps, "dtype": str(model.unet.dtype)[6:]}
    title = f"What text and picture cost each other: {origin['name']}, {len(pairs)} prompts"
    charts.tradeoff(found, examples, title, places["png"])
    write_json(places["json"], settings | found)
    return "\n".join([report(found), *map(str, places.values())])


def progress(options: argparse.Namespace) -> str:
    """Figures of every state as a table; their picture and JSON lie in the folder."""
    from training.folder import write_json
    from univid.files.output import check_file

    from . import charts
    from .progress import CAPTIONS, Judged, judge, report
    from .states import find_states

    metrics = [name.strip() for name in options.metrics.split(",") if name.strip()]
    if not options.prompts and set(metrics) - {CAPTIONS}:
        raise ValueError("videos are made of a list of prompts; name it by --prompts.")
    how = Judged(
        metrics,
        options.prompts,
        options.out,
        options.device,
        _dtype_of(options),
        options.videos,
        _towers_of(options),
        _choice_of(options),
        options.sample,
        options.score,
    )
    places = {name: options.out / f"progress.{name}" for name in ("png", "json")}
    for place in places.values():
        check_file(place, options.states)
    figures = judge(find_states(options.states), how)
    charts.progress(figures, places["png"])
    asked = {name: str(getattr(options, name) or "") for name in ("prompts", "videos", "sample", "score")}
    judges = {"clip": how.towers.name if how.towers else "each checkpoint's own towers"}
    write_json(places["json"], {"asked": asked, **judges, "figures": figures})
    return "\n".join([report(figures), *map(str, places.values())])


COMMANDS = {command.__name__: command for command in (captions, tradeoff, progress)}

"""The commands that make clips out of clips, and chains of them."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from .asked import Clip, Sampling
from .cascade import Begin, Extend, Interpolate, Stage, Told, Upscale
from .chain import Blank, FrameFolder, Link, Planned, Work, plan
from .chain import run as run_chain
from .checkpoints import load
from .checkpoints.native import ASSETS, BUILT_IN
from .cli_made import fps_number, given_files, receipt, staged
from .cli_shared import common, device_of, load_model, split_strength
from .cli_stages import EXPERTS
from .messages import shown
from .model import UniVid
from .receipt import Receipt
from .video import check_output, open_video, read_image, write_frames
from .windows import Frames

# Of a command line these change how or where, not what.
NOT_TOLD = ("debug", "out", "work", "device", "compile", "command")


def run(args: argparse.Namespace) -> Iterator[str]:
    """Plan, make what is not made yet, write the file, delete the work folder; gives lines for the user."""
    names = args.stages if args.command == "chain" else (args.command,)
    inputs = [getattr(args, name, None) for name in ("video", "image", "checkpoint")]
    inputs += [split_strength(lora)[0] for lora in args.lora]
    check_output(args.out, args.fps, inputs)
    if args.command == "chain" and args.image is None and not args.prompt.strip():
        raise ValueError("expected --prompt, --image or both, got neither; say what the video shall show.")
    work = Path(args.work or f"{os.fspath(args.out).rstrip(os.sep)}.work")
    stages = {}
    links = [_link(name, args, stages) for name in names]
    if args.command == "chain":
        source, fps = Blank(0, 0, 0), links[0].model(False).profile.fps
    else:
        with open_video(args.video) as video:
            source, fps = Blank(video.number, *next(video.frames).shape[:2]), video.fps
            if video.sounds:
                yield f"{shown(args.video)}: its sound is not copied"
    device, dtype = device_of(args)
    planned = plan(links, source, fps, dtype, device)
    last = planned[-1]
    rate = args.fps or last.fps
    check_output(args.out, rate, inputs, size=(last.height, last.width))
    yield from map(str, planned)
    note = _receipt(args, links, stages, rate).text()
    room = Work(work, _settings(args, names))
    if args.command != "chain":
        source = _unpacked(args.video, room.frames(0, "video"))
    with Bars() as bars:
        made = run_chain(links, planned, source, room, bars)
    write_frames(made, args.out, rate, note)
    room.remove()
    yield f"{shown(args.out)}: {last.frames} frames of {last.width} x {last.height}, {rate:g} fps"


def _checkpoint(name: str, args: argparse.Namespace) -> tuple[str, str | None]:
    """The option of the stage of that name, and its checkpoint if it is not --checkpoint."""
    if args.command != "chain" or name == "base":
        return "checkpoint", None
    kind = "upscale" if name == "upscale" else "known"
    own = getattr(args, f"{kind}_checkpoint")
    if own is None and args.checkpoint == BUILT_IN:
        own = EXPERTS[name]
    if own is None:
        raise ValueError(f"the stage {name} needs a model of its own; give --{kind}-checkpoint.")
    return f"{kind}_checkpoint", own


def _link(name: str, args: argparse.Namespace, stages: dict[str, dict]) -> Link:
    """The stage of that name, by its own checkpoint. stages: gets its settings when it is built."""
    _, own = _checkpoint(name, args)
    given = args if own is None else argparse.Namespace(**vars(args) | {"checkpoint": own, "lora": []})

    @lru_cache(maxsize=1)
    def weightless() -> UniVid:
        return load(given.checkpoint, device="cpu", parts=())

    def model(whole: bool) -> UniVid:
        return load_model(given) if whole else weightless()

    def build(model: UniVid, source: Frames) -> Stage:
        stage = _stage(name, args, model, source)
        stages[name] = staged(stage)
        return stage

    return Link(name, model, build)


def _receipt(args: argparse.Namespace, links: Sequence[Link], stages: dict[str, dict], fps: float) -> Receipt:
    """That of the file. Of a chain its settings are what was asked, as some are those of several stages."""
    models = [link.model(False) for link in links]
    options = dict(_checkpoint(link.name, args) for link in links)
    files = given_files(args, models, {option: own or args.checkpoint for option, own in options.items()})
    settings = {"prompt": args.prompt or None, "negative": args.negative or None, "fps": fps}
    listed = ()
    if args.command == "chain":
        asked = ("steps", "window", "factor", "more", "known", "height", "width", "tile")
        base = {name: value for name, value in stages["base"].items() if name not in ("steps", "window")}
        settings |= base | {name: getattr(args, name) for name in asked}
        settings |= {"stages": ",".join(args.stages), "fps_number": fps_number(args.fps_number, models[0])}
        settings["frames"] = args.frames or models[0].profile.frames
        listed = [
            {"stage": name, **{key: value for key, value in stages[name].items() if value is not None}}
            for name in args.stages
        ]
    else:
        settings |= stages[args.command]
    return receipt(args, args.command, settings, files, listed)


def _stage(name: str, args: argparse.Namespace, model: UniVid, source: Frames) -> Stage:
    if args.command == "chain" and name != "base":  # guidance and sampler are asked for the base
        asked = {"negative": args.negative, "sampling": Sampling(steps=args.steps), "seed": args.seed}
    else:
        asked = common(args, model.profile) | {"fps_number": args.fps_number}
    told = Told(args.prompt, longest=args.window, **asked)
    if name == "base":
        image = None if args.image is None else read_image(args.image)
        return Begin(model, told, clip=Clip(args.frames), image=image)
    if name == "interpolate":
        if args.command == name and len(source) == 1:  # in a chain it stays one
            raise ValueError(
                f"expected at least 2 frames to interpolate between, got 1 in {shown(args.video)}."
            )
        return Interpolate(model, source, told, factor=args.factor)
    if name == "extend":
        return Extend(model, source, told, more=args.more, known=args.known)
    sampling = replace(told.sampling, tile=args.tile)
    size = (args.height or model.profile.height, args.width or model.profile.width)
    return Upscale(model, source, replace(told, sampling=sampling), size=size)


def _unpacked(path: str, folder: FrameFolder) -> FrameFolder:
    """A video's frames, as pictures of the work folder."""
    with open_video(path) as video:
        if len(folder) < video.number:
            folder.write(0, video.frames)
    return folder


def _settings(args: argparse.Namespace, names: tuple[str, ...]) -> dict:
    """What the frames hang on: all that was asked for, and which files were given."""
    told = {name: value for name, value in vars(args).items() if name not in NOT_TOLD}
    files = [name for name in told if name in ("video", "image") or name.endswith("checkpoint")]
    for name in files:
        told[name] = _evidence(told[name])
    told["lora"] = [[_evidence(file), strength] for file, strength in map(split_strength, args.lora)]
    return told | {"stages": list(names), "dtype": str(device_of(args)[1])}


def _evidence(path: str | None) -> list | None:
    """What tells a file from another one: its name, length and time."""
    if path is None or path in ASSETS:
        return path
    found = os.stat(path)
    return [Path(path).name, found.st_size, found.st_mtime_ns]


class Bars:
    """One bar a stage on stderr, of its windows, with the time that is left once one has run."""

    def __init__(self):
        self.planned, self.bar = None, None

    def __call__(self, planned: Planned, done: int) -> None:
        from tqdm import tqdm

        if planned is not self.planned:
            self.close()
            self.planned = planned
            self.bar = tqdm(total=planned.windows, desc=planned.name, unit="window", file=sys.stderr)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> Callable[[Planned, int], None]:
        return self

    def __exit__(self, *_) -> None:
        self.close()

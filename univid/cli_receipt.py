"""The commands of receipts: read one, make its file again, say why two files differ.

Imports no torch, so that --help answers at once. A receipt is a stranger's text: it names files of one
folder, and settings that the command line reads as it reads a user's.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from . import receipt
from .files.hashes import noted_sha256, sha256, short
from .files.output import check_file
from .messages import shown
from .receipt import Given, Receipt, spoken, words

MAKING = ("generate", "sweep", "interpolate", "extend", "upscale", "chain")
# Options of those that are not in a receipt's settings: where, how, and files, which are looked for.
OWN = ("out", "sheet", "work", "device", "debug", "help")
FILES = {
    "image": "a picture",
    "last_image": "the picture of the last frame",
    "video": "a video",
    "text_mask": "where the words count",
    "image_mask": "where the picture counts",
    "picture_mask": "where one of several pictures counts",
    "checkpoint": "a checkpoint",
    "known_checkpoint": "a chain's model of known frames",
    "upscale_checkpoint": "a chain's model that upscales",
}
SHOWN = 4000  # characters of a setting
OF_PICTURES = {  # settings with one value a picture, which stand with the pictures on a command line
    "image_frames": re.compile(r"all|\d+-\d+"),
    "image_places": re.compile(r"all|mask"),
    "image_steps": re.compile(r"[^\0]+"),
}
WEIGHTS = ("checkpoint", "known_checkpoint", "upscale_checkpoint", "base", "lora")
SAMPLE = Path(__file__).parent / "assets" / "sample.png"  # what the demo is made of


def add(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """The commands' arguments."""
    reading = command("receipt", "Print what made a file: its receipt, or the workflow that ComfyUI saved")
    reading.add_argument("file", metavar="FILE", help="a video, a picture, or a folder of frames")
    reading.add_argument("--json", action="store_true", help="as it stands in the file")

    again = command("repeat", "Make a file again, by its receipt")
    again.add_argument("file", metavar="FILE", help="what `python -m univid` wrote")
    again.add_argument("--out", required=True, metavar="FILE", help="the file or folder to write")
    group = again.add_argument_group("files that it was made of (default: those of their names beside FILE)")
    for name, what in FILES.items():
        group.add_argument(f"--{name.replace('_', '-')}", metavar="FILE", help=what)
    group.add_argument(
        "--lora", action="append", default=[], metavar="FILE", help="all LoRAs, in the receipt's order"
    )
    again.add_argument("--device", default="auto", metavar="NAME", help="as of `generate`")

    both = command("compare", "Say why two files differ: by their receipts, and by their frames")
    for name in ("a", "b"):
        both.add_argument(name, metavar=name.upper(), help="what `python -m univid` wrote")


# Reading


def read_out(args: argparse.Namespace) -> Iterator[str]:
    """Lines that say what made a file.

    Raises:
        ValueError: as `receipt.read`, or a workflow that is cut off.
    """
    found = receipt.texts(args.file)
    workflow = {name: _workflow(found[name], args.file) for name in receipt.HOST if name in found}
    if workflow and not receipt.ours(found):
        yield from [json.dumps(workflow, indent=1)] if args.json else _nodes(workflow, args.file)
        return
    read = receipt.read(args.file)
    if args.json:
        yield json.dumps(json.loads(read.text()), indent=1)
        return
    if workflow:  # it was opened there, and what was made of it carries both
        yield from _nodes(workflow, args.file)
    yield f"{shown(args.file)}: made by `python -m univid {shown(read.command)}`"
    yield from _table(read.settings)
    for number, stage in enumerate(read.stages, start=1):
        yield f"stage {number}"
        yield from _table(stage)
    yield "files"
    for file in read.files:
        strength = "" if file.strength is None else f", strength {file.strength:g}"
        yield f"  {words(file.role):18} {shown(file.name)}{strength}, sha256 {file.sha256}"
    yield "made with"
    yield from _table(read.versions | read.machine)
    yield f"  {'noise':18} {shown(read.noise)}"


def _table(values: dict) -> Iterator[str]:
    return (f"  {shown(words(name), 40):18} {shown(spoken(value), SHOWN)}" for name, value in values.items())


def _workflow(text: str, path: str) -> dict:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"the workflow in {shown(path)} is cut off or damaged; take another copy."
        ) from error
    return found if isinstance(found, dict) else {}


def _nodes(workflow: dict, path: str) -> Iterator[str]:
    """A line a node, with what is set on it; what comes from another node is left out."""
    prompt = workflow.get("prompt", {})
    nodes = {name: node for name, node in prompt.items() if isinstance(node, dict)}
    if not nodes:  # the interface's own form alone
        listed = workflow.get("workflow", {}).get("nodes")
        listed = [node for node in listed if isinstance(node, dict)] if isinstance(listed, list) else []
        nodes = {
            str(node.get("id")): {"class_type": node.get("type"), "inputs": node.get("widgets_values")}
            for node in listed
        }
    yield f"{shown(path)}: saved by {receipt.HOST_NAME}, by a workflow of {len(nodes)} nodes"
    for name, node in sorted(nodes.items(), key=lambda item: (len(item[0]), item[0])):
        inputs = node.get("inputs")
        said = []
        if isinstance(inputs, dict):
            said = [f"{key}: {value}" for key, value in inputs.items() if not isinstance(value, list | dict)]
        elif isinstance(inputs, list):
            said = [str(value) for value in inputs if not isinstance(value, list | dict)]
        yield f"  {shown(name, 20):>4} {shown(node.get('class_type'), 60)}  {shown(', '.join(said), SHOWN)}"


# Making again


def asked_again(args: argparse.Namespace) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of the command that made a file, and what is to be said before it runs.

    Raises:
        ValueError: as `receipt.read`; settings that this version does not know, or a file that is not there.
    """
    read = receipt.read(args.file)
    if read.command not in MAKING:
        raise ValueError(
            f"{shown(args.file)} was made by a command {shown(read.command)}, which this version does not "
            "have; repeat it with the UniVid that wrote it."
        )
    if Path(args.out).suffix:
        check_file(args.out, [args.file])
    roles = [file.role for file in read.files]
    if unknown := [role for role in roles if role not in (*FILES, "lora", "base")]:
        raise ValueError(
            f"the receipt of {shown(args.file)} names a file for {shown(unknown[0], 40)}, which this version "
            "does not know; repeat it with the UniVid that wrote it."
        )
    given = {name: [getattr(args, name)] for name in FILES} | {"lora": list(args.lora)}
    for option, paths in given.items():
        if any(paths) and option not in roles:
            raise ValueError(
                f"{shown(args.file)} was made without --{option.replace('_', '-')}; leave it out."
            )
    if args.lora and len(args.lora) != roles.count("lora"):
        raise ValueError(
            f"{shown(args.file)} was made with {roles.count('lora')} LoRAs, got {len(args.lora)}; give all."
        )
    notices, options = list(_notices(read, args.file)), []
    of_pictures = {name: _of_pictures(read, name, args.file) for name in OF_PICTURES}
    for file in read.files:
        asked = given[file.role].pop(0) if given.get(file.role) else None
        path, found = _found(file, asked, args.file)
        if found != file.sha256:
            notices.append(
                f"{shown(path)} is not the {words(file.role)} that {shown(args.file)} was made with: its "
                f"sha256 begins with {short(found)}, not {short(file.sha256)}; the result will differ"
            )
        strength = "" if file.strength is None else f":{file.strength!r}"
        here = {name: next(values, "all") for name, values in of_pictures.items() if file.role == "image"}
        at = "" if here.get("image_frames", "all") == "all" else f"@{here['image_frames']}"
        if file.role != "base":  # it comes with the checkpoint
            options.append(f"--{file.role.replace('_', '-')}={path}{strength}{at}")
        if here.get("image_steps", "all") != "all":
            options.append(f"--picture-steps={here['image_steps']}")
    return _parsed(read, [*options, f"--out={args.out}", f"--device={args.device}"], args), notices


def _of_pictures(read: Receipt, name: str, path: str) -> Iterator[str]:
    """What a setting says of each picture."""
    found = read.settings.get(name, [])
    if not isinstance(found, list) or not all(OF_PICTURES[name].fullmatch(str(each)) for each in found):
        raise ValueError(f"the receipt of {shown(path)} is damaged at {words(name)}; take another copy.")
    return map(str, found)


def _parsed(read: Receipt, options: list[str], args: argparse.Namespace) -> argparse.Namespace:
    from .cli import build_parser

    taken = {"lora", "base", *FILES, *OWN}
    if wrong := [name for name in read.settings if name in taken]:
        raise ValueError(f"the receipt of {shown(args.file)} sets {wrong[0]}, which none does; take another.")
    for name, value in read.settings.items():
        if name not in OF_PICTURES:
            options += _option(name, value, args.file)
    try:
        again = build_parser().parse_args([read.command, *options])
    except ValueError as error:
        raise ValueError(
            f"the receipt of {shown(args.file)} has settings that this version does not take: {error}"
        ) from error
    if read.command == "generate" and Path(args.out).suffix.lower() == ".png":
        again.out, again.sheet = None, args.out
    again.debug = args.debug
    return again


def _option(name: str, value: receipt.Value, path: str) -> list[str]:
    """A setting as the words of a command line."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else []
    if not isinstance(value, list):
        return [f"{flag}={value}"]
    items = [str(item) for item in value]
    if any(item.startswith("-") for item in items):  # it would be an option of its own
        raise ValueError(f"the receipt of {shown(path)} is damaged at {words(name)}; take another copy.")
    return [flag, *items]


def _notices(read: Receipt, path: str) -> Iterator[str]:
    """What is another one here than where the file was made."""
    from .cli_made import versions
    from .noise import RULE

    here = versions()
    for name, version in read.versions.items():
        if (now := here.get(name)) != version:
            before = f"{shown(name, 40)} {shown(version, 40)}"
            yield f"{shown(path)} was made with {before}, this is {now or 'none'}"
    if read.noise != RULE:
        yield f"{shown(path)} was made with noise of another rule; the result will differ"


def _found(file: Given, asked: str | None, made: str) -> tuple[str, str]:
    """Where a file is that a receipt names, and its hash: the same one, else one in its place.

    Raises:
        ValueError: nowhere, or it cannot be read.
    """
    if asked is None:
        beside = Path(made).resolve().parent / file.name
        places = [file.name] if file.role in WEIGHTS and _ships(file.name) else []
        places += [str(beside)] if beside.exists() else []
        if file.role == "image" and sha256(SAMPLE) == file.sha256:
            places.append(str(SAMPLE))
    else:
        places = [asked]
    if not places:
        option = f"--{file.role.replace('_', '-')}"
        raise ValueError(
            f"{shown(made)} was made with the {words(file.role)} {shown(file.name)} of sha256 {file.sha256}, "
            f"which is not beside it; give {option}."
        )
    hashed = noted_sha256 if file.role in WEIGHTS else sha256
    hashes = {place: hashed(_stored(place)) for place in places}
    place = next((place for place, found in hashes.items() if found == file.sha256), places[0])
    return place, hashes[place]


def _ships(name: str) -> bool:
    from .checkpoints.native import ASSETS

    return name in ASSETS


def _stored(path: str) -> str | Path:
    """The file of a checkpoint that ships, else the path itself."""
    from .checkpoints.native import built_in_path

    return built_in_path(path) if _ships(path) else path


# Comparing


def compared(args: argparse.Namespace) -> Iterator[str]:
    """Lines that say why two files differ, or that they do not.

    Raises:
        ValueError: as `receipt.read`, or frames that cannot be read.
    """
    from .comparison import unlike_frames

    a, b = receipt.read(args.a), receipt.read(args.b)
    names = (args.a, args.b)
    if Path(args.a).name != Path(args.b).name:
        names = (Path(args.a).name, Path(args.b).name)
    unlike = receipt.differences(a, b, names)
    yield from unlike
    frames = unlike_frames(args.a, args.b)
    if frames:
        yield frames
    elif unlike:
        yield "their frames are equal all the same"
    else:
        yield f"{shown(names[0])} and {shown(names[1])} are equal: the same settings, files and frames"

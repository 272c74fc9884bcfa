"""The receipt of a file: all that made it, written into the file itself; nothing of whose machine it was.

It is JSON in ASCII: the comment of a video, GIF or PNG, or receipt.json in a folder of frames. Of a file that
was read it has the name without folders, and the hash.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .files.hashes import is_sha256, short
from .files.regular import open_regular
from .messages import shown

VERSION = 1
KEY = "univid_receipt"
START = re.compile(rf'\{{\s*"{KEY}":')
IN_FOLDERS = "receipt.json"
MOST_BYTES = 2**22  # the longest prompt that a command line takes makes 0.4 MB
HOST = ("prompt", "workflow")  # what ComfyUI writes into the files that it saves, as JSON
HOST_NAME = "ComfyUI"
NAME = re.compile(r"[^/\\\0]+")  # of a file, without folders of any system
WORD = re.compile(r"[a-z][a-z0-9_]*")

Value = str | bool | int | float | list  # lists of the others


@dataclass(frozen=True)
class Given:
    """A file that was read. role: the option that named it. strength: of a LoRA."""

    role: str
    name: str
    sha256: str
    strength: float | None = None


@dataclass(frozen=True)
class Receipt:
    """What made a file.

    command: of the command line. settings: its options by their names, with what the checkpoint's profile
        filled in; what had no part is left out.
    stages: of a chain, what each of its stages came to. files: what was read.
    versions: of Python and packages. machine: what kind of machine it was. noise: how noise is drawn.
    """

    command: str
    settings: Mapping[str, Value]
    stages: tuple[Mapping[str, Value], ...]
    files: tuple[Given, ...]
    versions: Mapping[str, str]
    machine: Mapping[str, Value]
    noise: str

    def text(self) -> str:
        """As JSON in ASCII, on one line."""
        said = {KEY: VERSION, **dataclasses.asdict(self)}
        said["files"] = [
            {name: value for name, value in file.items() if value is not None} for file in said["files"]
        ]
        return json.dumps(said, allow_nan=False)


def parse(text: str, name: str) -> Receipt:
    """The receipt that a text is. name: of its file, for messages.

    Raises:
        ValueError: cut off, damaged, or of another version.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the receipt of {shown(name)} is cut off or damaged; take another copy.") from error
    version = said.pop(KEY)
    if type(version) is not int or version != VERSION:
        raise ValueError(
            f"{shown(name)} has a receipt of version {shown(version, 40)}, not {VERSION}; read it with the "
            "UniVid that wrote it."
        )
    fields = {field.name for field in dataclasses.fields(Receipt)}
    if said.keys() != fields or not _fits(said):
        raise ValueError(f"the receipt of {shown(name)} is damaged; take another copy.")
    files = tuple(Given(**file) for file in said["files"])
    return Receipt(**{**said, "stages": tuple(said["stages"]), "files": files})


def _fits(said: dict) -> bool:
    """Whether all fields of a receipt have their types, and no name leads out of a folder."""
    mappings = [said["settings"], said["versions"], said["machine"]]
    if not all(isinstance(said[name], list) for name in ("stages", "files")):
        return False
    return (
        all(isinstance(said[name], str) for name in ("command", "noise"))
        and all(_is_mapping(part) for part in (*mappings, *said["stages"]))
        and all(isinstance(version, str) for version in said["versions"].values())
        and all(_is_file(file) for file in said["files"])
    )


def _is_mapping(part: object) -> bool:
    return isinstance(part, dict) and all(
        WORD.fullmatch(name) and (_is_value(value) or isinstance(value, list) and all(map(_is_value, value)))
        for name, value in part.items()
    )


def _is_value(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | bool) or isinstance(value, int) and abs(value) < 2**64


def _is_file(file: object) -> bool:
    return (
        isinstance(file, dict)
        and {"role", "name", "sha256"} <= file.keys() <= {"role", "name", "sha256", "strength"}
        and all(isinstance(file[name], str) for name in ("role", "name"))
        and WORD.fullmatch(file["role"]) is not None
        and NAME.fullmatch(file["name"]) is not None
        and file["name"] == Path(file["name"]).name != ".."  # Windows has drives, too
        and is_sha256(file["sha256"])
        and isinstance(file.get("strength", 0.0), float | int)
        and _is_value(file.get("strength", 0.0))
    )


def texts(path: str | Path) -> dict[str, str]:
    """What a file says of its making: "comment" of ours, "prompt" and "workflow" of ComfyUI.

    Raises:
        ValueError: absent, or neither a video, a PNG nor a folder of frames.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / IN_FOLDERS).exists():
            return {}
        with open_regular(path / IN_FOLDERS) as file:
            return {"comment": file.read(MOST_BYTES).decode("utf-8", "replace")}
    from .files import notes as door
    from .files.media import Unreadable

    try:
        return door.read_notes(path)
    except Unreadable as error:
        raise ValueError(
            f"{shown(path)} cannot be read: {error}; give an MP4, WebM, GIF or PNG file, or a folder of "
            "frames."
        ) from error


def read(path: str | Path) -> Receipt:
    """The receipt of a file.

    Raises:
        ValueError: as `texts` and `parse`, or it has none.
    """
    found = texts(path)
    if comment := ours(found):
        return parse(comment, str(path))
    if any(name in found for name in HOST):
        raise ValueError(
            f"{shown(path)} was saved by {HOST_NAME} and holds its workflow, but no receipt; open it there."
        )
    raise ValueError(f"{shown(path)} has no receipt; give a file that `python -m univid` wrote.")


def ours(found: Mapping[str, str]) -> str | None:
    """Of the texts of a file, the one that begins as a receipt does."""
    comment = found.get("comment", "")
    return comment if START.match(comment) else None


def words(name: str) -> str:
    """The name of a setting as one reads it."""
    return name.replace("_", " ")


def spoken(value: Value | None) -> str:
    """A value as one reads it, on one line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(spoken, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return shown(value, 4000) if value != "" else "nothing"


def differences(a: Receipt, b: Receipt, names: tuple[str, str]) -> list[str]:
    """What two files were made with that differs, a sentence each. names: of the files."""
    return list(_differences(a, b, tuple(map(shown, names))))


def _differences(a: Receipt, b: Receipt, names: tuple[str, str]) -> Iterator[str]:
    def unlike(what: str, first: Mapping, second: Mapping) -> Iterator[str]:
        for key in dict.fromkeys([*first, *second]):
            pair = (first.get(key), second.get(key))
            if pair[0] != pair[1]:
                yield _sentence(what.format(words(key)), pair, names)

    if a.command != b.command:
        yield _sentence("the command", (a.command, b.command), names)
    yield from unlike("{}", a.settings, b.settings)
    for number in range(max(len(a.stages), len(b.stages))):
        first, second = (dict(r.stages[number]) if number < len(r.stages) else {} for r in (a, b))
        yield from unlike(f"{{}} of stage {number + 1}", first, second)
    yield from _unlike_files(a, b, names)
    yield from unlike("the version of {}", a.versions, b.versions)
    yield from unlike("the machine's {}", a.machine, b.machine)
    if a.noise != b.noise:
        yield _sentence("the rule of noise", (a.noise, b.noise), names)


def _sentence(what: str, pair: tuple[Value | None, Value | None], names: tuple[str, str]) -> str:
    first, second = (shown(spoken(value), 240) for value in pair)
    if first == second:  # numbers that differ in their last digits, or long texts in their middle
        first, second = (shown(repr(value), 240) for value in pair)
    return f"{what}: {first} in {names[0]}, {second} in {names[1]}"


def _unlike_files(a: Receipt, b: Receipt, names: tuple[str, str]) -> Iterator[str]:
    """Files whose hashes or strengths differ; the name of one does not count."""
    for role in dict.fromkeys(file.role for file in (*a.files, *b.files)):
        first, second = ([file for file in r.files if file.role == role] for r in (a, b))
        for number in range(max(len(first), len(second))):
            pair = [files[number] if number < len(files) else None for files in (first, second)]
            if None not in pair and len({(file.sha256, file.strength) for file in pair}) == 1:
                continue
            said = [
                "none"
                if file is None
                else f"{shown(file.name)} ({short(file.sha256)})"
                + ("" if file.strength is None else f" at strength {file.strength:g}")
                for file in pair
            ]
            yield f"the file of {words(role)}: {said[0]} in {names[0]}, {said[1]} in {names[1]}"

"""Lists of prompts: a user's file, UCF-101's, which ships, and VBench's, which its package holds.

UCF-101's, ucf101_prompts.json, are those that PYoCo (2305.10474) wrote for its 101 classes, by class.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from univid.files.media import Unreadable
from univid.files.picture import picture_size
from univid.files.regular import open_regular
from univid.messages import shown
from univid.video import read_image

from . import vbench_environment

UCF101 = "ucf101"
VBENCH = "vbench"
SHIPPED = Path(__file__).parent / "ucf101_prompts.json"
MOST_BYTES = 2**26
LINES = (".jsonl", ".ndjson")
PLAIN = (".txt", "")


@dataclass(frozen=True)
class Row:
    """What a video is asked for; what is None, or no text, is as the command says for all.

    image: a picture's path. The others are the options of `python -m univid generate` of these names.
    """

    prompt: str = ""
    image: Path | None = None
    negative: str | None = None
    text_weight: float | None = None
    image_weight: float | None = None
    guidance: str | None = None
    guidance_scale: float | None = None
    text_guidance: float | None = None
    image_guidance: float | None = None
    guidance_rescale: float | None = None

    def said(self) -> dict:
        """What it says itself, by name."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


KEYS = tuple(field.name for field in fields(Row))
TEXTS = ("prompt", "image", "negative", "guidance")


def read(source: str, environment: Path) -> list[Row]:
    """The rows of a file, or of UCF101 or VBENCH.

    A file is JSON (a list of strings or objects with KEYS, or one object of names and prompts), a JSON value
    a line (.jsonl) or plain text, a prompt a line (.txt). Pictures are looked for from the file's folder.

    environment: where VBench's package is.

    Raises:
        ValueError: it cannot be read or is of another kind, a row says nothing or something unknown, or its
            picture cannot be read.
    """
    rows = []
    for number, (_, row) in enumerate(_listed(source, environment), start=1):
        if row.image is not None:
            row = replace(row, image=Path(source).parent / row.image)
            try:
                _check_picture(row.image)
            except ValueError as error:
                raise ValueError(f"row {number} of {shown(source, 80)}: {error}") from error
        rows.append(row)
    return rows


def by_name(source: str, environment: Path) -> dict[str, str]:
    """The prompts of a list as `read` takes it, by their names; one without a name is its own.

    Raises:
        ValueError: as `read`, but that no picture is looked for.
    """
    rows = _listed(source, environment)
    return {name or row.prompt: row.prompt for name, row in rows if row.prompt.strip()}


def _listed(source: str, environment: Path) -> list[tuple[str | None, Row]]:
    """The rows with their names, where they have one; pictures are as they are named there."""
    if source == VBENCH:
        # Two prompts stand there twice, for several dimensions, which share their videos.
        listed = (entry["prompt_en"] for entry in vbench_environment.entries(environment))
        return [(None, Row(prompt)) for prompt in dict.fromkeys(listed)]
    path = SHIPPED if source == UCF101 else Path(source)
    rows = []
    for number, (name, given) in enumerate(_entries(path), start=1):
        try:
            rows.append((name, _row(given)))
        except ValueError as error:
            raise ValueError(f"row {number} of {shown(path, 80)}: {error}") from error
    if not rows:
        raise ValueError(f"expected prompts in {shown(path)}, got none; write one a line.")
    return rows


def _entries(path: Path) -> Iterator[tuple[str | None, object]]:
    """What the file lists, as names and JSON values."""
    suffix = path.suffix.lower()
    if suffix not in (".json", *LINES, *PLAIN):
        raise ValueError(
            f"expected a list of prompts as .json, .jsonl or .txt, {UCF101} or {VBENCH}, got {shown(path)}."
        )
    with open_regular(path) as file:
        found = file.read(MOST_BYTES + 1)
    if len(found) > MOST_BYTES:
        raise ValueError(f"{shown(path)} is larger than {MOST_BYTES:,} bytes; split it.")
    try:
        text = found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{shown(path)} is no UTF-8 text (byte {error.start:,}); save it in that encoding."
        ) from error
    lines = [line.strip() for line in text.split("\n")]
    if suffix in PLAIN:
        yield from ((None, line) for line in lines if line)
    elif suffix in LINES:
        for number, line in enumerate(lines, start=1):
            if line:
                yield None, _parsed(line, f"line {number} of {shown(path, 80)}")
    else:
        content = _parsed(text, shown(path)) if text.strip() else []
        named = isinstance(content, dict) and all(isinstance(value, str) for value in content.values())
        if not (isinstance(content, list) or named and not content.keys() <= set(KEYS)):
            raise ValueError(
                f"expected a list of prompts in {shown(path)}, got {_kind(content)}; put [ ] around the rows."
            )
        yield from content.items() if named else ((None, value) for value in content)


def _parsed(text: str, name: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{name} is no JSON that can be read; mend it, or write plain text as .txt."
        ) from error


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def _row(given: object) -> Row:
    if isinstance(given, str):
        given = {"prompt": given}
    if not isinstance(given, dict):
        raise ValueError(f"expected a prompt or an object, got {_kind(given)}.")
    if unknown := sorted(given.keys() - set(KEYS)):
        raise ValueError(
            f"expected the keys {', '.join(KEYS)}, got {shown(', '.join(unknown))}; take it out."
        )
    for key, value in given.items():
        if key in TEXTS:
            if not isinstance(value, str):
                raise ValueError(f"{key} must be a text, got {_kind(value)}.")
            if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
                raise ValueError(
                    f"{key} has a letter that no text can have ({shown(value, 60)}); take it out."
                )
        elif type(value) not in (int, float) or not -1e9 < value < 1e9:
            raise ValueError(f"{key} must be a finite number, got {shown(value, 40)}.")
    row = Row(**given)
    if row.image is None:
        if not row.prompt.strip():
            raise ValueError(
                "expected a prompt, an image or both, got neither; say what the video shall show."
            )
        if row.image_weight is not None:
            raise ValueError("image_weight needs a picture; give an image too.")
    return row


def _check_picture(path: Path) -> None:
    try:
        picture_size(path)
    except Unreadable:
        read_image(path)  # which says why

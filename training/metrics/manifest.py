"""The folder that `sample` writes: what its videos are called and how they are made, and which are whole.

sample.json     by which checkpoint and settings all of them are made; what may not change
manifest.jsonl  written when all are there: a line for each, by index
"""

import contextlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from training import distributed
from training.config import differing_fields
from training.folder import held_by_all, write_json
from univid import receipt
from univid.files.output import new_file
from univid.files.regular import open_regular, read_json
from univid.messages import shown
from univid.receipt import Receipt
from univid.video import open_video

NAME = "manifest.jsonl"
SETTINGS = "sample.json"
FREE = re.compile(r"clips|prompts\.source|versions\..*|.*\.name")  # may differ when a folder is continued
LONGEST = 80  # letters of a prompt in a name
LINE = 2**20  # bytes of a line of the manifest
VBENCH_LETTERS = re.compile(r"[/\\\0-\x1f\x7f]")
log = logging.getLogger(__name__)


def file_name(words: str, seed: int) -> str:
    """A name of words and a seed that every file system takes, without suffix; one seed has one name."""
    plain = re.sub(r"[^0-9a-z]+", "_", words.lower()).strip("_")[:LONGEST].strip("_")
    return f"{plain or 'clip'}-{seed}"


def vbench_name(prompt: str, sample: int) -> str:
    """What VBench looks for, without suffix.

    Raises:
        ValueError: no file can be called so.
    """
    name = f"{prompt}-{sample}"
    if VBENCH_LETTERS.search(prompt) or not prompt.strip() or len(name.encode()) > 250:
        raise ValueError(
            f"VBench's names are the prompts, and no file can be called {shown(name, 80)!r}; leave out "
            "--names vbench."
        )
    return name


@contextlib.contextmanager
def claimed(out: Path, settings: Mapping) -> Iterator[None]:
    """Make `out` the folder of these settings while the block runs; its "clips" may become more.

    Raises:
        ValueError: another run is at work there, or it holds videos of other settings, or other files.
    """
    if distributed.rank() == 0 and not (out / SETTINGS).exists() and out.exists() and _foreign(out):
        raise ValueError(f"{shown(out)} already holds other files; name a new folder.")
    with held_by_all(out):
        path = out / SETTINGS
        kept = read_json(path) if path.exists() else dict(settings)
        distributed.barrier()  # all have looked
        differing = [name for name in differing_fields(kept, dict(settings)) if not FREE.fullmatch(name)]
        if differing:
            raise ValueError(
                f"{shown(out)} holds videos of other settings ({shown(', '.join(differing))}); take another "
                "folder, or put them back to go on."
            )
        if type(kept.get("clips")) is not int:
            raise ValueError(f"{shown(path)} is damaged; put it back from a copy, or take another folder.")
        if settings["clips"] < kept["clips"]:
            raise ValueError(
                f"{shown(out)} is a folder of {kept['clips']:,} videos, got {settings['clips']:,} asked for; "
                "ask for as many, or take another folder."
            )
        if distributed.rank() == 0:
            write_json(path, settings)
        yield


def _foreign(out: Path) -> bool:
    return not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())


def whole(path: Path, expected: Receipt, frames: int) -> bool:
    """Whether a video is there, complete and made as a receipt says; of a damaged one nothing is in the way.

    Raises:
        ValueError: another file is in its place.
    """
    if not os.path.lexists(path):
        return False
    try:
        comment = receipt.ours(receipt.texts(path))
        found = receipt.parse(comment, path.name) if comment else None
        complete = _number(path) == frames
    except ValueError as error:
        return _damaged(path, str(error))
    if found is None:
        raise ValueError(f"{shown(path)} is in the way, as it is none of this run's videos; move it.")
    asked, made = (_what(one) for one in (expected, found))
    if differing := differing_fields(made, asked):
        raise ValueError(
            f"{shown(path, 80)} was made with other settings ({shown(', '.join(differing))}); move it, or "
            "put them back."
        )
    return complete or _damaged(path, f"it has not its {frames} frames")


def _what(made: Receipt) -> dict:
    """What a video is made of, as JSON values: settings, and files by their content."""
    files = [[file.role, file.sha256, file.strength] for file in made.files]
    return json.loads(json.dumps({"settings": dict(made.settings), "files": files, "noise": made.noise}))


def _number(path: Path) -> int:
    """How many frames it has."""
    if path.is_dir():
        return len(list(path.glob("frame_*.png")))
    with open_video(path) as video:
        return video.number


def _damaged(path: Path, why: str) -> bool:
    log.warning("%s is damaged and is made again: %s", shown(path), why)
    if path.is_dir():  # a file is replaced when the new one is complete
        shutil.rmtree(path)
    return False


def write(out: Path, rows: list[dict]) -> None:
    """Write the manifest. rows: by index, each with at least "file" and "prompt"."""
    with new_file(out / NAME) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(folder: Path) -> list[dict]:
    """The rows of a folder's manifest that name a "file", whoever wrote it; none = it has no manifest.

    What a row says of "prompt" and "image" is text, of "fps" a number above 0.

    Raises:
        ValueError: a line is something else.
    """
    path, rows = folder / NAME, []
    if not path.exists():
        return rows
    with open_regular(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE), b""), 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{shown(path)}, line {number}: no JSON; correct the line.") from error
            if not isinstance(row, dict) or not isinstance(row.get("file", ""), str):
                raise ValueError(f'{shown(path)}, line {number}: expected {{"file": ...}}; correct the line.')
            texts = [row.get("prompt", ""), row.get("image", "")]
            if not all(isinstance(text, str) for text in texts) or not _is_rate(row.get("fps", 1)):
                raise ValueError(
                    f'{shown(path)}, line {number}: "prompt" and "image" must be text and "fps" a number '
                    "above 0; correct the line."
                )
            if "file" in row:
                rows.append(row)
    return rows


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf

"""The key of a page: which of its videos are A's. Who votes must not have it; who counts needs it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from univid.files.regular import read_json
from univid.messages import shown

FORMAT, VERSION = "univid-blind-key", 1
ENDING = "-key.json"


@dataclass(frozen=True)
class KeyPair:
    """A pair of the page: its name in the folders, and the names of A's and B's video on the page."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class Key:
    """page: its identity. names: of A and B. pairs: in the order of their numbers on the page, from 1."""

    page: str
    names: tuple[str, str]
    seed: int
    questions: tuple[str, ...]
    pairs: tuple[KeyPair, ...]

    def to_json(self) -> str:
        """The key as a file holds it."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"


def key_path(page: Path) -> Path:
    """Beside the folder of a page, not in it: the folder is what is handed out."""
    return page.with_name(page.name + ENDING)


def read_key(path: Path) -> Key:
    """The key that `to_json` wrote.

    Raises:
        ValueError: it cannot be read, or is no key.
    """
    found = read_json(path)
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise ValueError(f"{shown(path)} is no key of a page; give the one that was written beside it.")
    try:
        pairs = tuple(KeyPair(**pair) for pair in found["pairs"])
        a, b = map(str, found["names"])
        return Key(str(found["page"]), (a, b), found["seed"], tuple(found["questions"]), pairs)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{shown(path)} is a damaged key; copy it again.") from error


def find_key(page: str, folders: list[Path]) -> Path:
    """The key of a page, in one of these folders.

    Raises:
        ValueError: there is none.
    """
    for path in sorted({path for folder in folders for path in folder.glob(f"*{ENDING}")}):
        try:
            if read_key(path).page == page:
                return path
        except ValueError:  # another file of that ending
            continue
    raise ValueError(f"no key of page {shown(page, 40)} lies here or beside the votes; name it with --key.")

"""The weights of one part of a diffusers folder: one file, or several with an index."""

import re
from pathlib import Path

from ..messages import shown
from .regular import read_json
from .tensors import Weights
from .weights import open_weights

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of diffusers, and of transformers
KINDS = ("safetensors", "bin")
FILE = re.compile(
    rf"(?P<stem>{'|'.join(STEMS)})(\.(?P<variant>\w+))?\.(?P<kind>{'|'.join(KINDS)})"
    r"(?P<index>\.index(\.(?P<last>\w+))?\.json)?"
)
MOST_FILES = 1000


def open_folder(folder: Path) -> Weights:
    """The tensors of a part's folder: .safetensors before .bin, whole precision before variants as `.fp16`.

    Raises:
        ValueError: no such file, or as `open_weights`; an index that names other folders or no such tensors.
    """
    try:
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise ValueError(
            f"{shown(folder)} cannot be read ({error.strerror}); check who may read it."
        ) from error
    found = [match for name in names if (match := FILE.fullmatch(name))]
    if not found:
        others = [name for name in names if name.endswith((*KINDS, "ckpt", "pth"))]
        held = f" but {shown(', '.join(others), 90)}" if others else ""
        raise ValueError(
            f"{shown(folder)} holds no {STEMS[0]}.safetensors{held}; give a whole diffusers folder."
        )
    first = min(found, key=_rank)[0]
    return _open_index(folder / first) if first.endswith(".json") else open_weights(folder / first)


def _rank(match: re.Match) -> tuple:
    variant = match["variant"] or match["last"] or ""
    preferred = {"": 0, "fp16": 1}.get(variant, 2)
    return KINDS.index(match["kind"]), preferred, STEMS.index(match["stem"]), match[0]


def _open_index(path: Path) -> Weights:
    """All tensors of the files that an index lists."""
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ValueError(f"{shown(path)} has no weight_map of file names; download or copy it again.")
    files = sorted(set(listed.values()))
    for name in files:
        if re.fullmatch(r"\w[\w.+ -]{0,254}", name) is None:
            raise ValueError(
                f"{shown(path)} names {shown(name)}, which is no file of its folder; take another."
            )
    if len(files) > MOST_FILES:
        raise ValueError(f"{shown(path)} names {len(files):,} files, more than {MOST_FILES:,}; take another.")
    entries, places, home = {}, {}, {}
    for name in files:
        part = open_weights(path.with_name(name))
        if twice := sorted(part.entries.keys() & entries.keys()):
            raise ValueError(
                f"{shown(part.path)} has {shown(twice[0])}, as {home[twice[0]]} has; download both again."
            )
        entries |= part.entries
        places |= part.places
        home |= dict.fromkeys(part.entries, name)
    for tensor, name in listed.items():
        if home.get(tensor) != name:
            raise ValueError(f"{shown(path.with_name(name))} lacks {shown(tensor)}; download it again.")
    return Weights(path, entries, places, metadata={})

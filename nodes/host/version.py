"""Whether this ComfyUI and its Python can run the pack; imports nothing that may be missing."""

import importlib
import re
import sys
from importlib import metadata
from pathlib import Path

MINIMUM = (0, 19, 0)
REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
MODULES = {"pillow": "PIL"}  # where a package's module has another name
NOT_FOR_NODES = {"open_clip_torch", "tqdm"}


def problem(found: str) -> str | None:
    """Why the pack cannot run on a host of this version and its Python, in one line; None = it can."""
    return _too_old(found) or _lacking()


def _too_old(found: str) -> str | None:
    parts = found.split(".")[:3]
    if not all(part.isdigit() for part in parts):  # a developer's own build: let it try
        return None
    if tuple(map(int, parts)) >= MINIMUM:
        return None
    needed = ".".join(map(str, MINIMUM[:2]))
    return f"UniVid needs ComfyUI {needed} or newer, but this is {found}; update ComfyUI to use its nodes."


def _lacking() -> str | None:
    """Packages of requirements.txt that are not there or too old, and the command that brings them."""
    wanted = re.findall(r"^([\w-]+)((?:>=[\d.]+)?)", REQUIREMENTS.read_text("utf-8"), re.MULTILINE)
    lacking = [
        name + least
        for name, least in wanted
        if name not in NOT_FOR_NODES and not (_imports(name) and _is_at_least(name, least))
    ]
    if not lacking:
        return None
    python, file = (f'"{name}"' if " " in name else name for name in (sys.executable, str(REQUIREMENTS)))
    return (
        f"UniVid needs {', '.join(lacking)}, which ComfyUI's Python lacks; to use its nodes, run this and "
        f"restart ComfyUI: {python} -m pip install -r {file}"
    )


def _imports(package: str) -> bool:
    try:
        importlib.import_module(MODULES.get(package, package))
    except ImportError:
        return False
    return True


def _is_at_least(package: str, least: str) -> bool:
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:  # put there by hand
        return True
    return _numbers(found) >= _numbers(least)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]

"""The environment of its own that VBench's package needs: made on request, asked for its list of prompts.

vbench 0.1.5 is bound to transformers 4.33.2 and numpy 1, so it never meets the packages of this project, and
to Python 3.10 or 3.11, for which the tokenizers of those days are built.
"""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from univid.files.hashes import cache_folder
from univid.files.regular import read_json
from univid.messages import shown

VERSION = "0.1.5"
# Its checkpoints are pickles, which torch reads as such up to 2.5; clip imports pkg_resources of setuptools.
PACKAGES = (f"vbench=={VERSION}", "torch>=2.1,<2.6", "torchvision", "setuptools<81")
PYTHONS = ((3, 11), (3, 10))
MARK = "univid.json"  # in an environment that is complete
LIST = "VBench_full_info.json"
log = logging.getLogger(__name__)


def default_folder() -> Path:
    """Where it lies if nothing else is said."""
    return cache_folder() / "vbench"


def interpreter(folder: Path) -> Path:
    """The Python of the environment.

    Raises:
        ValueError: there is none, or it is not complete.
    """
    if not (folder / MARK).is_file():
        raise ValueError(
            f"VBench has no environment in {shown(folder)}; make it with `python -m training vbench "
            "--install`, or name another one with --environment."
        )
    return _python(folder)


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def list_path(folder: Path) -> Path:
    """VBench's list of prompts and what is asked of each.

    Raises:
        ValueError: as `interpreter`, or the package lacks it.
    """
    interpreter(folder)
    places = ("lib/python3*/site-packages", "Lib/site-packages")
    found = [path for place in places for path in folder.glob(f"{place}/vbench/{LIST}")]
    if not found:
        raise ValueError(f"{shown(folder)} has no vbench/{LIST}; make the environment anew with --install.")
    return found[0]


def entries(folder: Path) -> list[dict]:
    """Its 946 prompts, in its order, each as "prompt_en" with its "dimension"s; two stand there twice.

    Raises:
        ValueError: as `list_path`, or it is damaged.
    """
    path = list_path(folder)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(entry["prompt_en"], str) and entry["dimension"] for entry in found):
            return found
    except (ValueError, TypeError, LookupError):
        pass
    raise ValueError(f"{shown(path)} is damaged; make the environment anew with --install.")


def install(folder: Path, python: str | None = None) -> str:
    """Make the environment unless it is there, and say so. python: to make it with, None = one that is found.

    Raises:
        ValueError: no Python that fits, the folder holds something else, or the packages cannot be had.
    """
    if (folder / MARK).is_file():
        return f"{shown(folder)}: VBench {read_json(folder / MARK)['vbench']} is there"
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise ValueError(f"{shown(folder)} holds something else; name another folder with --environment.")
    python = _fitting(python)
    log.warning("installing VBench into %s: several GB, some minutes", shown(folder))
    _call([python, "-m", "venv", "--clear", str(folder)], "venv")
    inside = str(_python(folder))
    _call([inside, "-m", "pip", "install", "--disable-pip-version-check", *PACKAGES], "pip")
    _call([inside, "-c", "import vbench.temporal_flickering"], "the package's first import")
    (folder / MARK).write_text(json.dumps({"vbench": VERSION}) + "\n", encoding="utf-8")
    return f"{shown(folder)}: VBench {VERSION} was installed"


def _fitting(python: str | None) -> str:
    """A Python that the package's bounds allow."""
    spoken = " or ".join(f"{major}.{minor}" for major, minor in reversed(PYTHONS))
    if python is not None:
        if (found := _version(python)) not in PYTHONS:
            said = "none that runs" if found is None else f"Python {found[0]}.{found[1]}"
            raise ValueError(f"VBench {VERSION} needs Python {spoken}, got {said} as {shown(python)}.")
        return python
    names = [sys.executable, *(f"python{major}.{minor}" for major, minor in PYTHONS)]
    for name in names:
        if _version(name) in PYTHONS:
            return name
    raise ValueError(
        f"VBench {VERSION} needs Python {spoken}, found none; install one, or name it: --python."
    )


def _version(python: str) -> tuple[int, int] | None:
    """Major and minor; None = it is not there, or does not run."""
    path = shutil.which(python)
    if path is None:
        return None
    done = subprocess.run(
        [path, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True
    )
    found = re.fullmatch(r"(\d+) (\d+)\s*", done.stdout)
    return (int(found[1]), int(found[2])) if found else None


def _call(command: list[str], what: str) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode:
        raise ValueError(
            f"VBench cannot be installed, {what} ended with {done.returncode}: {last_words(done.stdout)}; "
            "mend that, and run it again."
        )


def last_words(output: str) -> str:
    """Of what a program wrote, the last line that says something, errors before the rest."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"ERROR|[\w.]*(Error|Exception)\b", line)]
    return shown((errors or lines or ["nothing was said"])[-1], 200)

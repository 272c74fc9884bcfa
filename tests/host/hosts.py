"""Which ComfyUIs there are to test on, and a python for each that has what the tests need."""

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLOOR = (0, 19)  # the oldest host that the pack supports
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "univid"
MODULES = {"pillow": "PIL", "open_clip_torch": "open_clip"}  # where a package's module has another name


@dataclasses.dataclass(frozen=True)
class Host:
    """A ComfyUI folder."""

    root: Path

    @cached_property
    def version(self) -> str:
        return re.search(r'__version__ = "(.+?)"', (self.root / "comfyui_version.py").read_text())[1]

    @property
    def supported(self) -> bool:
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:2]) >= FLOOR

    @property
    def own_python(self) -> Path:
        """The interpreter that the user starts this host with, as far as one can tell."""
        candidates = [self.root / venv / "bin" / "python" for venv in (".venv", "venv")]
        candidates.append(Path(os.environ.get("COMFYUI_PYTHON") or sys.executable))
        return next(python for python in candidates if python.exists())

    @cached_property
    def lacking(self) -> list[str]:
        """The modules that pack and tests need, and `own_python` does not have."""
        names = re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE) + ["pytest"]
        modules = [MODULES.get(name, name) for name in names]
        probe = (
            "import importlib.util, sys; print(*(m for m in sys.argv[1:] if not importlib.util.find_spec(m)))"
        )
        return _output(self.own_python, "-c", probe, *modules).split()

    @cached_property
    def python(self) -> Path:
        """`own_python`, or where that lacks packages a layer above it that has them: it stays untouched."""
        if not self.lacking:
            return self.own_python
        content = f"{self.own_python} {(ROOT / 'requirements.txt').read_text()}"
        layer = CACHE / f"host-python-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
        python = layer / "bin" / "python"
        if not (layer / "complete").exists():
            print(f"{self.own_python} lacks packages that pack or tests need; putting them into {layer} ...")
            _output(self.own_python, "-m", "venv", "--clear", layer)
            site = "import sysconfig; print(sysconfig.get_path('purelib'))"
            (Path(_output(python, "-c", site)) / "host.pth").write_text(_output(self.own_python, "-c", site))
            _output(python, "-m", "pip", "install", "--quiet", "-r", ROOT / "requirements.txt", "pytest")
            (layer / "complete").touch()
        return python

    def __str__(self):
        return f"ComfyUI {self.version}"


def find_hosts() -> list[Host]:
    """Named by COMFYUI_PATH; else the one that holds this pack; else those at home. Newest first."""
    if named := os.environ.get("COMFYUI_PATH"):
        folders = [Path(name).expanduser() for name in named.split(os.pathsep) if name]
        if wrong := [str(folder) for folder in folders if not _is_host(folder)]:
            raise ValueError(f"expected COMFYUI_PATH to name ComfyUI folders, got {wrong} without a main.py.")
    else:
        home = Path.home()
        folders = [folder for folder in [ROOT.parents[1]] if _is_host(folder)]
        folders = folders or [f for f in [home / "ComfyUI", *home.glob("ComfyUI-*")] if _is_host(f)]
    hosts = [Host(folder.resolve()) for folder in folders]
    return sorted(
        hosts, key=lambda host: [int(part) for part in re.findall(r"\d+", host.version)], reverse=True
    )


def _is_host(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfyui_version.py").is_file()


def _output(*command) -> str:
    return subprocess.run(
        [str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()

"""The library and its command line where only what Windows has is there: see windows.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden_weights import golden_state
from PIL import Image

from univid.__main__ import split_strength

TESTS = Path(__file__).parent
DRIVE = "D:\\videos\\clips 1"  # a folder's name here, and a path there
pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux pretends to be Windows")

EVERYTHING = """
import importlib, pkgutil, univid
for module in pkgutil.walk_packages(univid.__path__, "univid."):
    importlib.import_module(module.name)
"""
COMMANDS = r"""
import sys
from pathlib import Path

import univid
from univid.__main__ import main
from univid.checkpoints import export, import_file, load
from univid.checkpoints.lora import LowRank, Lora, write_lora
from univid.video import read_video

here, source, small = (Path(word) for word in sys.argv[1:])
picture, checkpoint, style = here / "picture.png", here / "模型.safetensors", here / "style.safetensors"

def run(*words):
    assert main([*map(str, words), "--debug"]) == 0, words

checkpoint.write_bytes(small.read_bytes())
weight = load(checkpoint).unet.middle_block[1].proj_in.weight
layer = LowRank(weight.new_ones(2, weight.shape[1]), weight.new_ones(weight.shape[0], 2), 0.5)
write_lora(style, Lora({"middle_block.1.proj_in": layer}, {}))
run("inspect", checkpoint)
common = ("--prompt", "a red circle", "--checkpoint", checkpoint, "--image", picture)
for name in ("a.mp4", "a.mp4", "b.webm", "c.gif", "frames"):  # the second a.mp4 replaces the first
    run("generate", *common, "--lora", f"{style}:0.5", "--out", here / name, "--sheet", here / "a.png")
run("generate", *common, "--video", here / "a.mp4", "--denoise", "0.5", "--out", here / "again.mp4")
run("sweep", *common, "--text-weights", "1", "--image-weights", "0", "1", "--out", here / "grid.png")
assert read_video(here / "again.mp4")[0].shape == (1, 3, 3, 32, 32)

for _ in range(2):  # the second replaces the first
    import_file(source, here / "imported.safetensors", head_channels=16)
run("inspect", here / "imported.safetensors")
export(here / "imported.safetensors", here / "exported")
import_file(here / "exported", here / "imported.safetensors", head_channels=16)
print("\n".join(str(file.relative_to(here)) for file in sorted(here.rglob("*")) if file.is_file()))
"""
MADE = """a.mp4 a.png again.mp4 b.webm c.gif exported/unet/config.json
exported/unet/diffusion_pytorch_model.safetensors frames/frame_0001.png frames/frame_0002.png
frames/frame_0003.png frames/receipt.json grid.png imported.safetensors picture.png
style.safetensors""".split()


def disguised(
    package: str, script: str, *arguments, folder: Path = TESTS.parent
) -> subprocess.CompletedProcess:
    """Run a script in a process of its own, where `package` sees a Windows; it prints in cp1252."""
    prologue = f"import sys; sys.path[:0] = [{str(TESTS.parent)!r}, {str(TESTS)!r}]\n"
    prologue += f"import windows; windows.disguise({package!r})\n"
    return subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", prologue + script, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONIOENCODING": "cp1252", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="cp1252",
    )


def test_every_module_imports():
    done = disguised("univid", EVERYTHING)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_command_runs(tmp_path, small_checkpoint):
    here = tmp_path / DRIVE
    here.mkdir()
    Image.effect_noise((40, 24), 80).convert("RGB").save(here / "picture.png")
    torch.save(golden_state("modelscope"), tmp_path / "source.pth")
    done = disguised("univid", COMMANDS, here, tmp_path / "source.pth", small_checkpoint, folder=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-len(MADE) - 1 :] == [*MADE, "\\u6a21\\u578b.safetensors"]


def test_a_strength_behind_a_path_with_a_drive():
    path = "C:\\loras\\style.safetensors"
    assert split_strength(path) == (path, 1.0)
    assert split_strength(f"{path}:0.5") == (path, 0.5)
    assert split_strength("loras\\style.safetensors:-1") == ("loras\\style.safetensors", -1.0)


OPENED = "opened = open('file', encoding='utf-8')\n"
HIDDEN = {  # what the module "probe" does -> the error
    "import fcntl": "ModuleNotFoundError",
    "import resource as r": "ModuleNotFoundError",
    "from os import pread": "ImportError",
    "import os\nos.fork()": "AttributeError",
    "import os.path\nos.O_NOFOLLOW": "AttributeError",
    "import signal\nsignal.SIGHUP": "AttributeError",
    "import mmap\nmmap.MAP_PRIVATE": "AttributeError",
    "open('file')": "EncodingWarning",
    "import pathlib\npathlib.Path('file').read_text()": "EncodingWarning",
    f"import os\n{OPENED}os.replace('other', 'file')": "PermissionError",
    f"import pathlib\n{OPENED}pathlib.Path('file').unlink()": "PermissionError",
    f"import os, shutil\n{OPENED}shutil.rmtree('.')": "PermissionError",
    "import mmap, os\nwith open('file', 'rb') as file:\n    mapped = mmap.mmap(file.fileno(), 0, access=1)\n"
    "os.remove('file')": "PermissionError",
    "import os\nos.rename('other', 'file')": "FileExistsError",
    "import os\nos.mkdir('folder')\nos.replace('other', 'folder')": "FileExistsError",
    "import os\nos.replace('other', '12:30.txt')": "OSError",
}
THERE = """
import importlib.util, mmap, os, pathlib, signal, sys, tempfile, time
assert os.name == "nt" and sys.platform == "win32" and sys.argv
os.getpid(), os.cpu_count(), os.O_CREAT, signal.SIGTERM, signal.signal, time.monotonic(), mmap.ACCESS_READ
with open("file", encoding="utf-8") as file:
    assert file.read() == "file"
os.replace("file", "other")
pathlib.Path("other").unlink()
with tempfile.TemporaryFile() as file:
    file.write(b"1")
"""


@pytest.mark.parametrize("source", [*HIDDEN, THERE], ids=lambda text: text.splitlines()[-1])
def test_the_disguise_hides_what_it_says_and_no_more(tmp_path, source):
    for name in ("file", "other"):
        (tmp_path / name).write_text(name)
    (tmp_path / "probe.py").write_text(source)
    done = disguised("probe", "sys.path.insert(0, '.')\nimport probe", folder=tmp_path)
    error = HIDDEN.get(source)
    assert done.returncode == (error is not None), done.stderr
    assert error is None or done.stderr.splitlines()[-1].startswith(error), done.stderr

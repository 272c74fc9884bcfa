"""Training where only what Windows has is there: see windows.py. One process; several need POSIX."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from preparing import make_raw

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux pretends to be Windows")

EVERYTHING = """
import importlib, pkgutil, training
for module in pkgutil.walk_packages(training.__path__, "training."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
# The library is disguised with it, as training calls it.
COMMANDS = r"""
import json, sys
from pathlib import Path

from training.__main__ import main

here, base, raw = (Path(word) for word in sys.argv[1:])
small = ["--base", str(base), *"--buckets 64 64 --frames 4 --min-frames 2 --references 2".split()]
for _ in range(2):  # the second finds all done
    main(["prepare", "--out", str(here / "ready"), "--clips", str(raw / "clips"), *small])
main(["prepare", "--out", str(here / "ready"), "--verify"])
words = ["--root", str(here / "runs"), "finetune", "--base", str(base), "--name", "n", "--rank", "2"]
words += "--batch.video 1 --options.data.workers 0 --options.samples.validation 1 --logs.save-every 1".split()
words += "--options.data.min-frames 2 --options.data.max-frames 3 --options.samples.steps 1".split()
for data in (raw / "clips", here / "ready" / "clips"):
    for steps in ("1", "3"):  # the second goes on
        main([*words, "--data", str(data), "--name", data.parent.name, "--steps", steps])
main(["--root", str(here / "runs"), "export", "--run", "ready"])
print("\n".join(sorted(file.name for file in (here / "runs" / "ready").iterdir())))
"""


def disguised(script: str, *arguments) -> subprocess.CompletedProcess:
    """Run a script in a process of its own, where training sees a Windows."""
    prologue = f"import sys; sys.path[:0] = [{str(TESTS.parent)!r}, {str(TESTS)!r}]\n"
    prologue += "import windows; windows.disguise('training')\n"
    return subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", prologue + script, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_every_module_of_training_imports():
    done = disguised(EVERYTHING)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_data_is_prepared_and_trained_on(small_checkpoint, tmp_path):
    done = disguised(COMMANDS, tmp_path, small_checkpoint, make_raw(tmp_path / "raw"))
    assert done.returncode == 0, done.stderr[-3000:]
    files = done.stdout.split()[-9:]
    assert {"final.pt", "ready.safetensors", "step_00000003", "metrics.jsonl"} <= set(files)

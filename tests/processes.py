"""Start a program in two processes as a user does, by torchrun."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]


def torchrun(*program: str | Path, deaths: int = 0, threads: int = 1) -> None:
    """Run it to its end; when a process dies, torchrun starts both again.

    deaths: how many are meant. One more is survived too, but said. threads: of each process.
    """
    command = f"-m torch.distributed.run --nproc-per-node 2 --standalone --max-restarts {deaths + 1}".split()
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads), "PYTHONFAULTHANDLER": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *command, *map(str, program)],
        env=environment, timeout=600, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    if done.stderr.count("failed (exitcode") > deaths:
        warnings.warn(f"a process died that was not meant to:\n{done.stderr[-6000:]}", stacklevel=2)

"""Kill a run again and again, and compare what becomes of it with a run left in peace.

    python -m tests.chaos                              # make chaos: twenty kills of two processes
    python -m tests.chaos --processes 1 --steps 150    # of one, which does more steps between two kills

A U-Net trains on random latents by FSDP2 and saves a state every second step. Each start is killed with all
its processes (SIGKILL) at a random moment after its first new step, so also while a state is being written.
In the end losses and weights have to equal those of the run in peace, bit for bit.
"""

import argparse
import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from training import distributed
from training.config import LogsConfig
from training.loop import train
from training.report import read
from training.saved import load, states, step_of

from .random_latents import SHALLOW, Denoising, recipe

ROOT = Path(__file__).parents[1]


def job(steps: int):
    return dataclasses.replace(recipe(parallel="fsdp"), steps=steps, logs=LogsConfig(save_every=2))


def start(folder: Path, options: argparse.Namespace) -> subprocess.Popen:
    many = f"torch.distributed.run --nproc-per-node {options.processes} --standalone -m tests.chaos"
    command = ["-m", *(many if options.processes > 1 else "tests.chaos").split()]
    return subprocess.Popen(
        [sys.executable, *command, "--steps", str(options.steps), "--train", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def steps_done(folder: Path) -> int:
    rows = read(folder / "metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0


def written_since(moment: float, folder: Path) -> bool:
    """Whether the run has cut its metrics back to its newest state, as it does when it goes on."""
    path = folder / "metrics.jsonl"
    return path.exists() and path.stat().st_mtime > moment


def saved_step(folder: Path) -> int:
    return max(map(step_of, states(folder)), default=0)


def kill_once(folder: Path, options: argparse.Namespace, rng: random.Random) -> dict | None:
    """Start the run and kill it; what it had done and what it left. None: it ended before it was killed."""
    before, started = saved_step(folder), time.time()
    child = start(folder, options)
    while child.poll() is None and not (written_since(started, folder) and steps_done(folder) > before):
        time.sleep(0.01)
    moment = time.monotonic() + rng.uniform(0, 4)
    while child.poll() is None and time.monotonic() < moment:
        time.sleep(0.002)
    if child.poll() is not None:
        return None
    # torchrun starts its workers in sessions of their own
    workers = subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True).stdout.split()
    for process in (child.pid, *map(int, workers)):
        os.kill(process, signal.SIGKILL)
    child.wait()
    writing = list(folder.glob(".partial_step_*"))
    return {"step": steps_done(folder), "saved": saved_step(folder), "writing": bool(writing)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2, help="of the run; 1 = without torchrun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        with distributed.process_group():
            train(job(options.steps), Denoising(job(options.steps), SHALLOW), options.train, progress=False)
        return

    rng, kills = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as root:
        peace, chaos = Path(root) / "peace", Path(root) / "chaos"
        if start(peace, options).wait():
            raise SystemExit(
                "expected the run in peace to end well, it failed; run tests/test_distributed.py"
            )
        while len(kills) < options.kills:
            kill = kill_once(chaos, options, rng)
            if kill is None:
                raise SystemExit(
                    f"expected {options.kills} kills, the run ended after {len(kills)}; add --steps"
                )
            kills.append(kill)
            print(
                f"kill {len(kills):2}: at step {kill['step']:3}, newest whole state {kill['saved']:3}"
                + (", a state half written" if kill["writing"] else ""),
                flush=True,
            )
        if start(chaos, options).wait():
            raise SystemExit("expected the run to end well after the kills, it failed")
        same_losses = (peace / "metrics.jsonl").read_bytes() == (chaos / "metrics.jsonl").read_bytes()
        finals = load(peace / "final.pt"), load(chaos / "final.pt")
        same_weights = all(
            torch.equal(tensor, finals[1][part][name])
            for part in ("model", "ema")
            for name, tensor in finals[0][part].items()
        )
    lost = [kill["step"] - kill["saved"] for kill in kills]
    half = sum(kill["writing"] for kill in kills)
    print(f"\n{len(kills)} kills, {half} while a state was being written; steps lost: at most {max(lost)}")
    print(f"losses equal: {same_losses}; weights and EMA equal, bit for bit: {same_weights}")
    if not (same_losses and same_weights):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

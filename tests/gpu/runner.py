"""The project at full size on a GPU: checks and measurements, the most important ones first.

    python -m tests.gpu                                # `make gpu-check`: all sections, 8 minutes at most
    python -m tests.gpu --section unet --minutes 5     # one again
    python -m tests.gpu --device cpu                   # the same code on shrunk networks: that it works

Every section runs in a process of its own, within a time limit of its own. A line is printed for each result
as soon as it is there; the JSON is written after each section, under its name only when it is complete. A
section that the JSON has whole is not run again, unless it is named with --section.

It takes torch, einops, numpy, safetensors and tqdm (which comes with transformers). What needs more is left
out, and named, where that is missing: diffusers (section diffusers), open_clip (random tokens stand for the
encoders), a ComfyUI at COMFYUI_PATH or ~/ComfyUI (section host).

Exit status: 0; 1 where a section found something wrong, crashed or ran out of time; 2 for a wrong call.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
CHILD = (sys.executable, "-m", "tests.gpu.child")
LIMITS = {  # seconds of each section, in the order in which they run
    "parity": 60,
    "unet": 150,
    "diffusers": 150,
    "generate": 75,
    "memory": 120,
    "training": 120,
    "host": 240,
}
LEAST = 5  # seconds: with less left a section does not begin
WHOLE, WRONG = "whole", ("wrong", "crashed", "out of time")
STATES = {0: WHOLE, 3: "lacking", 4: "wrong"}  # of a section, by its process's exit status


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--section", action="append", choices=LIMITS, metavar="NAME", help=f"of {', '.join(LIMITS)}"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="of the whole run at most")
    parser.add_argument("--device", default="cuda", help="as torch names it")
    parser.add_argument("--small", action="store_true", help="shrunk networks; so it is on a CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="the JSON")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type != "cpu" and not (
        torch.accelerator.is_available() and torch.accelerator.current_accelerator().type == device.type
    ):
        parser.error(
            f"expected a device that torch {torch.__version__} sees, got {args.device}; see --device."
        )
    machine = machine_of(device, args.small or device.type == "cpu")
    report = {"machine": machine, "sections": {}}
    if args.out.exists():
        report = json.loads(args.out.read_text("utf-8"))
        if report["machine"] != machine:
            parser.error(
                f"{args.out} has results of {report['machine']}, and this is {machine}; name another --out."
            )
    print("\n".join(f"{name:<10}{value}" for name, value in machine.items()), flush=True)
    sections = Sections(args, machine["small"], report["sections"])
    deadline = time.monotonic() + 60 * args.minutes
    for name in LIMITS:
        if args.section and name not in args.section:
            continue
        if not args.section and report["sections"].get(name, {}).get("state") == WHOLE:
            print(f"\n{name}: whole in {args.out}; --section {name} runs it again", flush=True)
            continue
        sections.run(
            name, min(LIMITS[name] * (2 if args.device == "cpu" else 1), deadline - time.monotonic())
        )
        write(args.out, report)
    return summary(report["sections"], args)


class Sections:
    """Runs sections, and keeps what came of each of them in `found`."""

    def __init__(self, args: argparse.Namespace, small: bool, found: dict):
        self.args, self.small, self.found = args, small, found

    def run(self, name: str, limit: float) -> None:
        if limit < LEAST:
            print(f"\n{name}: not run, no time is left for it", flush=True)
            self.found.setdefault(name, {"state": "not run"})  # an earlier run's results stay
            return
        print(f"\n{name}: at most {limit:.0f} s", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "results.jsonl")
            command = [*CHILD, name, "--device", self.args.device, "--results", str(file)]
            command += ["--small"] if self.small else []
            started = time.monotonic()
            state = finished(command, limit)
            seconds = time.monotonic() - started
            lines = file.read_text("utf-8").splitlines() if file.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be cut
        lacks = next((record["what"] for record in records if record["kind"] == "lacks"), None)
        self.found[name] = {
            "state": state,
            "seconds": round(seconds, 1),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": commit(),
            "command": f"python -m tests.gpu --section {name} --device {self.args.device}"
            + (" --small" if self.small else ""),
            "records": records,
        }
        words = f"lacks {lacks}" if lacks else state
        kept = sum(record["kind"] == "result" for record in records)
        print(f"{name}: {words} after {seconds:.0f} s, {kept} results", flush=True)


def finished(command: list[str], limit: float) -> str:
    """Run a section's process to its end, and all that it started; the section's state."""
    print("$", shlex.join(command[1:]), flush=True)
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return STATES.get(process.wait(limit), "crashed")
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:  # also of an interrupt, and of a server that outlives a crash
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def machine_of(device: torch.device, small: bool) -> dict:
    """What results depend on beside the code."""
    module = torch.get_device_module(device)
    cpu = device.type == "cpu"
    return {
        "card": platform.processor() or platform.machine() if cpu else module.get_device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if not cpu else None,
        "driver": None if cpu else driver(),
        "python": platform.python_version(),
        "small": small,
    }


def driver() -> str | None:
    """The version of the card's driver, where its own program says so."""
    return printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def commit() -> str | None:
    """Of the repository, where it is one; with a + where files differ from it."""
    found = printed("git", "rev-parse", "HEAD")
    return found and found + ("+" if printed("git", "status", "--porcelain", "--untracked-files=no") else "")


def printed(*command: str) -> str | None:
    """The first line that a program prints; None where there is no such program, or it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() or None if done.returncode == 0 else None


def write(path: Path, report: dict) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    os.replace(temporary, path)


def summary(found: dict, args: argparse.Namespace) -> int:
    """Print how every section ended; the exit status."""
    print("\nsummary", flush=True)
    asked = args.section or LIMITS
    for name in asked:
        state, records = found[name]["state"], found[name].get("records", [])
        notes = [f"lacks {r['what']}" for r in records if r["kind"] == "lacks"]
        notes += [f"skipped: {r['name']}" for r in records if r["kind"] == "skipped"]
        notes += [f"FAILED: {r['name']}" for r in records if r["kind"] == "failed"]
        notes += [f"WRONG: {r['name']}" for r in records if r.get("right") is False]
        notes += [f"goal missed: {r['name']}" for r in records if r.get("met") is False]
        print(f"{name:<10}{state:<12}{'; '.join(notes)}".rstrip())
    print(f"{args.out}", flush=True)
    return int(any(found[name]["state"] in WRONG for name in asked))

"""What a section is given: the device, the size, and a place for its results as they come."""

import contextlib
import importlib
import json
import operator
import time
from collections.abc import Iterator
from pathlib import Path

import torch

COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


class Lacking(Exception):
    """What this machine does not have, and a section cannot do without."""


class Section:
    """Prints each result and appends it to a file, so that nothing is lost with the process.

    small: shrunk networks, to see that the code works; then goals are not judged. failed: something did.
    """

    def __init__(self, name: str, device: torch.device, small: bool, file: Path):
        self.name, self.device, self.small, self.file = name, device, small, file
        self.failed = False
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16  # what a CPU is quick in
        self.rounds = 1 if small else 10  # that a median is taken of

    def result(
        self,
        name: str,
        value: float,
        unit: str = "",
        *,
        bound: tuple[str, float] | None = None,
        goal: tuple[str, float] | None = None,
    ) -> float:
        """Record a value. bound: it has to be so, or the section fails; goal: it should, at full size."""
        found, judged = {"kind": "result", "name": name, "value": value, "unit": unit}, ""
        if bound is not None:
            right = COMPARISONS[bound[0]](value, bound[1])  # nan is never right
            found |= {"bound": list(bound), "right": right}
            judged = f"{'right' if right else 'WRONG'}: {bound[0]} {bound[1]:g}"
            self.failed |= not right
        if goal is not None and not self.small:
            met = COMPARISONS[goal[0]](value, goal[1])
            found |= {"goal": list(goal), "met": met}
            judged = f"goal {goal[0]} {goal[1]:g} {'met' if met else 'MISSED'}"
        self._write(found, f"{name:<56} {shown(value):>10} {unit:<9} {judged}".rstrip())
        return value

    def skipped(self, what: str, why: str) -> None:
        """Name what is left out here."""
        self._write({"kind": "skipped", "name": what, "why": why}, f"skipped: {what}: {why}")

    def says(self, text: str, **values: dict) -> None:
        """A line that is no result: what is used, what is being done. values: for the JSON alone."""
        self._write({"kind": "text", "text": text} | values, text)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A measurement whose failure is named, and does not keep the next one from being made."""
        try:
            yield
        except Exception as error:
            self.fails(name, error)

    def fails(self, name: str, error: Exception) -> None:
        """Record what went wrong."""
        self.failed = True
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
        self._write({"kind": "failed", "name": name, "error": words}, f"FAILED: {name}: {words}")

    def _write(self, record: dict, line: str) -> None:
        print(f"{self.name:<11}{line}", flush=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record | {"at": round(time.time(), 1)}) + "\n")


def need(*modules: str) -> None:
    """Raise Lacking for those that cannot be imported."""
    absent = []
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            absent.append(name if error.name in (None, name) else f"{name} ({error.name})")
    if absent:
        raise Lacking(", ".join(absent))


def has(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        need(module)
    except Lacking:
        return False
    return True


def shown(value: float) -> str:
    """Three digits or more, as people read them."""
    if value == 0:
        return "0"
    if 0.01 <= abs(value) < 1e5:
        digits = 3 if abs(value) < 1 else 2 if abs(value) < 100 else 1
        return f"{value:,.{digits}f}"
    return f"{value:.1e}"

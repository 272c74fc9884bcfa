"""The commands that make and judge videos: each file of PARTS adds its own and says what became of them."""

import argparse
from collections.abc import Callable
from types import ModuleType

from . import own, sample, score, vbench_scores
from .blind import commands as blind

PARTS: tuple[ModuleType, ...] = (sample, score, vbench_scores, own, blind)
"""Modules with `add(commands)`, which adds parsers, and COMMANDS, what each command calls for its report."""

COMMANDS: dict[str, Callable[[argparse.Namespace], str]] = {
    name: call for part in PARTS for name, call in part.COMMANDS.items()
}

SHARED = frozenset({"sample"})
"""Those whose work several processes share."""


def add(commands: argparse._SubParsersAction) -> None:
    """Give the command line the commands of COMMANDS."""
    for part in PARTS:
        part.add(commands)

"""A run's folder: what it holds, how it is written so that a kill at any moment leaves it usable."""

import contextlib
import copy
import json
import logging
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .config import Recipe, differing_fields

KEEP = 2
log = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write to the yielded temporary path; only a finished file takes the name `path`."""
    temporary = path.with_name(f".partial_{path.name}")
    yield temporary
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


@dataclass
class State:
    """Everything that a run carries from one step to the next.

    step: steps done, the run's one clock. skipped: non-finite steps, all and the last ones in a row.
    seconds: time spent so far, over all resumes.
    """

    module: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0

    COUNTERS = ("step", "skipped", "skipped_in_a_row", "seconds")

    def __post_init__(self):
        # Listed once: walking a deep module at every step takes longer than a small step's arithmetic.
        self.parameters = list(self.module.parameters())
        self.parameter_pairs = list(zip(self.ema.parameters(), self.parameters, strict=True))
        self.buffer_pairs = list(zip(self.ema.buffers(), self.module.buffers(), strict=True))

    @classmethod
    def start(cls, module: nn.Module, optimizer: torch.optim.Optimizer) -> "State":
        return cls(module, copy.deepcopy(module).eval().requires_grad_(False), optimizer)

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """ema = decay * ema + (1 - decay) * weights, for the parameters that this step has moved."""
        moved = [pair for pair in self.parameter_pairs if pair[1].grad is not None]
        if moved:
            averages, weights = zip(*moved, strict=True)
            torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, buffer in self.buffer_pairs:
            average.copy_(buffer)

    def save(self, folder: Path, recipe: Recipe) -> Path:
        """Write `step_<n>.pt`, then delete all but the newest two up to it."""
        path = folder / f"step_{self.step:08d}.pt"
        with atomic(path) as temporary:
            torch.save(self._weights(recipe) | {"optimizer": self.optimizer.state_dict()}, temporary)
        for old in sorted(p for p in folder.glob("step_*.pt") if p.name <= path.name)[:-KEEP]:
            old.unlink()
        return path

    def save_final(self, folder: Path, recipe: Recipe) -> Path:
        """Write `final.pt`: model, EMA, counters and recipe, without the optimizer."""
        with atomic(folder / "final.pt") as temporary:
            torch.save(self._weights(recipe), temporary)
        return folder / "final.pt"

    def resume(self, folder: Path) -> None:
        """Continue from the newest complete state in `folder`; without one the run starts at step 0."""
        saved = newest(folder)
        if saved is None:
            return
        self.module.load_state_dict(saved["model"])
        self.ema.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for name in self.COUNTERS:
            setattr(self, name, saved[name])
        log.info("continuing at step %d", self.step)

    def _weights(self, recipe: Recipe) -> dict:
        counters = {name: getattr(self, name) for name in self.COUNTERS}
        return {
            "model": self.module.state_dict(),
            "ema": self.ema.state_dict(),
            "recipe": recipe.to_dict(),
        } | counters


def load(path: Path) -> dict:
    """A saved state or `final.pt` as a dict on the CPU: model, ema, step, recipe, seconds ..."""
    return torch.load(path, map_location="cpu", weights_only=True)


def newest(folder: Path) -> dict | None:
    """The newest complete state in `folder`; ones cut short are reported and passed over."""
    for path in sorted(folder.glob("step_*.pt"), reverse=True):
        if zipfile.is_zipfile(path):  # torch.save writes a zip, and a zip's directory is its end
            return load(path)
        log.warning("%s is incomplete, trying the state before it", path)
    return None


def claim(folder: Path, recipe: Recipe) -> None:
    """Make `folder` this recipe's own: write config.json, or compare with the one that is there.

    Raises:
        ValueError: the folder holds a run of another recipe. Only `steps` may change between resumes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    if path.exists():
        differing = differing_fields(json.loads(path.read_text()), recipe.to_dict())
        if differing := [name for name in differing if name != "steps"]:
            raise ValueError(
                f"{folder} holds a run with other settings ({', '.join(differing)}); "
                "take another folder, or put the settings back to continue it."
            )
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(recipe.to_dict(), indent=2) + "\n")

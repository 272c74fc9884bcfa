"""What a run carries from step to step, and how it lies on the disk: whole after a kill at any moment.

A saved state is a folder that torch.distributed.checkpoint writes, each process its own part, while the run
goes on. It has a temporary name until all parts are there. It can be read by any number of processes.
"""

import contextlib
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from . import distributed
from .config import Recipe

log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a single process is meant
COUNTERS = ("step", "skipped", "skipped_in_a_row", "seconds")
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
PARAMETER = "parameter/"


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write to the yielded temporary path; only a finished file takes the name `path`."""
    temporary = path.with_name(f".partial_{path.name}")
    yield temporary
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


class State:
    """The trained parameters of a module, their moving average, the optimizer and the counters.

    step: steps done, the run's one clock. skipped: non-finite steps, all and the last ones in a row.
    seconds: time spent so far, over all resumes. What is not trained is not saved: a task builds it anew.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer):
        self.module, self.optimizer = module, optimizer
        # Listed once: walking a deep module at every step takes longer than a small step's arithmetic.
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.seconds = 0.0

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """ema = decay * ema + (1 - decay) * weights, for the parameters that this step has moved."""
        moved = [name for name, parameter in self.parameters.items() if parameter.grad is not None]
        if moved:
            averages, weights = [self.ema[name] for name in moved], [self.parameters[name] for name in moved]
            torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The module in eval mode with its averaged weights; afterwards as it was, bit for bit."""
        training = self.module.training
        self._exchange()
        try:
            yield self.module.eval()
        finally:
            self._exchange()
            self.module.train(training)

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.ema[name])
            self.ema[name].copy_(kept)
        distributed.forget_gathered(self.module)

    @torch.no_grad()
    def staged(self) -> dict[str, Tensor]:
        """A copy on the CPU of everything that is saved.

        parameter/<name>: [*shape, 4] its weights, average and AdamW's moments, or [*shape, 2] without moments
            if no step has moved it. One tensor, not five: the writing takes a millisecond for each.
        steps: AdamW's count of the parameters, by the order of their names. counters: see `COUNTERS`.
        """
        saved, steps = {}, []
        for name, parameter in sorted(self.parameters.items()):
            adam = self.optimizer.state.get(parameter, {})
            parts = [parameter.detach(), self.ema[name]] + [adam[key] for key in MOMENTS if adam]
            saved[PARAMETER + name] = torch.stack(parts, dim=-1).to("cpu")
            steps.append(adam.get("step", torch.zeros((), device=parameter.device)))
        counters = [getattr(self, name) for name in COUNTERS]
        return saved | {
            "steps": torch.stack(steps).to("cpu"),
            "counters": torch.tensor(counters, dtype=torch.float64),
        }

    @torch.no_grad()
    def resume(self, folder: Path) -> bool:
        """Continue from the newest complete state in `folder`; without one the run starts at step 0."""
        path = newest(folder)
        if path is None:
            return False
        saved = contents(path)
        tensors = {name: torch.zeros_like(saved[name], device="cpu") for name in ("steps", "counters")}
        for name, parameter in self.parameters.items():
            parts = saved[PARAMETER + name].shape[-1]
            tensors[PARAMETER + name] = torch.stack([parameter.detach()] * parts, dim=-1).to("cpu")
        _load(tensors, path)
        for (name, parameter), step in zip(sorted(self.parameters.items()), tensors["steps"], strict=True):
            adam = {key: torch.zeros_like(parameter) for key in MOMENTS} if step else {}
            own = parameter.detach(), self.ema[name], *adam.values()
            parts = distributed.local(tensors[PARAMETER + name]).unbind(-1)
            for tensor, part in zip(own, parts, strict=True):
                distributed.local(tensor).copy_(part)
            if adam:
                self.optimizer.state[parameter] = {"step": step.to(parameter.device, copy=True)} | adam
        for name, value in zip(COUNTERS, tensors["counters"].tolist(), strict=True):
            setattr(self, name, value if name == "seconds" else int(value))
        log.info("continuing at step %d", self.step)
        return True

    def whole(self) -> dict[str, dict[str, Tensor]]:
        """Model and EMA as full tensors on the CPU, untrained parameters too; all processes take part."""
        model, averages = (
            {name: distributed.whole(tensor).detach().to("cpu", copy=True) for name, tensor in part.items()}
            for part in (self.module.state_dict(), self.ema)
        )
        return {"model": model, "ema": model | averages}

    def save_final(self, folder: Path, recipe: Recipe) -> Path:
        """Write `final.pt`: model, EMA, counters and recipe, without the optimizer."""
        path, weights = folder / "final.pt", self.whole()
        if distributed.rank() == 0:
            counters = {name: getattr(self, name) for name in COUNTERS}
            with atomic(path) as temporary:
                torch.save(weights | {"recipe": recipe.to_dict()} | counters, temporary)
        distributed.barrier()
        return path


class Writer:
    """Saves states beside the running training, one at a time, and keeps the newest `keep`."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self.pending: tuple[Future, Path] | None = None
        self.thread = ThreadPoolExecutor(1, "state")
        # A group of its own: its messages must not meet those of the training going on.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def start(self, state: State) -> None:
        """Copy the state and begin to write it as `step_<n>`; what was being written is finished first."""
        self.finish()
        path = self.folder / f"step_{state.step:08d}"
        if path.exists():
            return
        future = self.thread.submit(
            dcp.save,
            state.staged(),
            checkpoint_id=temporary_of(path),
            process_group=self.group,
            no_dist=self.group is None,
        )
        self.pending = future, path

    def close(self) -> None:
        """Also when the training broke off: the state that is being written is worth waiting for."""
        self.thread.shutdown()
        self.finish()

    def poll(self) -> None:
        """Give the state its name if it is written by now."""
        if self.pending and self.pending[0].done():
            self.finish()

    def finish(self) -> None:
        """Wait until nothing is being written.

        Raises:
            OSError: the state could not be written; those before it are whole.
        """
        if self.pending is None:
            return
        (future, path), self.pending = self.pending, None
        try:
            future.result()
        except (CheckpointException, Exception) as error:  # the first is no Exception
            if isinstance(error, CheckpointException):
                error = next(iter(error.failures.values()))[0]  # of one of the processes
            raise OSError(
                f"{path} could not be written ({error}); the states before it are whole: "
                "make room and run it again to go on."
            ) from error
        if distributed.rank() == 0:
            shutil.copy(self.folder / "config.json", temporary_of(path))
            os.replace(temporary_of(path), path)
            for old in states(self.folder)[: -self.keep]:
                shutil.rmtree(old)


def temporary_of(path: Path) -> Path:
    return path.with_name(f".partial_{path.name}")


def states(folder: Path) -> list[Path]:
    """The complete states in `folder`, oldest first. Its metadata is the last thing written of a state."""
    found = sorted(path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8}", path.name))
    complete = [path for path in found if (path / ".metadata").is_file()]
    for path in sorted(set(found) - set(complete)):
        log.warning("%s is incomplete and passed over", path)
    return complete


def newest(folder: Path) -> Path | None:
    return next(reversed(states(folder)), None)


def purge(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for path in folder.glob(".partial_*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def contents(path: Path) -> dict[str, Tensor]:
    """The tensors of a saved state by name, on the meta device: shapes and types alone."""
    metadata = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in metadata.items()
    }


def read_state(path: Path) -> dict:
    """A saved state as full tensors on the CPU: "model", "ema", "optimizer" by name, and the counters."""
    tensors = {name: torch.zeros_like(meta, device="cpu") for name, meta in contents(path).items()}
    _load(tensors, path, no_dist=True)
    found: dict = {"model": {}, "ema": {}, "optimizer": {}}
    found |= dict(zip(COUNTERS, tensors.pop("counters").tolist(), strict=True))
    for step, key in zip(tensors.pop("steps"), sorted(tensors), strict=True):
        name = key.removeprefix(PARAMETER)
        found["model"][name], found["ema"][name], *moments = tensors[key].unbind(-1)
        if moments:
            found["optimizer"][name] = dict(zip(("step", *MOMENTS), (step, *moments), strict=True))
    return found


def load(path: Path) -> dict:
    """A `final.pt` as a dict on the CPU: model, ema, step, recipe, seconds ..."""
    return torch.load(path, map_location="cpu", weights_only=True)


def _load(tensors: dict[str, Tensor], path: Path, no_dist: bool = False) -> None:
    dcp.load(tensors, checkpoint_id=path, no_dist=no_dist or not dist.is_initialized())

"""What a run carries from step to step, and how it gets to the disk: whole after a kill at any moment.

A saved state is a folder that torch.distributed.checkpoint writes, each process its own part, while the run
goes on. It has a temporary name until all parts are there. It can be read by any number of processes.
"""

import contextlib
import errno
import hashlib
import logging
import os
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

from univid.files.output import new_file
from univid.messages import shown

from . import distributed
from .config import Recipe
from .saved import (
    COUNTERS,
    DIGEST,
    FINAL,
    METADATA,
    MOMENTS,
    PARAMETER,
    RECORD,
    Damaged,
    Saved,
    nothing_whole,
    passed_over,
    set_aside,
    states,
    temporary_of,
)

log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a single process is meant


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

    def resume(self, folder: Path) -> bool:
        """Continue from the newest whole state in `folder`; False where nothing was saved yet.

        Damaged ones after it are named and set aside. All processes call this.

        Raises:
            ValueError: something was saved, and nothing of it is whole.
        """
        damaged: list[tuple[Path, Damaged]] = []
        for path in reversed(states(folder)):
            if (damage := self._take(path)) is None:
                break
            damaged.append((path, damage))
        else:
            if damaged:
                raise nothing_whole(folder, damaged)
            if (folder / FINAL).exists():
                raise ValueError(
                    f"{shown(folder)} holds a finished run ({FINAL}) and no state to go on from; take "
                    f"another name, or delete {FINAL} to train it anew."
                )
            return False
        if distributed.rank() == 0:
            passed_over(damaged, path.name)
            for other, _ in damaged:
                log.warning("%s is now called %s", shown(other), set_aside(other).name)
        distributed.barrier()
        log.info("continuing at step %d", self.step)
        return True

    def _take(self, path: Path) -> Damaged | None:
        """Become a saved state; or what is wrong with it, for any of the processes, and stay as it was."""
        tensors: dict[str, Tensor] = {}
        saved, damage = None, ""
        try:
            saved = Saved(path)
            tensors = self._like(saved)
            saved.verify(distributed.rank(), distributed.processes())
        except Damaged as error:
            damage = str(error)
        # Reading takes all processes, so it begins where none of them has found anything.
        if not (damage := max(distributed.gathered(damage))):
            try:
                saved.load(tensors)
            except Damaged as error:
                damage = str(error)
            damage = max(distributed.gathered(damage))
        if damage:
            return Damaged(damage)
        self._become(tensors)
        return None

    def _like(self, saved: Saved) -> dict[str, Tensor]:
        """Tensors on the CPU for all that is saved, spread over the processes as the parameters are.

        Raises:
            Damaged: it is the state of another network.
        """
        held, names = saved.tensors, {PARAMETER + name: p for name, p in self.parameters.items()}
        tensors = {name: torch.zeros_like(held[name], device="cpu") for name in ("steps", "counters")}
        if held.keys() != names.keys() | tensors.keys() or tensors["steps"].shape != (len(names),):
            raise Damaged("it is of another network")
        for name, parameter in names.items():
            *shape, parts = held[name].shape or (0,)
            fits = tuple(shape) == parameter.shape and held[name].dtype == parameter.dtype
            if not fits or parts not in (2, 2 + len(MOMENTS)):
                raise Damaged("it is of another network")
            tensors[name] = torch.stack([parameter.detach()] * parts, dim=-1).to("cpu")
        return tensors

    @torch.no_grad()
    def _become(self, tensors: dict[str, Tensor]) -> None:
        for (name, parameter), step in zip(sorted(self.parameters.items()), tensors["steps"], strict=True):
            parts = distributed.local(tensors[PARAMETER + name]).unbind(-1)
            adam = {key: torch.zeros_like(parameter) for key in MOMENTS} if len(parts) > 2 else {}
            for tensor, part in zip((parameter.detach(), self.ema[name], *adam.values()), parts, strict=True):
                distributed.local(tensor).copy_(part)
            if adam:
                self.optimizer.state[parameter] = {"step": step.to(parameter.device, copy=True)} | adam
        for name, value in zip(COUNTERS, tensors["counters"].tolist(), strict=True):
            setattr(self, name, value if name == "seconds" else int(value))

    def whole(self) -> dict[str, dict[str, Tensor]]:
        """Model and EMA as full tensors on the CPU, untrained parameters too; all processes take part."""
        model, averages = (
            {name: distributed.whole(tensor).detach().to("cpu", copy=True) for name, tensor in part.items()}
            for part in (self.module.state_dict(), self.ema)
        )
        return {"model": model, "ema": model | averages}

    def save_final(self, folder: Path, recipe: Recipe) -> Path:
        """Write `final.pt`: model, EMA, counters and recipe, without the optimizer.

        Raises:
            OSError: it could not be written.
        """
        path, weights = folder / FINAL, self.whole()
        if distributed.rank() == 0:
            counters = {name: getattr(self, name) for name in COUNTERS}
            try:
                with new_file(path) as temporary, open(temporary, "wb") as file:
                    torch.save(weights | {"recipe": recipe.to_dict()} | counters, file)
            except (ValueError, RuntimeError) as error:  # PyTorch's of a full disk is the second
                raise not_written(path, error) from error
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
            OSError: the state could not be written, and nothing of it is left; those before it are whole.
        """
        if self.pending is None:
            return
        (future, path), self.pending = self.pending, None
        temporary = temporary_of(path)
        try:
            future.result()
            if distributed.rank() == 0:
                digest = hashlib.sha256((temporary / METADATA).read_bytes()).hexdigest()
                for name, data in ((RECORD, (self.folder / RECORD).read_bytes()), (DIGEST, digest.encode())):
                    with open(temporary / name, "wb") as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
                os.replace(temporary, path)
        except (CheckpointException, Exception) as error:  # the first is no Exception
            if isinstance(error, CheckpointException):
                error = next(iter(error.failures.values()))[0]  # of one of the processes
            if distributed.rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise not_written(path, error) from error
        if distributed.rank() == 0:
            for old in states(self.folder)[: -self.keep]:
                shutil.rmtree(old)


def not_written(path: Path, error: BaseException) -> OSError:
    """The sentence for something of a run that could not be written."""
    reason, cause = "", error
    while cause is not None and not reason:  # PyTorch's own words for it tell nothing
        reason = cause.strerror or "" if isinstance(cause, OSError) else ""
        cause = cause.__cause__ or cause.__context__
    if not reason:
        free = shutil.disk_usage(path.parent).free
        reason = os.strerror(errno.ENOSPC) if free < 2**24 else type(error).__name__
    return OSError(
        f"{shown(path)} could not be written ({reason}); the states before it are whole: make room and run "
        "it again to go on."
    )

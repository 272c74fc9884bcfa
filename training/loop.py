"""The training loop. Its one clock is the number of steps done: learning rate, EMA, data order and randomness
are pure functions of it, so a run that was cut continues exactly.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from . import distributed, report
from .config import OptimConfig, Recipe
from .rng import seed_for
from .state import State, claim
from .task import Task


def train(recipe: Recipe, task: Task, folder: Path | str, *, device="cpu", progress: bool = True) -> Path:
    """Train `task` by `recipe` in `folder`, continuing what is there; return the path of `final.pt`.

    The folder holds config.json, metrics.jsonl, loss.png, the newest two states and, at the end, final.pt.

    Raises:
        ValueError: the folder holds a run with other settings, or one that is further than `recipe.steps`.
        FloatingPointError: `recipe.max_skipped` steps in a row had a loss or gradient that is not finite.
        SystemExit: SIGTERM or Ctrl-C, after saving.
    """
    folder, device = Path(folder), torch.device(device)
    main = distributed.rank() == 0  # writes the folder; all processes read it
    if main:
        claim(folder, recipe)
    distributed.barrier()
    task.module.to(device).train()
    state = State.start(task.module, build_optimizer(recipe.optim, task.parameter_groups()))
    state.resume(folder)
    if state.step > recipe.steps:
        raise ValueError(
            f"{folder} is at step {state.step}, beyond the {recipe.steps} steps asked for; ask for more."
        )

    started = time.monotonic() - state.seconds
    with (
        report.Metrics(folder, state.step) if main else contextlib.nullcontext() as metrics,
        catch_signals() as caught,
        _bar(recipe, state, progress and main) as bar,
    ):
        while state.step < recipe.steps:
            row = take_step(recipe, task, state, device)
            state.seconds = time.monotonic() - started
            validating = recipe.validate_every and state.step % recipe.validate_every == 0
            if validating and main:
                row |= validate(task, state)
            if main and (validating or "skipped" in row or state.step % recipe.log_every == 0):
                row = {name: float(value) for name, value in row.items()} | {"step": state.step}
                metrics.write(row)
                bar.set_postfix(loss=f"{row['loss']:.4g}", lr=f"{row['lr']:.2g}", refresh=False)
            bar.update()
            if state.skipped_in_a_row == recipe.max_skipped:
                raise FloatingPointError(
                    f"the loss or the gradient norm was not finite in {recipe.max_skipped} steps in a row, "
                    f"up to step {state.step}; lower the learning rate or look at the data of those steps."
                )
            stopping = distributed.any_process(bool(caught))
            if main and (stopping or state.step % recipe.save_every == 0 or state.step == recipe.steps):
                state.save(folder, recipe)
                report.draw(folder)
            if stopping:
                reason = caught[0] if caught else "another process"
                raise SystemExit(
                    f"stopped by {reason} at step {state.step}, all is saved; run it again to go on."
                )
    if main:
        state.save_final(folder, recipe)
    distributed.barrier()
    return folder / "final.pt"


def take_step(recipe: Recipe, task: Task, state: State, device: torch.device) -> dict[str, Tensor | float]:
    """One optimizer step: the micro-batches in order, their gradients summed. Return the row to log."""
    step, optim, optimizer = state.step, recipe.optim, state.optimizer
    seed_globally(seed_for(recipe.seed, "global", step), device)  # dropout and the like
    for parameter in state.parameters:
        parameter.grad = None  # and what stays None is left alone by AdamW, weight decay and EMA
    lr = optim.learning_rate(step, recipe.steps)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]

    total, means = torch.zeros((), device=device), WeightedMeans()
    dtype = getattr(torch, recipe.dtype)
    for name, weight, batch in task.micro_batches(step):
        if weight == 0:  # a gradient of zeros is not the same as none: weight decay and momentum would act
            continue
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss, extra = task.loss(batch)
        (weight * loss).backward()
        total += weight * loss.detach()
        means.add(name, weight, {"loss": loss.detach()} | extra)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    distributed.average([total, *(p.grad for p in parameters if p.grad is not None)])
    norm = torch.nn.utils.clip_grad_norm_(parameters, optim.clip_norm)

    row = {"step": step + 1, "loss": total, "lr": lr, "grad_norm": norm} | means.result()
    if (total + norm).isfinite():
        optimizer.step()
        state.update_ema(optim.ema_decay_at(step))
        state.skipped_in_a_row = 0
    else:
        state.skipped += 1
        state.skipped_in_a_row += 1
        row["skipped"] = state.skipped
    state.step += 1
    return row


def seed_globally(seed: int, device: torch.device) -> None:
    """As torch.manual_seed, for the devices in use: it formats a stack trace for each that is not."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def build_optimizer(optim: OptimConfig, groups: list[dict]) -> torch.optim.Optimizer:
    """AdamW over the task's named groups; the loop sets the learning rate at every step."""
    groups = [{"lr_scale": 1.0} | group for group in groups]
    return torch.optim.AdamW(
        groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
    )


@torch.no_grad()
def validate(task: Task, state: State) -> dict[str, float]:
    """The task's figures for the EMA weights, named valid/..."""
    return {f"valid/{name}": value for name, value in task.validate(state.ema).items()}


class WeightedMeans:
    """Means of metrics over the micro-batches of one name, by their loss weights; stays on the device."""

    def __init__(self):
        self.sums: dict[str, Tensor | float] = {}
        self.weights: dict[str, float] = {}

    def add(self, name: str, weight: float, metrics: dict[str, Tensor]) -> None:
        for key, value in metrics.items():
            key = f"{name}/{key}"
            self.sums[key] = self.sums.get(key, 0.0) + weight * value
            self.weights[key] = self.weights.get(key, 0.0) + weight

    def result(self) -> dict[str, Tensor | float]:
        return {key: value / self.weights[key] for key, value in self.sums.items()}


@contextlib.contextmanager
def catch_signals() -> Iterator[list[str]]:
    """Collect the names of SIGTERM and SIGINT instead of dying of them; a second one acts at once."""
    caught: list[str] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield caught
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handler(number, frame):
        caught.append(signal.Signals(number).name)
        restore()

    def restore():
        for number, old in previous.items():
            signal.signal(number, old)

    for number in previous:
        signal.signal(number, handler)
    try:
        yield caught
    finally:
        restore()


def _bar(recipe: Recipe, state: State, progress: bool) -> tqdm:
    interval = 0.5 if sys.stderr.isatty() else 30  # seconds; a log file wants few lines
    return tqdm(
        total=recipe.steps, initial=state.step, desc=recipe.name, disable=not progress, mininterval=interval
    )

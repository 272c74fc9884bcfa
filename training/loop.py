"""The training loop. Its one clock is the number of steps done: learning rate, EMA, data order and randomness
are pure functions of it, so a run that was cut continues exactly.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from univid.signals import SIGNALS

from . import distributed, report
from .config import OptimConfig, Recipe
from .distributed import Network
from .folder import claimed
from .rng import seed_for
from .state import State, Writer
from .task import MicroBatch, Task


def train(recipe: Recipe, task: Task, folder: Path | str, *, device="cpu", progress: bool = True) -> Path:
    """Train `task` by `recipe` in `folder`, continuing what is there; return the path of `final.pt`.

    The folder holds config.json, metrics.jsonl, loss.png, the newest states and, at the end, final.pt.

    Raises:
        ValueError: the folder holds a run with other settings, one that is further than `recipe.steps`, or
            one that is at work.
        FloatingPointError: `recipe.max_skipped` steps in a row had a loss or gradient that is not finite.
        OSError: a state could not be written.
        SystemExit: SIGTERM, Ctrl-C or a closed terminal (SIGHUP), after saving.
    """
    folder, device, logs = Path(folder), torch.device(device), recipe.logs
    main = distributed.rank() == 0  # writes the folder; all processes read it
    with contextlib.ExitStack() as stack:
        if main:
            # Only tasks that read data from disks have evidence of it.
            stack.enter_context(claimed(folder, recipe, getattr(task, "evidence", {})))
        distributed.barrier()
        task.module.to(device).train()
        network = Network(task, recipe.engine)
        state = State(task.module, build_optimizer(recipe.optim, task.parameter_groups()))
        state.resume(folder)
        if state.step > recipe.steps:
            raise ValueError(
                f"{folder} is at step {state.step}, beyond the {recipe.steps} steps asked for; ask for more."
            )
        metrics = stack.enter_context(report.Metrics(folder, state.step, logs.tensorboard)) if main else None
        caught = stack.enter_context(catch_signals())
        bar = stack.enter_context(report.bar(recipe.name, state.step, recipe.steps, progress and main))
        writer = stack.enter_context(contextlib.closing(Writer(folder, logs.keep)))
        started = time.monotonic() - state.seconds
        while state.step < recipe.steps:
            row = take_step(recipe, task, network, state, device)
            state.seconds = time.monotonic() - started
            if due(logs.validate_every, state.step):
                row |= validate(task, state)
            if due(logs.sample_every, state.step):
                with state.averaged() as module, torch.no_grad():
                    task.draw_samples(module, folder / "samples", state.step)
            if main and (
                "skipped" in row or any(due(n, state.step) for n in (logs.every, logs.validate_every))
            ):
                row = {name: float(value) for name, value in row.items()} | {"step": state.step}
                metrics.write(row)
                bar.set_postfix(loss=f"{row['loss']:.4g}", lr=f"{row['lr']:.2g}", refresh=False)
            bar.update()
            if state.skipped_in_a_row == recipe.max_skipped:
                raise FloatingPointError(
                    f"the loss or the gradient norm was not finite in {recipe.max_skipped} steps in a row, "
                    f"up to step {state.step}; look at the data of those steps, raise max_skipped to go on, "
                    "or begin anew under another name with a lower optim.lr."
                )
            stopping = distributed.any_process(bool(caught), device)
            if stopping or due(logs.save_every, state.step) or state.step == recipe.steps:
                writer.start(state)
                if main:
                    report.draw(folder)
            writer.poll()
            if stopping:
                writer.finish()
                reason = caught[0] if caught else "another process"
                raise SystemExit(
                    f"stopped by {reason} at step {state.step}, all is saved; run it again to go on."
                )
        writer.finish()
        return state.save_final(folder, recipe)


def due(every: int, step: int) -> bool:
    """Whether something that happens `every` so many steps (0 = never) happens after `step` of them."""
    return every > 0 and step % every == 0


def take_step(
    recipe: Recipe, task: Task, network: Network, state: State, device: torch.device
) -> dict[str, Tensor | float]:
    """One optimizer step: the micro-batches in order, their gradients summed. Return the row to log."""
    step, optim, optimizer = state.step, recipe.optim, state.optimizer
    seed_globally(seed_for(recipe.seed, "global", step), device)  # dropout and the like
    for parameter in state.parameters.values():
        parameter.grad = None  # and what stays None is left alone by AdamW, weight decay and EMA
    lr = optim.learning_rate(step, recipe.steps)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]

    total, means = torch.zeros((), device=device), WeightedMeans()
    dtype = getattr(torch, recipe.dtype)
    for (name, weight, batch), last in with_last(task.micro_batches(step)):
        with network.passing(last):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss, extra = network(batch)
            (weight * loss).backward()
        total += weight * loss.detach()
        means.add(name, weight, {"loss": loss.detach()} | extra)
    row = {"loss": total} | means.result()
    row = dict(zip(row, distributed.mean_over_processes(list(row.values())), strict=True))
    norm = torch.nn.utils.clip_grad_norm_(state.parameters.values(), optim.clip_norm)
    norm = distributed.whole(norm)

    row |= {"step": step + 1, "lr": lr, "grad_norm": norm}
    if (row["loss"] + norm).isfinite():
        optimizer.step()
        state.update_ema(optim.ema_decay_at(step))
        state.skipped_in_a_row = 0
    else:
        state.skipped += 1
        state.skipped_in_a_row += 1
        row["skipped"] = state.skipped
    state.step += 1
    return row


def with_last(batches: Iterable[MicroBatch]) -> Iterator[tuple[MicroBatch, bool]]:
    """Each micro-batch that counts, and whether it is the last one.

    One of weight 0 is left out: a gradient of zeros is not the same as none, weight decay and momentum
    would act on it.
    """
    waiting = None
    for batch in batches:
        if batch.weight == 0:
            continue
        if waiting is not None:
            yield waiting, False
        waiting = batch
    if waiting is not None:
        yield waiting, True


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
    """The task's figures for the EMA weights, named valid/... Every process computes them all."""
    with state.averaged() as module:
        return {f"valid/{name}": value for name, value in task.validate(module).items()}


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
    """Collect the names of signals to stop instead of dying of them; a second one acts at once.

    But for SIGHUP: a terminal that closes sends it twice, through its shell and by itself. A run that was
    started to survive it (`nohup`) does not hear it.
    """
    caught: list[str] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield caught
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]  # Windows lacks some
    hangup = getattr(signal, "SIGHUP", None)
    previous = {number: signal.getsignal(number) for number in numbers}
    if previous.get(hangup) is signal.SIG_IGN:
        del previous[hangup]

    def handler(number, frame):
        caught.append(signal.Signals(number).name)
        restore(set(previous) - {hangup})

    def restore(numbers: Iterable[int]) -> None:
        for number in numbers:
            signal.signal(number, previous[number])

    for number in previous:
        signal.signal(number, handler)
    try:
        yield caught
    finally:
        restore(previous)

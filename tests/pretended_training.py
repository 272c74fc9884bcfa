"""Training steps on the pretended accelerator (tests/accelerator.py): backward passes, autocast and files.

PyTorch's engine runs a backward pass in a thread for each device that there is. Here it is none, so the graph
is walked in the calling thread, by the same nodes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from unittest.mock import patch

import torch
from accelerator import Accelerator, accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from training import loop
from training.distributed import Network
from training.saved import METADATA

GENERATOR, LOAD = torch.Generator, torch.load
PASS = 1  # the number of the backward pass: checkpointed layers run again once in each


@contextmanager
def training_accelerator() -> Iterator[Accelerator]:
    """As `accelerator`, and losses may be differentiated there, under autocast, in runs that save states.

    Nothing is in the files of those runs: there are no contents to be written.
    """
    with (
        accelerator() as seen,
        patch("torch.nn.Module._apply", _apply),
        patch("torch.autograd.backward", backward),
        patch("torch._C._current_graph_task_id", lambda: PASS),
        patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        patch("torch.cuda.is_bf16_supported", lambda: True),
        patch("torch.distributed.checkpoint.save", _write_nothing),
        patch("torch.save", lambda obj, file: None),
        patch("torch.load", _load),
        patch("torch.Generator", lambda device="cpu": GENERATOR()),  # there is none of that device
    ):
        yield seen


def watch_steps(monkeypatch, seen: Accelerator) -> list[list[str]]:
    """What waits for the device in each step of the loop; in a loss and its backward pass nothing may."""
    waits, take_step = [], loop.take_step

    def watched_step(*arguments):
        before = len(seen.waits)
        row = take_step(*arguments)
        waits.append(seen.waits[before:])
        return row

    monkeypatch.setattr(loop, "take_step", watched_step)
    monkeypatch.setattr(Network, "passing", lambda *_: seen.without_waiting())
    return waits


def _apply(module: nn.Module, move, recurse=True) -> nn.Module:
    """What `module.to(...)` does, for modules without buffers; PyTorch's own moves such tensors only once."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            with torch.no_grad():
                moved = move(parameter) if parameter is not None else None
            if moved is not parameter:
                part._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
    return module


def _load(*arguments, **options):
    with unset_fake_temporarily():  # what lies in files is real
        return LOAD(*arguments, **options)


def _write_nothing(state, *, checkpoint_id: Path, **options) -> None:
    checkpoint_id.mkdir()
    (checkpoint_id / METADATA).touch()


def backward(loss: Tensor, gradient=None, retain_graph=False, create_graph=False, inputs=None) -> None:
    """What `torch.autograd.backward` does for one scalar: gradients of all leaves of its graph."""
    graph, waiting = {}, [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node not in graph:
            graph[node] = [after for after, _ in node.next_functions if after is not None]
            waiting += graph[node]
    inputs = {node: node._input_metadata for node in graph}
    found = {node: [None] * len(inputs[node]) for node in graph}
    found[loss.grad_fn] = [torch.ones_like(loss)]
    with torch.no_grad():
        for node in [*TopologicalSorter(graph).static_order()][::-1]:
            arrived = found.pop(node)
            if all(gradient is None for gradient in arrived):
                continue
            made = node(*arrived)
            made = made if isinstance(made, tuple) else (made,)
            for (after, place), gradient in zip(node.next_functions, made, strict=True):
                if after is None or gradient is None:
                    continue
                like, sums = inputs[after][place], found[after]
                if gradient.shape != like.shape:  # of what was broadcast
                    gradient = gradient.sum_to_size(like.shape)
                gradient = gradient.to(like.dtype)
                sums[place] = gradient if sums[place] is None else sums[place] + gradient

"""Several processes of one run, as torchrun starts them: each computes its share of every micro-batch.

What a run computes is a function of the step alone, so the processes differ only in which samples they take.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes when torchrun started this one; alone, do nothing."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def share(positions: range) -> range:
    """This process's part of the samples of a micro-batch.

    Raises:
        ValueError: the samples do not divide evenly; a mean over processes would not be the batch's mean.
    """
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if len(positions) % processes:
        raise ValueError(
            f"a batch of {len(positions)} does not divide over {processes} processes; change either."
        )
    return positions[rank() :: processes]


def average(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over the processes, in one message."""
    if not dist.is_initialized() or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if not dist.is_initialized():
        return flag
    count = torch.tensor(float(flag))
    dist.all_reduce(count)
    return bool(count > 0)


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()

"""Several processes of one run, as torchrun starts them, by PyTorch's own DDP and FSDP2.

What a run computes is a function of the step alone, so the processes differ only in which samples they take.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from univid.unet import UNet

from .config import EngineConfig
from .task import Task

# The U-Net's output is a view; the loss changes nothing in place, so the hook on it stays.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")


@contextmanager
def process_group(device: str = "cpu") -> Iterator[torch.device]:
    """Join the other processes when torchrun started this one; alone, do nothing. Yields the device."""
    place = torch.device(device)
    if "WORLD_SIZE" not in os.environ:
        yield place
        return
    if place.type != "cpu":
        place = torch.device(place.type, int(os.environ["LOCAL_RANK"]))
        torch.accelerator.set_device_index(place.index)
    store, index, world = next(dist.rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # Of one machine torchrun keeps the store, and in it the addresses of processes that have died.
        store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    backend = dist.get_default_backend_for_device(place)
    dist.init_process_group(backend, store=store, rank=index, world_size=world)
    try:
        yield place
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share(positions: range) -> range:
    """This process's part of the samples of a micro-batch.

    Raises:
        ValueError: the samples do not divide evenly; a mean over processes would not be the batch's mean.
    """
    if not positions:
        raise ValueError("expected samples in every step, got none; raise the batch.")
    if len(positions) % processes():
        raise ValueError(
            f"a batch of {len(positions)} does not divide over {processes()} processes; take another number "
            "of them, or for a new run another batch."
        )
    return positions[rank() :: processes()]


class Network:
    """A task's loss, spread over the processes: call it with a batch, as `task.loss`.

    Build it before the optimizer: FSDP replaces the parameters by shards.
    """

    def __init__(self, task: Task, engine: EngineConfig):
        self.sharded = engine.parallel == "fsdp" and dist.is_initialized()
        module = task.module
        if isinstance(module, UNet):
            module.checkpointing = engine.checkpointing
        elif self.sharded:
            raise ValueError(
                f'expected engine.parallel "ddp" for a {type(module).__name__}, got "fsdp"; '
                "that shards the U-Net only."
            )
        if self.sharded:
            # Layers are gathered in float32 and autocast does the rest, so norms and sums are DDP's own.
            for block in module.blocks():
                fully_shard(block)
            fully_shard(module)
        if engine.compile and isinstance(module, UNet):
            module.compile_blocks(dynamic=None)  # clips have many lengths
        elif engine.compile:
            module.compile()
        self.module = module
        self.loss = Loss(task)
        if dist.is_initialized() and not self.sharded:
            # Of a step without clips the temporal layers have no gradient, and should have none.
            self.loss = DistributedDataParallel(
                self.loss, find_unused_parameters=True, broadcast_buffers=False
            )

    def __call__(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(batch)

    def passing(self, last: bool) -> AbstractContextManager:
        """Around a forward and backward pass: only the step's last one sums gradients over the processes."""
        if self.sharded:
            self.module.set_requires_gradient_sync(last)
            self.module.set_is_last_backward(last)
        elif isinstance(self.loss, DistributedDataParallel) and not last:
            return self.loss.no_sync()
        return nullcontext()


class Loss(nn.Module):
    """A task's loss as the forward of a module, which is what DDP wraps."""

    def __init__(self, task: Task):
        super().__init__()
        self.module = task.module
        self.loss = task.loss

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(batch)


def forget_gathered(module: nn.Module) -> None:
    """Let a sharded module gather its layers anew: after its shards were changed outside of a step."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of a sharded one: then all processes have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The tensor itself, or this process's part of a sharded one."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def mean_over_processes(values: list[Tensor]) -> list[Tensor]:
    """Each scalar's mean over the processes, in one message."""
    if not dist.is_initialized() or not values:
        return values
    stacked = torch.stack([value.detach().float() for value in values])
    dist.all_reduce(stacked)
    return list(stacked / dist.get_world_size())


def gathered(value: str) -> list[str]:
    """The value of every process."""
    if not dist.is_initialized():
        return [value]
    values = [""] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    if not dist.is_initialized():
        return flag
    count = torch.tensor(float(flag), device=device)
    dist.all_reduce(count)
    return bool(count > 0)


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()

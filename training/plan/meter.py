"""Counts what a pass through a network costs, without computing it: on the meta device tensors have sizes and
no contents, so the full-size network runs forward and backward in seconds on any machine.
"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from univid import memory

# What autocast does on an accelerator: matrix products in the low precision, statistics in float32, all else
# in the precision that comes. (Its rules for a CPU differ: there normalisations stay in the low precision.)
LOW_PRECISION = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.scaled_dot_product_attention,
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, Tensor.matmul, Tensor.__matmul__,
}  # fmt: skip
FLOAT32 = {F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax, torch.sum, Tensor.sum}


def flash_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention by the kernel of accelerators, which keeps q, k, v, its result and one number a row.

    The meta device would choose the plain formula, whose matrix of all pairs is never made on a GPU.
    q `[b s (heads d)]`, k and v `[b n (heads d)]` -> `[b s (heads d)]`.
    """
    q, k, v = (rearrange(x, "b n (heads d) -> b heads n d", heads=heads) for x in (q, k, v))
    out = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return rearrange(out, "b heads n d -> b n (heads d)")


class Autocast(TorchFunctionMode):
    """torch.autocast as an accelerator does it, for the meta device, which has none.

    copies: of the weights in the low precision, each made once. A pass keeps them until it ends.
    """

    def __init__(self, dtype: torch.dtype, ledger: "Ledger"):
        super().__init__()
        self.dtype = dtype
        self.ledger = ledger
        self.copies: dict[Tensor, Tensor] = {}

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.copies.clear()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in LOW_PRECISION or function in FLOAT32:
            target = self.dtype if function in LOW_PRECISION else torch.float32
            args, kwargs = tree_map(lambda value: self._cast(value, target), (args, kwargs))
        return function(*args, **kwargs)

    def _cast(self, value, dtype: torch.dtype):
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(dtype)
        if value in self.copies and self.copies[value].dtype == dtype:
            return self.copies[value]
        with self.ledger.naming("copies"):
            copy = value.to(dtype)
        if value.requires_grad and dtype == self.dtype:  # the same that torch's own cache takes
            self.copies[value] = copy
        return copy


class Ledger(memory.Ledger):
    """Also counts FLOPs, of all operations."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(function, types, args, kwargs)
        # The formulas of torch's FlopCounterMode. The mode itself follows the modules, and thereby keeps what
        # checkpointing computes again alive until the garbage collector comes.
        if (count := flop_registry.get(function._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


@dataclass(frozen=True)
class Cost:
    """Of one forward and backward pass of a micro-batch, or of a forward pass alone.

    flops: executed, what is recomputed included; a multiplication and an addition are two. forward: those of
    the forward pass. kept, copies: bytes of activations, and of weights in the low precision, that live when
    the forward pass ends. peak: bytes of both and of all that is temporary at most; peak_copies: the share of
    weights in it. peak_activations: the most without them.
    """

    flops: int
    forward: int
    kept: int
    copies: int
    peak: int
    peak_copies: int
    peak_activations: int


def measure(
    run: Callable[[], Tensor],
    parameters: Iterable[nn.Parameter],
    inputs: Iterable[Tensor] = (),
    *,
    dtype: torch.dtype = torch.float32,
    layers: Iterable[nn.Module] = (),
) -> Cost:
    """Count `run()`, and the backward pass of the scalar that it returns where that has a graph.

    parameters, inputs: their bytes, and those of gradients, belong to other parts of the account.
    dtype: of autocast; float32 = none. layers: what activation checkpointing computes again, one by one.
    """
    parameters = list(parameters)
    for parameter in parameters:  # gradients are there already, as after the micro-batches before this one
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    ledger = Ledger()
    ledger.known([*parameters, *inputs, *(p.grad for p in parameters if p.grad is not None)])
    autocast = contextlib.nullcontext() if dtype == torch.float32 else Autocast(dtype, ledger)
    recomputing = False

    def enter(*_) -> None:
        if recomputing:
            autocast.__enter__()

    def leave(*_) -> None:
        if recomputing:
            autocast.__exit__(None, None, None)

    layers = list(layers)
    hooks = [layer.register_forward_pre_hook(enter) for layer in layers]
    hooks += [layer.register_forward_hook(leave, always_call=True) for layer in layers]
    try:
        with ledger:
            with autocast:
                out = run()
                forward, end = ledger.flops, dict(ledger.live)
            recomputing = True
            if out.requires_grad:
                out.backward()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in parameters:
            parameter.grad = None
    return Cost(
        flops=ledger.flops,
        forward=forward,
        kept=end["activations"],
        copies=end["copies"],
        peak=sum(ledger.peak.values()),
        peak_copies=ledger.peak["copies"],
        peak_activations=ledger.peak_activations,
    )

"""A machine with an accelerator, pretended: code that runs under it would run on the real one.

Tensors on "cuda" have sizes, a device and no contents (PyTorch's FakeTensorMode); on the CPU all is as it is.
So an operation on tensors of two devices raises, as there, and what waits for the device is seen: a value
read back (`item`, `tolist`, `bool`), a size that depends on values (`nonzero`, masks), a copy that blocks.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cuda", 0)
DEVICE_OF = torch.ops.prim.device.default
READS = torch.ops.aten._local_scalar_dense.default
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)


class Synchronisation(AssertionError):
    """The program waited for the device where it must not."""


class Accelerator(TorchDispatchMode):
    """Sees what waits for the device.

    waits: what has waited, in words. forbidden: raise Synchronisation instead of counting.
    """

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []
        self.forbidden = False

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Inside, a wait raises."""
        before, self.forbidden = self.forbidden, True
        try:
            yield
        finally:
            self.forbidden = before

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is DEVICE_OF:  # more than half of all calls
            return args[0].device
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        devices += [torch.device(leaf) for leaf in leaves if isinstance(leaf, str) and leaf == DEVICE.type]
        fake = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if not fake and all(device.type != DEVICE.type for device in devices):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        if function is READS:
            self._wait("a value was read back")
            return {torch.bool: True}.get(args[0].dtype, 1)  # something, so that counting goes on
        if function in COPIES:
            self._see_copy(function, tensors, devices, kwargs, args)
        if function in INDEXING and args[0].device != torch.device("cpu"):
            if any(tensor.device.type == "cpu" for tensor in tree_leaves(args[1]) if tensor is not None):
                self._wait("an index came from the CPU")
        try:
            return function(*args, **kwargs)  # FakeTensorMode's, below this one
        except torch._subclasses.fake_tensor.DynamicOutputShapeException as error:
            raise Synchronisation(f"a size depends on values: {function}") from error

    def _see_copy(self, function, tensors, devices, kwargs, args) -> None:
        copied = function is COPIES[1]
        source, target = (tensors[1], tensors[0].device) if copied else (tensors[0], (devices or [None])[0])
        if target is None or source.device.type == target.type:
            return
        non_blocking = args[2] if copied and len(args) > 2 else kwargs.get("non_blocking", False)
        if target.type == "cpu" or not non_blocking:
            self._wait(f"a copy of {list(source.shape)} from {source.device} to {target} blocked")

    def _wait(self, what: str) -> None:
        if self.forbidden:
            raise Synchronisation(what)
        self.waits.append(what)


@contextmanager
def accelerator() -> Iterator[Accelerator]:
    """Inside, `DEVICE` exists. Modules and tensors go there with `.to(DEVICE)`."""
    with FakeTensorMode(allow_non_fake_inputs=True), Accelerator() as mode:
        yield mode

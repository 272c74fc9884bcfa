"""Tensors from the CPU to where the network is."""

import torch
from torch import Tensor


def beside(tensor: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` on the device of `x`, in `dtype`; a copy from the CPU does not wait for that device.

    Such a copy blocks elsewhere: not all devices keep their order with one that does not.
    """
    return tensor.to(x.device, dtype, non_blocking=tensor.is_cpu and x.is_cuda)

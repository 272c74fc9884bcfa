"""The one call to an attention kernel. A host passes its own function of the same signature to the U-Net."""

from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

AttentionFunction = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for every head.

    q `[b s (heads d)]`, k and v `[b n (heads d)]` -> `[b s (heads d)]`.
    """
    q, k, v = (rearrange(x, "b n (heads d) -> b heads n d", heads=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)")

"""UniVid's block (eq. 5): STBlock = PSTConv -> SelfAttn -> PSTAttn -> CrossAttn_Dual -> TemAttn.

`ResBlock` holds the PSTConv part, `SpatialTransformer` the rest; TemAttn hangs on it as `temporal`, so that
the trunk keeps Stable Diffusion's module indices and its LoRAs and checkpoints map onto it.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .config import PositionConfig
from .layers import (
    Context,
    DualCrossAttention,
    FeedForward,
    Layers,
    PSTAttention,
    PSTConv,
    SelfAttention,
    place_embedding,
)


class ResBlock(nn.Module):
    """Stable Diffusion's residual block with a temporal convolution after each of its two convolutions."""

    def __init__(
        self, make: Layers, channels: int, out_channels: int, embedding: int, groups: int, kernel: int | None
    ):
        super().__init__()
        self.in_layers = nn.Sequential(
            make.GroupNorm(groups, channels), nn.SiLU(), make.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), make.Linear(embedding, out_channels))
        self.out_layers = nn.Sequential(
            make.GroupNorm(groups, out_channels),
            nn.SiLU(),
            nn.Identity(),
            make.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else make.Conv2d(channels, out_channels, 1)
        if kernel is not None:
            self.in_temporal = PSTConv(make, out_channels, kernel)
            self.out_temporal = PSTConv(make, out_channels, kernel)
        self.has_temporal = kernel is not None

    def forward(self, x: Tensor, context: Context) -> Tensor:  # [(b t) c h w]
        h = self.in_layers(x)
        if self.has_temporal:
            h = self.in_temporal(h, context.frames)
        shift = self.emb_layers(context.embedding).repeat_interleave(context.frames, dim=0)
        h = self.out_layers(h + shift[..., None, None])
        if self.has_temporal:
            h = self.out_temporal(h, context.frames)
        return self.skip_connection(x) + h


class TransformerBlock(nn.Module):
    """SelfAttn, PSTAttn, CrossAttn_Dual and FeedForward on the tokens of each frame, pre-norm, residual."""

    def __init__(
        self, make: Layers, width: int, context: int, heads: int, factor: int, pst: bool, image: bool
    ):
        super().__init__()
        self.factor = factor
        self.norm1 = make.LayerNorm(width)
        self.attn1 = SelfAttention(make, width, heads)
        self.norm_pst = make.LayerNorm(width) if pst else None
        self.pst_attn = PSTAttention(make, width, heads) if pst else None
        self.norm2 = make.LayerNorm(width)
        self.attn2 = DualCrossAttention(make, width, context, heads, image)
        self.norm3 = make.LayerNorm(width)
        self.ff = FeedForward(make, width)

    def forward(self, x: Tensor, context: Context) -> Tensor:  # [(b t) s d]
        x = x + context.hook.self_attention(self.attn1, self.norm1(x))
        if self.pst_attn is not None and context.frames > 1:
            references = context.references[self.factor]
            if len(references):
                windows = context.steering.windows
                x = x + self.pst_attn(self.norm_pst(x), context.frames, references, windows)
        x = x + self.attn2(self.norm2(x), context, self.factor)
        return x + self.ff(self.norm3(x))


def add_in_time(x: Tensor, z: Tensor) -> Tensor:
    """Frames `[(b t) c h w]` plus tokens along time `[(b h w) t c]`, in x's layout, with no copy of z."""
    tokens = rearrange(x, "(b t) c h w -> b t (h w) c", t=z.shape[1])
    tokens = tokens + rearrange(z, "(b s) t c -> b t s c", b=len(tokens))
    return rearrange(tokens, "b t (h w) c -> (b t) c h w", h=x.shape[-2])


class TemporalTransformer(nn.Module):
    """TemAttn (eq. 8): attention along time at every position, `(b h w) t d`.

    paper: no position encoding is named; we: none in the paper's preset, because the temporal convolutions
    give the order; with `position` the tokens carry their frame's place in the clip.
    """

    def __init__(
        self, make: Layers, width: int, heads: int, groups: int, position: PositionConfig | None, factor: int
    ):
        super().__init__()
        self.position, self.factor = position, factor
        self.norm = make.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = make.Linear(width, width)
        self.norm1 = make.LayerNorm(width)
        self.attn1 = SelfAttention(make, width, heads)
        self.norm2 = make.LayerNorm(width)
        self.ff = FeedForward(make, width)
        self.proj_out = make.Linear(width, width)

    def forward(self, x: Tensor, context: Context) -> Tensor:  # [(b t) c h w]
        if context.frames == 1:
            return x
        # Statistics over the whole clip.
        z = self.norm(rearrange(x, "(b t) c h w -> b c t (h w)", t=context.frames))
        z = self.proj_in(rearrange(z, "b c t s -> b s t c"))
        if self.position:
            z = z + place_embedding(context.places, z.shape[-1], self.position).to(z)[:, None]
        z = rearrange(z, "b s t c -> (b s) t c")
        windows, nearness = context.steering.windows, context.nearness.get(self.factor)
        z = z + self.attn1(self.norm1(z), windows=windows, nearness=nearness)
        z = z + self.ff(self.norm2(z))
        return add_in_time(x, self.proj_out(z))


class SpatialTransformer(nn.Module):
    """GroupNorm, projection, the transformer block on each frame's tokens, projection; then the temporal one.

    temporal: TemporalTransformer, or a relative's, called with the result and the Context.
    """

    def __init__(
        self, make: Layers, width: int, groups: int, block: TransformerBlock, temporal: nn.Module | None
    ):
        super().__init__()
        self.norm = make.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = make.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = make.Linear(width, width)
        self.temporal = temporal

    def forward(self, x: Tensor, context: Context) -> Tensor:  # [(b t) c h w]
        z = self.proj_in(rearrange(self.norm(x), "n c h w -> n (h w) c"))
        for block in self.transformer_blocks:
            z = block(z, context)
        x = x + rearrange(self.proj_out(z), "n (h w) c -> n c h w", h=x.shape[-2])
        return x if self.temporal is None else self.temporal(x, context)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2: half the height and width, rounded up."""

    def __init__(self, make: Layers, channels: int):
        super().__init__()
        self.op = make.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest to the skip's own height and width, so that odd sizes (45 of a 720p latent) work; then 3x3."""

    def __init__(self, make: Layers, channels: int):
        super().__init__()
        self.conv = make.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.conv(interpolate(x, size=size, mode="nearest"))

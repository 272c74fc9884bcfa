"""What the public relatives do otherwise (kind "family"): ModelScope, VideoCrafter, DynamiCrafter, I2VGen-XL.

Their temporal layers run at a single frame too, where a zero-padded convolution and attention to oneself
still compute something: so an imported network gives what its source gives at any number of frames.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from .blocks import ResBlock, add_in_time
from .config import ResamplerConfig
from .layers import Context, FeedForward, Layers, SelfAttention
from .steer import FrameWindows


class StackLayer(nn.Module):
    """GroupNorm over the clip, SiLU and a temporal convolution with k taps, on the plane `b c t (h w)`."""

    def __init__(self, make: Layers, channels: int, groups: int, kernel: int):
        super().__init__()
        self.norm = make.GroupNorm(groups, channels)
        self.conv = make.Conv2d(channels, channels, (kernel, 1), padding=(kernel // 2, 0))

    def forward(self, plane: Tensor) -> Tensor:
        return self.conv(nn.functional.silu(self.norm(plane)))


class StackResBlock(ResBlock):
    """Stable Diffusion's residual block, then four temporal convolutions in a row, added to its result."""

    def __init__(
        self, make: Layers, channels: int, out_channels: int, embedding: int, groups: int, kernel: int
    ):
        super().__init__(make, channels, out_channels, embedding, groups, None)
        self.temporal_stack = nn.Sequential(
            *(StackLayer(make, out_channels, groups, kernel) for _ in range(4))
        )

    def forward(self, x: Tensor, context: Context) -> Tensor:  # [(b t) c h w]
        x = super().forward(x, context)
        plane = self.temporal_stack(rearrange(x, "(b t) c h w -> b c t (h w)", t=context.frames))
        return x + rearrange(plane, "b c t (h w) -> (b t) c h w", h=x.shape[-2])


class DoubleAttentionBlock(nn.Module):
    """Two self-attentions, in windows or not, and a feed-forward on `[s t d]`, pre-norm, residual."""

    def __init__(self, make: Layers, width: int, heads: int):
        super().__init__()
        self.norm1 = make.LayerNorm(width)
        self.attn1 = SelfAttention(make, width, heads)
        self.norm2 = make.LayerNorm(width)
        self.attn2 = SelfAttention(make, width, heads)
        self.norm3 = make.LayerNorm(width)
        self.ff = FeedForward(make, width)

    def forward(
        self, x: Tensor, windows: FrameWindows | None = None, nearness: Tensor | None = None
    ) -> Tensor:
        x = x + self.attn1(self.norm1(x), windows=windows, nearness=nearness)
        x = x + self.attn2(self.norm2(x), windows=windows, nearness=nearness)
        return x + self.ff(self.norm3(x))


class DoubleTemporalTransformer(nn.Module):
    """Attention along time at every position, `(b h w) t d`, with two self-attentions, at a width of its own.

    The width inside is heads x head_channels: after the first convolution it differs from that of x.
    """

    def __init__(self, make: Layers, channels: int, heads: int, head_channels: int, groups: int, factor: int):
        super().__init__()
        self.factor = factor
        width = heads * head_channels
        self.norm = make.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = make.Linear(channels, width)
        self.transformer_blocks = nn.ModuleList([DoubleAttentionBlock(make, width, heads)])
        self.proj_out = make.Linear(width, channels)

    def forward(self, x: Tensor, context: Context) -> Tensor:  # [(b t) c h w]
        # Statistics over the whole clip.
        z = self.norm(rearrange(x, "(b t) c h w -> b c t (h w)", t=context.frames))
        z = self.proj_in(rearrange(z, "b c t s -> (b s) t c"))
        for block in self.transformer_blocks:
            z = block(z, context.steering.windows, context.nearness.get(self.factor))
        return add_in_time(x, self.proj_out(z))


class ResamplerAttention(nn.Module):
    """Queries attend to the picture's tokens and to themselves; no biases but those of the norms."""

    def __init__(self, make: Layers, width: int, heads: int, head_channels: int):
        super().__init__()
        inner = heads * head_channels
        self.heads = heads
        self.attention = make.attention
        self.norm1 = make.LayerNorm(width)
        self.norm2 = make.LayerNorm(width)
        self.to_q = make.Linear(width, inner, bias=False)
        self.to_kv = make.Linear(width, 2 * inner, bias=False)
        self.to_out = make.Linear(inner, width, bias=False)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:  # [b q d], [b m d]
        tokens, queries = self.norm1(tokens), self.norm2(queries)
        k, v = self.to_kv(torch.cat([tokens, queries], dim=1)).chunk(2, dim=-1)
        return self.to_out(self.attention(self.to_q(queries), k, v, self.heads))


class Resampler(nn.Module):
    """Learned queries that gather a picture's tokens `[... m width]` into few: `[... q context]`.

    IP-Adapter's, as VideoCrafter1-I2V has it: one set of tokens for all frames.
    """

    def __init__(self, make: Layers, config: ResamplerConfig, width: int, context: int):
        super().__init__()
        inner = config.width
        self.num_queries = config.tokens * (config.frames or 1)
        self.latents = make.Embedding(self.num_queries, inner)
        self.proj_in = make.Linear(width, inner)
        self.proj_out = make.Linear(inner, context)
        self.norm_out = make.LayerNorm(context)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    ResamplerAttention(make, inner, config.heads, config.head_channels),
                    nn.Sequential(
                        make.LayerNorm(inner),
                        make.Linear(inner, 4 * inner, bias=False),
                        nn.GELU(),
                        make.Linear(4 * inner, inner, bias=False),
                    ),
                ]
            )
            for _ in range(config.depth)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.proj_in(tokens.flatten(0, -3))
        z = self.latents(torch.arange(self.num_queries, device=x.device)).to(x.dtype).expand(len(x), -1, -1)
        for attention, feed_forward in self.layers:
            z = z + attention(z, x)
            z = z + feed_forward(z)
        return self.norm_out(self.proj_out(z)).unflatten(0, tokens.shape[:-2])


class FrameResampler(Resampler):
    """DynamiCrafter's: of the queries each frame of a clip has its own, in the order of the frames.

    One picture `[b m d]` gives tokens a frame, `[b t q d]`, for clips of the length in the config. In a clip
    of another length every frame gets all of them, as in the source: `UNet` joins what does not fit.
    """

    def __init__(self, make: Layers, config: ResamplerConfig, width: int, context: int):
        super().__init__(make, config, width, context)
        self.frames = config.frames

    def forward(self, tokens: Tensor) -> Tensor:
        z = super().forward(tokens).unflatten(-2, (self.frames, -1))  # [b (t) f q d]
        if z.dim() == 4:
            return z
        if z.shape[1] == self.frames:  # a picture a frame: each gives the tokens of its own frame
            return z.diagonal(dim1=1, dim2=2).movedim(-1, 1)
        return z.flatten(2, 3)

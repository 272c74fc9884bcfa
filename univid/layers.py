"""The sublayers of UniVid's block: attentions, feed-forward, the pyramid's convolution and reference frames.

Between layers a video is `[(b t) c h w]` in channels-last memory. There tokens `(b t) (h w) c` and the plane
`b c t (h w)` of the temporal convolution are views, so no layer copies to change its point of view.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial, reduce

import torch
from einops import rearrange
from torch import Tensor, nn

from .attention import AttentionFunction
from .config import PositionConfig
from .hooks import Hook
from .steer import FrameWindows, Steering, dynamics


class Layers:
    """Makes leaves from an `operations` namespace on one device and dtype: `make.Linear(320, 640)`."""

    def __init__(
        self, operations, attention: AttentionFunction, device=None, dtype: torch.dtype | None = None
    ):
        self.operations = operations
        self.attention = attention
        self.kwargs = {"device": device, "dtype": dtype}

    def __getattr__(self, name: str):
        return partial(getattr(self.operations, name), **self.kwargs)


@dataclass(frozen=True)
class Context:
    """What every block of one forward shares.

    embedding: timestep embedding `[b e]`. places: of the frames in their clip, `[b t]`.
    text, image: tokens `[b n d]` or `[b t n d]`, None = stream off; of several pictures one after another.
    weights: of the text and of each picture, a level, {f: `[b 1 1 1+p]`, or a frame, a token, `[b t s 1+p]`}.
    streams: which of them run there.
    references: the frames that PSTAttn-f attends to, {f: indices [n]}: of the clip, or of each window.
    hook: of a host, which may change the trunk's self-attention.
    steering: how layers run other than they were trained to.
    nearness: of the frames, where dynamics act, {f: `[t t]`}.
    """

    frames: int
    embedding: Tensor
    places: Tensor
    text: Tensor | None
    image: Tensor | None
    weights: Mapping[int, Tensor]
    streams: Mapping[int, tuple[bool, bool]]
    references: Mapping[int, Tensor]
    hook: Hook = Hook()
    steering: Steering = Steering()
    nearness: Mapping[int, Tensor] = field(default_factory=dict)

    def alone(self) -> "Context":
        """That of every frame as a clip of its own: `[b ...]` and `[b t ...]` become `[(b t) ...]`."""

        def each(x: Tensor | None, per_clip: int) -> Tensor | None:
            if x is None:
                return None
            return x.repeat_interleave(self.frames, 0) if x.dim() == per_clip else x.flatten(0, 1)

        weights = {f: w.expand(-1, self.frames, -1, -1).flatten(0, 1) for f, w in self.weights.items()}
        return replace(
            self,
            frames=1,
            embedding=each(self.embedding, 2),
            places=self.places.flatten()[:, None],
            text=each(self.text, 3),
            image=each(self.image, 3),
            weights={factor: weight[:, None] for factor, weight in weights.items()},
        )


def segment_centers(frames: int, n: int, device: torch.device | None = None) -> Tensor:
    """The centre frame of each of n even segments of a clip, ascending `[n]`; n is at most `frames`."""
    return (2 * torch.arange(n, device=device) + 1) * frames // (2 * n)


def centers_by_level(
    counts: Mapping[int, int], frames: int, device: torch.device | None = None
) -> dict[int, Tensor]:
    """Evenly spread reference frames, so many a level, {f: indices}; more than the clip has are all."""
    return {f: segment_centers(frames, min(n, frames), device) for f, n in counts.items()}


def reference_frames(
    frames: int,
    segment_frames: int,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """The reference frames Gamma_f of eq. 6: one of each of n = ceil(frames / segment_frames) even segments.

    paper: "n_f reference frames from each segment"; we: one frame a segment, n_f segments, because that alone
    gives the dense middle and sparse outside of Fig. 1. With a generator (training) the frame is uniform in
    its segment, without (inference) it is the centre. Returns ascending indices `[n]`, drawn ones on the CPU.
    """
    n = math.ceil(frames / segment_frames)
    if generator is None:
        return segment_centers(frames, n, device)
    j = torch.arange(n)
    first, last = j * frames // n, (j + 1) * frames // n
    return first + (torch.rand(n, generator=generator) * (last - first)).long()


class PSTConv(nn.Module):
    """PSTConv-f: a channel-mixing temporal convolution with k_f taps, added to its input.

    paper: "stack a 1D temporal convolution after each 2D convolution"; we: residual and zero-initialised, so
    that an image model stays itself. A Conv2d with kernel (k, 1) over `b c t (h w)` is that 1-D convolution.
    """

    def __init__(self, make: Layers, channels: int, kernel: int):
        super().__init__()
        self.conv = make.Conv2d(channels, channels, (kernel, 1), padding=(kernel // 2, 0))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        if frames == 1:
            return x
        plane = rearrange(x, "(b t) c h w -> b c t (h w)", t=frames)
        return x + rearrange(self.conv(plane), "b c t (h w) -> (b t) c h w", h=x.shape[-2])


class SelfAttention(nn.Module):
    """Multi-head attention with Stable Diffusion's projections; keys, values from `context` or x itself.

    windows, nearness: of tokens that are frames: each sees those of its windows alone, and more of the near
    ones, by `[s s]`.
    """

    def __init__(self, make: Layers, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention = make.attention
        self.to_q = make.Linear(width, width, bias=False)
        self.to_k = make.Linear(width, width, bias=False)
        self.to_v = make.Linear(width, width, bias=False)
        self.to_out = nn.ModuleList([make.Linear(width, width)])

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        windows: FrameWindows | None = None,
        nearness: Tensor | None = None,
    ) -> Tensor:  # [b s d], [b n d]
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        attend = self.attention if nearness is None else partial(dynamics.attention, nearness=nearness)
        if windows is None:
            out = attend(q, k, v, self.heads)
        else:
            out = windows.averaged(
                lambda part: attend(q[:, part], k[:, part], v[:, part], self.heads), x.shape[1]
            )
        return self.to_out[0](out)


class PSTAttention(SelfAttention):
    """PSTAttn-f (eq. 6): every token of every frame attends to all tokens of the reference frames.

    The reference frames are the same for all queries of a clip, so this is one attention call; with windows
    of their own ones it is one each.
    """

    def forward(
        self, x: Tensor, frames: int, references: Tensor, windows: FrameWindows | None = None
    ) -> Tensor:  # [(b t) s d]
        clip = rearrange(x, "(b t) s d -> b t s d", t=frames)
        if windows is None or windows.references == "clip":
            out = self._attend(clip, references)
        else:
            out = windows.averaged(lambda part: self._attend(clip[:, part], references), frames)
        return rearrange(out, "b t s d -> (b t) s d")

    def _attend(self, clip: Tensor, references: Tensor) -> Tensor:
        gamma = rearrange(clip[:, references], "b n s d -> b (n s) d")
        out = super().forward(rearrange(clip, "b t s d -> b (t s) d"), gamma)
        return rearrange(out, "b (t s) d -> b t s d", t=clip.shape[1])


class DualCrossAttention(nn.Module):
    """CrossAttn_Dual (eq. 7): to_out(lambda_t A(Q, K_t, V_t) + lambda_v A(Q, K_v, V_v)).

    Of several pictures the answers add up, each with its weight, under the same K_v and V_v, as in UniVG's
    multi-condition cross-attention (2401.09084, 3.3).

    A network without an image stream has no K_v and V_v: then this is Stable Diffusion's own.
    """

    def __init__(self, make: Layers, width: int, context: int, heads: int, image: bool):
        super().__init__()
        self.heads = heads
        self.attention = make.attention
        self.to_q = make.Linear(width, width, bias=False)
        self.to_k = make.Linear(context, width, bias=False)
        self.to_v = make.Linear(context, width, bias=False)
        if image:
            self.to_k_image = make.Linear(context, width, bias=False)
            self.to_v_image = make.Linear(context, width, bias=False)
        self.to_out = nn.ModuleList([make.Linear(width, width)])

    def forward(self, x: Tensor, context: Context, factor: int) -> Tensor:  # [(b t) s d]
        q = self.to_q(x)
        streams, (text, image) = [], context.streams[factor]
        text_weight, *image_weights = context.weights[factor].unbind(-1)
        if text:
            k, v = self.to_k(context.text), self.to_v(context.text)
            streams.append(self._stream(q, k, v, context.frames, text_weight))
        if image:
            k, v = self.to_k_image(context.image), self.to_v_image(context.image)
            parts = (x.chunk(len(image_weights), dim=-2) for x in (k, v))
            for weight, k, v in zip(image_weights, *parts, strict=True):
                streams.append(self._stream(q, k, v, context.frames, weight))
        return self.to_out[0](reduce(torch.add, streams) if streams else torch.zeros_like(q))

    def _stream(self, q: Tensor, k: Tensor, v: Tensor, frames: int, weight: Tensor) -> Tensor:
        """weight * A(q, k, v), weight `[b 1|t 1|s]`.

        What all frames share is projected once, and all frames query it at once.
        """
        if k.dim() == 3:
            q = rearrange(q, "(b t) s d -> b (t s) d", t=frames)
            out = rearrange(self.attention(q, k, v, self.heads), "b (t s) d -> b t s d", t=frames)
        else:
            k, v = (rearrange(y, "b t n d -> (b t) n d") for y in (k, v))
            out = rearrange(self.attention(q, k, v, self.heads), "(b t) s d -> b t s d", t=frames)
        if weight.shape[2] not in (1, out.shape[2]):
            raise ValueError(
                f"the masks are of {weight.shape[2]} cells a frame here, and something made the frame "
                f"{out.shape[2]} cells; take away the masks, or what changes the frame's size (Patch Model "
                "Add Downscale)."
            )
        return rearrange(weight[..., None] * out, "b t s d -> (b t) s d")


class GEGLU(nn.Module):
    """A linear layer whose one half gates the other through GELU (2002.05202)."""

    def __init__(self, make: Layers, width: int, inner: int):
        super().__init__()
        self.proj = make.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * nn.functional.gelu(gate)


# Tokens that go through a feed-forward at once: inside they take sixteen times their own memory, the most of
# the whole network. A CPU is faster too where that fits its cache; other devices need many to be busy.
CPU_TOKENS, TOKENS = 1024, 32768


class FeedForward(nn.Module):
    """Stable Diffusion's gated feed-forward, four times as wide inside, a number of tokens at a time."""

    tokens: int | None = None  # at once; None = what suits the device

    def __init__(self, make: Layers, width: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(make, width, 4 * width), nn.Identity(), make.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.flatten(0, -2).split(self.tokens or (CPU_TOKENS if x.is_cpu else TOKENS))
        out = self.net(parts[0]) if len(parts) == 1 else torch.cat([self.net(part) for part in parts])
        return out.view(x.shape)


def timestep_embedding(timesteps: Tensor, width: int, period: float = 10000) -> Tensor:
    """Sinusoids of the timestep, cosines first: `[b]` -> `[b width]` in float32.

    Frequencies fall from 1 towards 1 / period.
    """
    frequencies = torch.exp(
        -math.log(period)
        * torch.arange(width // 2, device=timesteps.device, dtype=torch.float32)
        / (width // 2)
    )
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def even_places(frames: int, device: torch.device | None = None) -> Tensor:
    """The places of a whole clip's frames, `[t]` in 0..1: the same at any frame rate; -1 for one frame."""
    if frames == 1:
        return torch.full((1,), -1.0, device=device)
    return (torch.arange(frames, device=device) + 0.5) / frames


def place_embedding(places: Tensor, width: int, position: PositionConfig) -> Tensor:
    """Sinusoids of places in a clip, `[b t]` -> `[b t width]` float32; zeros for a picture of its own."""
    angles = position.scale * places.flatten()
    sinusoids = timestep_embedding(angles, width, position.period).unflatten(0, places.shape)
    return sinusoids * (places >= 0)[..., None]

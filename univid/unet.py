"""UniVid's U-Net: Stable Diffusion's trunk, pyramid spatial-temporal layers, dual-stream cross-attention."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import AttentionFunction, attention
from .blocks import (
    Downsample,
    ResBlock,
    SpatialTransformer,
    TemporalTransformer,
    TransformerBlock,
    Upsample,
)
from .conditioning import Conditioning
from .config import ImageStreamConfig, UNetConfig
from .devices import beside
from .family import DoubleTemporalTransformer, FrameResampler, Resampler, StackResBlock
from .hooks import Hook
from .layers import Context, Layers, even_places, place_embedding, reference_frames, timestep_embedding
from .steer import Steering
from .steer.dynamics import FINEST
from .steer.reuse import Call

BLOCKS = 128  # more than any of the networks has, for some lengths and sizes


class ImageProjection(nn.Module):
    """Image tokens `[... width]` into the text context space `[... context_dim]`.

    Starts from CLIP's ln_post and visual projection (UniVG), so K_v and V_v can start as K_t and V_t.
    """

    def __init__(self, make: Layers, width: int, context: int):
        super().__init__()
        self.norm = make.LayerNorm(width)
        self.proj = make.Linear(width, context, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.proj(self.norm(tokens))


def build_image_projection(make: Layers, config: ImageStreamConfig, context: int) -> nn.Module:
    """What brings image tokens `[b m width]` into the text context space: `[b n d]`, or `[b t n d]`."""
    if config.resampler is None:
        return ImageProjection(make, config.width, context)
    kind = Resampler if config.resampler.frames is None else FrameResampler
    return kind(make, config.resampler, config.width, context)


class UNet(nn.Module):
    """Predicts eps, v or x0 of noisy latents `[b c t h w]` at timesteps `[b]` under a Conditioning.

    Args:
        operations: namespace of the leaves (Linear, Conv2d, GroupNorm, LayerNorm); a host passes its own.
        attention: function (q, k, v, heads) -> out of every attention.
        dtype: kept as `.dtype`, the type that inputs come in. It does not follow the weights, because a host
            may hold them in another type and cast them in its operations; who moves the weights sets it.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        operations=torch.nn,
        attention: AttentionFunction = attention,
        device=None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.config = config
        self.dtype = dtype or torch.get_default_dtype()
        self.checkpointing = (
            False  # recompute activations in the backward pass: less memory, a third more time
        )
        self.compiled: dict[nn.Module, Callable] = {}  # what runs in the place of a block
        make = Layers(operations, attention, device, dtype)
        channels, groups = config.model_channels, config.norm_groups
        embedding = 4 * channels
        temporal, stream = config.temporal, config.image_stream
        family = temporal.kind == "family"

        def res_block(width: int, out: int, level: int) -> ResBlock:
            kernel = temporal.conv_kernels[level] if temporal.conv_kernels else None
            kind = StackResBlock if family and kernel is not None else ResBlock
            return kind(make, width, out, embedding, groups, kernel)

        def temporal_transformer(width: int, heads: int, level: int) -> nn.Module:
            factor = config.factors[level]
            if family:
                return DoubleTemporalTransformer(make, width, heads, config.head_channels, groups, factor)
            return TemporalTransformer(make, width, heads, groups, temporal.position, factor)

        def transformer(width: int, level: int) -> SpatialTransformer:
            heads = width // config.head_channels
            pst, image, factor = bool(temporal.segment_frames), stream is not None, config.factors[level]
            block = TransformerBlock(make, width, config.context_dim, heads, factor, pst, image)
            time = temporal_transformer(width, heads, level) if temporal.attention else None
            return SpatialTransformer(make, width, groups, block, time)

        self.time_embed = nn.Sequential(
            make.Linear(channels, embedding), nn.SiLU(), make.Linear(embedding, embedding)
        )
        self.place_scale = (
            make.Linear(channels, config.context_dim, bias=False) if temporal.position else None
        )
        for name in config.numbers:  # in the state dict: fps_embedding.0.weight and so on
            layers = make.Linear(channels, embedding), nn.SiLU(), make.Linear(embedding, embedding)
            setattr(self, f"{name}_embedding", nn.Sequential(*layers))
        self.image_projection = (
            build_image_projection(make, stream, config.context_dim) if stream is not None else None
        )

        widths = [channels * mult for mult in config.channel_mult]
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([make.Conv2d(config.in_channels, channels, 3, padding=1)])]
        )
        if temporal.input_heads is not None:
            self.input_blocks[0].append(temporal_transformer(channels, temporal.input_heads, 0))
        skips = [channels]
        width = channels
        for level, out in enumerate(widths):
            for _ in range(config.num_res_blocks):
                block = nn.ModuleList([res_block(width, out, level)])
                width = out
                if config.attention_levels[level]:
                    block.append(transformer(width, level))
                self.input_blocks.append(block)
                skips.append(width)
            if level < len(widths) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(make, width)]))
                skips.append(width)

        level = len(widths) - 1
        self.middle_block = nn.ModuleList(
            [res_block(width, width, level), transformer(width, level), res_block(width, width, level)]
        )

        self.output_blocks = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for i in range(config.num_res_blocks + 1):
                block = nn.ModuleList([res_block(width + skips.pop(), out, level)])
                width = out
                if config.attention_levels[level]:
                    block.append(transformer(width, level))
                if level > 0 and i == config.num_res_blocks:
                    block.append(Upsample(make, width))
                self.output_blocks.append(block)

        self.out = nn.Sequential(
            make.GroupNorm(groups, channels),
            nn.SiLU(),
            make.Conv2d(channels, config.out_channels, 3, padding=1),
        )

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        cond: Conditioning,
        *,
        reference_frames: Mapping[int, Sequence[int] | Tensor] | None = None,
        streams: tuple[bool, bool] | None = None,
        hook: Hook | None = None,
        steering: Steering = Steering(),  # noqa: B008 (it is frozen)
        alone: bool = False,
        kept: Call | None = None,
    ) -> Tensor:
        """Run the network on any number of frames, height and width.

        Args:
            x: noisy latents `[b c t h w]`. timesteps: `[b]`.
            cond: text and image tokens, modality weights, concat latents, numbers.
            reference_frames: frame indices for PSTAttn-f by level, {f: indices}; a level left out takes the
                centre of each segment, one without indices has no PSTAttn. Where the steering has windows of
                their own reference frames, they are indices of a window.
            streams: whether the streams of text and image run; None = those with a weight other than 0
                somewhere. One that runs at weight 0 adds nothing but gradients of zero: processes that train
                together have to run the same layers.
            hook: sees and may change what flows through the trunk (control nets and the like); None = nobody.
            steering: how the network runs other than it was trained to: what of it acts in this call.
            alone: every frame is a clip of its own, a picture, so no layer over time acts (a relative's act
                on one frame).
            kept: what a run keeps of its deep blocks, as far as this call goes; None = all blocks run.

        Raises:
            ValueError: conditions for other clips or frames than x has, windows longer than the clip, an
                image weight without image tokens, other input channels, or a level, a number or an image
                stream that the network does not have.
        """
        frames = x.shape[2]
        hook = hook or Hook()
        context = self._context(x, timesteps, cond, reference_frames or {}, streams, hook, steering, alone)
        if cond.concat is not None:
            x = torch.cat([x, cond.concat], dim=1)
        if x.shape[1] != self.config.in_channels:
            raise ValueError(
                f"expected {self.config.in_channels} channels of latents and concat latents together, "
                f"got {x.shape[1]}; give the concat latents that this model takes, or none."
            )
        h = rearrange(x, "b c t h w -> (b t) c h w").contiguous(memory_format=torch.channels_last)

        inputs, outputs, skips = list(self.input_blocks), list(self.output_blocks), []
        reused = None if kept is None else kept.found
        last = None if kept is None else len(outputs) - kept.blocks  # the first of the last blocks
        for index, block in enumerate(inputs if reused is None else inputs[: kept.blocks]):
            hook.enter("input", index)
            h = self._run(block, h, context)
            h, skip = hook.between("input", index, h, h)
            skips.append(skip)
        if reused is None:
            hook.enter("middle", 0)
            h = self._run(self.middle_block, h, context)
            h, _ = hook.between("middle", 0, h, h)
        else:
            h = reused
            hook.leave_out(last)
        for index, block in enumerate(outputs):
            if reused is not None and index < last:
                continue
            if reused is None and index == last:
                kept.keep(h)
            hook.enter("output", index)
            h = torch.cat(hook.between("output", index, h, skips.pop()), dim=1)
            h = self._run(block, h, context, size=skips[-1].shape[-2:] if skips else None)
        out = self.compiled.get(self.out, self.out)(h)
        return rearrange(out, "(b t) c h w -> b c t h w", t=frames)

    def blocks(self) -> list[nn.Module]:
        """The layers that run one after the other: what is compiled, and what training shards, one by one."""
        return [
            layer for block in (*self.input_blocks, self.middle_block, *self.output_blocks) for layer in block
        ]

    def compile_blocks(self, dynamic: bool | None = False, **settings) -> None:
        """Let torch.compile translate each block when it first runs, which takes minutes at full size.

        It does so again for another number of frames, size or set of streams, and not for other prompts,
        seeds or weights. dynamic, settings: torch.compile's; None = what fits any length from the second one
        on. The network is as before with an empty `compiled`.
        """
        # Blocks of a kind share their code, which is translated for each width.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, BLOCKS)
        self.compiled = {
            block: torch.compile(block, dynamic=dynamic, **settings) for block in (*self.blocks(), self.out)
        }

    def number_embedding(self, name: str) -> nn.Sequential:
        """The layers that embed one of the config's numbers."""
        return getattr(self, f"{name}_embedding")

    def _context(
        self,
        x: Tensor,
        timesteps: Tensor,
        cond: Conditioning,
        given: Mapping,
        streams: tuple[bool, bool] | None,
        hook: Hook,
        steering: Steering,
        alone: bool,
    ) -> Context:
        clips, frames = x.shape[0], x.shape[2]
        if cond.clips != clips or cond.frames not in (None, frames):
            shape = f"{cond.clips} clips" + (f" of {cond.frames} frames" if cond.frames else "")
            raise ValueError(
                f"expected conditions for {clips} clips of {frames} frames, as x has, got {shape}."
            )
        if set(cond.numbers) != set(self.config.numbers):
            known, told = (", ".join(sorted(n)) or "none" for n in (self.config.numbers, cond.numbers))
            raise ValueError(
                f"expected a conditioning with the numbers that this model is told ({known}), got {told}; "
                "give these and no others."
            )
        steering.check(frames)
        for name, levels in (("level_weights", cond.level_weights), ("reference_frames", given)):
            if unknown := sorted(set(levels) - set(self.config.factors)):
                raise ValueError(f"{name} must be for levels among {self.config.factors}, got {unknown}.")
        streams = streams or cond.streams()
        channels = self.config.model_channels
        embedding = self.time_embed(timestep_embedding(timesteps, channels).to(x.dtype))
        for name in self.config.numbers:
            number = timestep_embedding(cond.numbers[name], channels).to(x.dtype)
            embedding = embedding + self.number_embedding(name)(number)
        if cond.places is None:
            places = even_places(frames, x.device).expand(clips, -1)
        else:
            places = beside(cond.places, x)
        if alone:
            places = torch.full_like(places, -1)
        text = cond.text
        if self.place_scale is not None:
            # What "moves left" means for a frame depends on the frame's place in the clip, and on nothing but
            # the two together, so here they meet as a product.
            where = place_embedding(places, channels, self.config.temporal.position)
            scale = 1 + self.place_scale(where.to(x.dtype))  # [b t d]
            text = (text if text.dim() == 4 else text[:, None]) * scale[:, :, None]
        references = {
            factor: beside(torch.as_tensor(given[factor]), x)
            if factor in given
            else reference_frames(steering.referable(frames), segment, device=x.device)
            for factor, segment in zip(self.config.factors, self.config.temporal.segment_frames, strict=False)
        }
        levels = {factor: cond.level_weights.get(factor, (1.0, 1.0)) for factor in self.config.factors}
        context = Context(
            frames=frames,
            embedding=embedding,
            places=places,
            text=text if streams[0] else None,
            image=self._image(cond, frames) if streams[1] else None,
            # As tensors: a number would be part of a compiled block, and another number another block.
            weights={
                factor: beside(cond.at_level(factor, *x.shape[-2:]), x, x.dtype)
                for factor in self.config.factors
            },
            streams={
                factor: tuple(on and weight != 0 for on, weight in zip(streams, level, strict=True))
                for factor, level in levels.items()
            },
            references=references,
            hook=hook,
            steering=steering,
            nearness=self._nearness(steering, frames, x.device),
        )
        return context.alone() if alone else context

    def _nearness(self, steering: Steering, frames: int, device: torch.device) -> dict[int, Tensor]:
        if steering.dynamics is None:
            return {}
        with_time = [f for f, on in zip(self.config.factors, self.config.attention_levels, strict=True) if on]
        return dict.fromkeys(with_time[:FINEST], steering.dynamics.nearness(frames, device))

    def _image(self, cond: Conditioning, frames: int) -> Tensor:
        """Image tokens in the text context space, `[b n d]` or `[b t n d]`."""
        if self.image_projection is None:
            raise ValueError(
                "expected an image weight of 0 for a model without an image stream, got another; set it to 0."
            )
        if cond.image is None:
            raise ValueError(
                "expected image tokens for an image weight above 0, got none; give a picture or weight 0."
            )
        pictures = [self.image_projection(tokens) for tokens in cond.image.chunk(cond.pictures, dim=-2)]
        if pictures[0].dim() == 4 and pictures[0].shape[1] != frames:  # tokens a frame, for another length
            pictures = [tokens.flatten(1, 2) for tokens in pictures]
        return torch.cat(pictures, dim=-2) if len(pictures) > 1 else pictures[0]

    def _run(
        self, block: nn.ModuleList, h: Tensor, context: Context, size: torch.Size | None = None
    ) -> Tensor:
        for layer in block:
            call = self.compiled.get(layer, layer)
            if isinstance(layer, ResBlock | SpatialTransformer | DoubleTemporalTransformer):
                call = partial(call, context=context)
            elif isinstance(layer, Upsample):
                call = partial(call, size=size)
            if self.checkpointing and self.training:
                h = checkpoint(call, h, use_reentrant=False)
            else:
                h = call(h)
        return h

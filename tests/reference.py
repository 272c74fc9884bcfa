"""What tests compare with: UniVid's equations as plain loops, and diffusers' U-Net that carries them."""

import math

import diffusers
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from torch import nn

from univid.blocks import ResBlock, SpatialTransformer
from univid.checkpoints.names import diffusers_unet
from univid.config import ImageStreamConfig, TemporalConfig, UNetConfig
from univid.unet import UNet

SMALL = UNetConfig(
    in_channels=4,
    out_channels=4,
    model_channels=32,
    channel_mult=(1, 2, 4, 4),
    num_res_blocks=2,
    attention_levels=(True, True, True, False),
    head_channels=16,
    context_dim=48,
    norm_groups=8,
    numbers=(),
    temporal=TemporalConfig(
        kind="univid",
        conv_kernels=(3, 5, 7, 9),
        segment_frames=(8, 4, 2, 1),
        attention=True,
        input_heads=None,
        position=None,
    ),
    image_stream=ImageStreamConfig(width=40, resampler=None),
)
# ModelScope's, ZeroScope's and the other relatives' layers.
RELATIVE = UNetConfig(
    in_channels=4,
    out_channels=4,
    model_channels=32,
    channel_mult=(1, 2, 2, 2),
    num_res_blocks=1,
    attention_levels=(True, True, True, False),
    head_channels=8,
    context_dim=48,
    norm_groups=8,
    numbers=(),
    temporal=TemporalConfig(
        kind="family",
        conv_kernels=(3, 3, 3, 3),
        segment_frames=(),
        attention=True,
        input_heads=8,
        position=None,
    ),
    image_stream=None,
)
NEW = (
    "temporal.",
    "pst",
    "_image",
    "image_projection",
    "place_scale",
)  # what a tensor is called that Stable Diffusion lacks


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomize(module, seed=0):
    """Every parameter random, at a scale that keeps the size of activations."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                noise *= parameter[0].numel() ** -0.5
            elif name == "weight":
                noise = 1 + 0.2 * noise
            else:
                noise *= 0.1
            parameter.copy_(noise)
    return module.eval()


@torch.no_grad()
def silence(unet):
    """Zero the last layer of every temporal part."""
    for name, parameter in unet.named_parameters():
        if "_temporal.conv" in name or "pst_attn.to_out" in name or "temporal.proj_out" in name:
            parameter.zero_()
    return unet


def attend(q, k, v, heads):
    """q `[s d]`, k and v `[n d]`: softmax(q k^T / sqrt(d / heads)) v, head by head."""
    out = []
    for q_h, k_h, v_h in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        out.append((q_h @ k_h.T / q_h.shape[-1] ** 0.5).softmax(-1) @ v_h)
    return torch.cat(out, -1)


def centres(frames, segment_frames):
    """The middle of each of n = ceil(F / r_f) segments."""
    n = -(-frames // segment_frames)
    return [((2 * j + 1) * frames) // (2 * n) for j in range(n)]


def temporal_conv(x, conv):
    """x_i + bias + sum_j W_j x_(i + j - k // 2) with zeros outside the clip, for x `[b t c h w]`."""
    taps = conv.weight[..., 0]  # [o c k]
    out = x.clone()
    for i in range(x.shape[1]):
        out[:, i] += conv.bias[:, None, None]
        for j in range(taps.shape[2]):
            frame = i + j - taps.shape[2] // 2
            if 0 <= frame < x.shape[1]:
                out[:, i] += torch.einsum("oc,bchw->bohw", taps[:, :, j], x[:, frame])
    return out


def pst_attention(x, references, layer):
    """Eq. 6 for x `[b t s d]`: frame i asks, the tokens of the reference frames together answer."""
    out = torch.empty_like(x)
    for clip in range(x.shape[0]):
        gamma = torch.cat([x[clip, j] for j in references])
        k, v = gamma @ layer.to_k.weight.T, gamma @ layer.to_v.weight.T
        for i in range(x.shape[1]):
            q = x[clip, i] @ layer.to_q.weight.T
            out[clip, i] = layer.to_out[0](attend(q, k, v, layer.heads))
    return out


def place_in_clip(places, width, position):
    """Cosines, then sines, of each frame's place in the clip: `[t]` -> `[t width]`."""
    out = torch.zeros(len(places), width)
    for k, place in enumerate(places.tolist()):
        for i in range(width // 2) if place >= 0 else ():
            angle = position.scale * place * position.period ** (-i / (width // 2))
            out[k, i], out[k, width // 2 + i] = math.cos(angle), math.sin(angle)
    return out


def even_places(frames):
    return torch.tensor([(k + 0.5) / frames for k in range(frames)])


def temporal_attention(x, layer, places=None):
    """Eq. 8 for x `[b t c h w]`: at every position of a clip its frames attend to each other."""
    out = x.clone()
    places = even_places(x.shape[1]).expand(len(x), -1) if places is None else places
    for clip, video in enumerate(x):
        groups = video.unflatten(1, (layer.norm.num_groups, -1))  # [t g c/g h w]
        mean = groups.mean((0, 2, 3, 4), keepdim=True)
        var = groups.var((0, 2, 3, 4), keepdim=True, correction=0)
        z = ((groups - mean) / (var + 1e-6).sqrt()).flatten(1, 2)
        z = z * layer.norm.weight[:, None, None] + layer.norm.bias[:, None, None]
        for row in range(x.shape[3]):
            for column in range(x.shape[4]):
                y = layer.proj_in(z[:, :, row, column])  # [t c]
                if layer.position:
                    y = y + place_in_clip(places[clip], y.shape[1], layer.position)
                normed = layer.norm1(y)
                q, k, v = (
                    normed @ to.weight.T for to in (layer.attn1.to_q, layer.attn1.to_k, layer.attn1.to_v)
                )
                y = y + layer.attn1.to_out[0](attend(q, k, v, layer.attn1.heads))
                value, gate = layer.ff.net[0].proj(layer.norm2(y)).chunk(2, -1)
                y = y + layer.ff.net[2](value * nn.functional.gelu(gate))
                out[clip, :, :, row, column] += layer.proj_out(y)
    return out


def stable_diffusion(unet):
    """diffusers' U-Net with the trunk's weights of `unet`; a tensor too few or too many is an error."""
    config = unet.config
    widths = [config.model_channels * mult for mult in config.channel_mult]
    kinds = ["CrossAttn" if attention else "" for attention in config.attention_levels]
    theirs = diffusers.UNet2DConditionModel(
        block_out_channels=widths,
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
        layers_per_block=config.num_res_blocks,
        attention_head_dim=[
            width // config.head_channels for width in widths
        ],  # their name for the number of heads
        cross_attention_dim=config.context_dim,
        norm_num_groups=config.norm_groups,
        use_linear_projection=True,
    )
    table = diffusers_unet(config)
    trunk = {
        name: tensor for name, tensor in unet.state_dict().items() if not any(new in name for new in NEW)
    }
    theirs.load_state_dict({table.source(name): tensor for name, tensor in trunk.items()}, strict=True)
    return theirs.eval()


class PlainUniVid:
    """The whole network again: diffusers' U-Net over all frames, with the loops above hooked in between."""

    def __init__(self, unet):
        self.theirs, self.image_projection = stable_diffusion(unet), unet.image_projection
        self.place_scale = unet.place_scale
        self.width, self.position = unet.config.model_channels, unet.config.temporal.position
        table = diffusers_unet(unet.config)
        for name, layer in unet.named_modules():
            if isinstance(layer, ResBlock):
                self._hook_res_block(
                    table.source(f"{name}.in_layers.2.weight").removesuffix(".conv1.weight"), layer
                )
            elif isinstance(layer, SpatialTransformer):
                self._hook_transformer(
                    table.source(f"{name}.proj_in.weight").removesuffix(".proj_in.weight"), layer
                )

    @torch.no_grad()
    def __call__(self, x, timesteps, text, image, image_weight, references=None, places=None):
        """x `[b c t h w]`, text `[b n d]`, image `[b m d]`, one lambda_v for all; lambda_t = 1."""
        clips, _, self.frames, h, w = x.shape
        self.where = even_places(self.frames).expand(clips, -1) if places is None else places
        text = text.repeat_interleave(self.frames, 0)
        if self.place_scale is not None:
            sinusoids = place_in_clip(self.where.flatten(), self.width, self.position)  # [(b t) width]
            text = text + text * (sinusoids @ self.place_scale.weight.T)[:, None]
        self.factors = {-(-h // f) * -(-w // f): f for f in (1, 2, 4, 8)}  # by the number of cells
        self.references = references or {}
        for processor in self.theirs.attn_processors.values():
            if isinstance(processor, IPAdapterAttnProcessor2_0):
                processor.scale = [image_weight]
        tokens = (
            text,
            [self.image_projection(image).repeat_interleave(self.frames, 0)],
        )
        out = self.theirs(
            x.transpose(1, 2).flatten(0, 1), timesteps.repeat_interleave(self.frames), tokens
        ).sample
        return out.unflatten(0, (clips, self.frames)).transpose(1, 2)

    def _clips(self, x):
        return x.unflatten(0, (-1, self.frames))

    def _hook_res_block(self, name, layer):
        theirs = self.theirs.get_submodule(name)
        for conv, temporal in ((theirs.conv1, layer.in_temporal), (theirs.conv2, layer.out_temporal)):

            def after(module, args, out, temporal=temporal):
                assert temporal.conv.kernel_size == (2 * self._level(out) + 3, 1)
                return temporal_conv(self._clips(out), temporal.conv).flatten(0, 1)

            conv.register_forward_hook(after)

    def _hook_transformer(self, name, layer):
        theirs, ours = self.theirs.get_submodule(name), layer.transformer_blocks[0]
        block = theirs.transformer_blocks[0]
        residual = {}

        def after_self_attention(module, args, out):
            x = residual.pop("x") + out
            factor = self.factors[x.shape[1]]
            references = self.references.get(factor, centres(self.frames, 8 // factor))
            return out + pst_attention(self._clips(ours.norm_pst(x)), references, ours.pst_attn).flatten(0, 1)

        block.register_forward_pre_hook(lambda module, args: residual.update(x=args[0]))
        block.attn1.register_forward_hook(after_self_attention)
        theirs.register_forward_hook(
            lambda module, args, out: (
                temporal_attention(self._clips(out[0]), layer.temporal, self.where).flatten(0, 1),
            )
        )
        block.attn2.processor = image_processor(ours.attn2)

    def _level(self, x):
        return self.factors[x.shape[2] * x.shape[3]].bit_length() - 1


def image_processor(layer, scale=1.0):
    """diffusers' IP-Adapter attention with the image weights of our dual-stream `layer`."""
    width, context = layer.to_k_image.weight.shape
    processor = IPAdapterAttnProcessor2_0(width, context, num_tokens=(1,), scale=scale)
    weights = {"to_k_ip.0.weight": layer.to_k_image.weight, "to_v_ip.0.weight": layer.to_v_image.weight}
    processor.load_state_dict(weights, strict=True)
    return processor


def built_with_operations(config):
    """A UNet on the meta device, and the parameters of the leaves that `operations` made, {id: name}."""
    made = []

    class Operations:
        def __getattr__(self, name):
            def make(*args, **kwargs):
                made.append(getattr(torch.nn, name)(*args, **kwargs))
                return made[-1]

            return make

    unet = UNet(config, operations=Operations(), device="meta", dtype=torch.float16)
    return unet, {id(p): name for layer in made for name, p in layer.named_parameters(recurse=False)}


def difference(a, b):
    return (a - b).abs().max().item()

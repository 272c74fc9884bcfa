"""The relatives' networks (kind "family") against diffusers, every parameter random, and their extension."""

import copy
import dataclasses

import diffusers
import pytest
import torch
from reference import RELATIVE, difference, randn, randomize

from univid.attention import attention
from univid.checkpoints import describe, load, save
from univid.checkpoints.family_names import diffusers_family_unet
from univid.checkpoints.names import Table, fetch, resolve
from univid.conditioning import Conditioning
from univid.config import ImageStreamConfig
from univid.model import UniVid
from univid.presets import FAMILY, PROFILES
from univid.unet import UNet

TIMESTEPS, TEXT, IMAGE = torch.tensor([3, 800]), randn(2, 7, 48, seed=1), randn(2, 6, 40, seed=2)
TEXT_ONLY, BOTH = torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[1.0, 0.7]] * 2)
I2VGENXL_REST = ("image_latents_.*", "context_embedding.*")  # what makes its conditions


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def diffusers_config(config):
    return {
        "block_out_channels": [config.model_channels * mult for mult in config.channel_mult],
        "layers_per_block": config.num_res_blocks,
        "cross_attention_dim": config.context_dim,
        "attention_head_dim": config.head_channels,
        "norm_num_groups": config.norm_groups,
    }


def imported(theirs, config, dropped=()):
    """Our network with their weights; a tensor too few or too many is an error."""
    unet, weights = UNet(config).eval(), theirs.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    found = resolve(Table(diffusers_family_unet(config).renames, dropped), shapes, weights)
    state = {name: fetch(source, shapes[name], weights.__getitem__) for name, source in found.items()}
    unet.load_state_dict(state, strict=True)
    return unet


@pytest.fixture(scope="module")
def t2v():
    theirs = randomize(diffusers.UNet3DConditionModel(**diffusers_config(RELATIVE)))
    return theirs, imported(theirs, RELATIVE)


# diffusers


@pytest.mark.parametrize(
    ("frames", "size"), [(1, (8, 8)), (2, (9, 16)), (5, (9, 16)), (3, (23, 9)), (24, (2, 3))]
)
def test_text_to_video_is_diffusers(t2v, frames, size):
    theirs, unet = t2v
    x, cond = randn(2, 4, frames, *size), Conditioning(TEXT, None, TEXT_ONLY)
    out, expected = unet(x, TIMESTEPS, cond), theirs(x, TIMESTEPS, TEXT).sample
    assert out.shape == x.shape and difference(out, expected) < 2e-5
    assert expected.abs().mean() > 0.1
    assert difference(out, theirs(x, TIMESTEPS, TEXT.flip(0)).sample) > 1e-2
    if frames > 1:
        assert difference(out, expected.flip(2)) > 0.1
        assert difference(out.flip(2), unet(x.flip(2), TIMESTEPS, cond)) > 1e-2  # it knows the frames' order


def test_two_blocks_a_level_are_diffusers():
    config = dataclasses.replace(RELATIVE, num_res_blocks=2, channel_mult=(1, 2, 4, 4), model_channels=16)
    theirs = randomize(diffusers.UNet3DConditionModel(**diffusers_config(config)))
    unet, x = imported(theirs, config), randn(2, 4, 3, 9, 16)
    out = unet(x, TIMESTEPS, Conditioning(TEXT, None, TEXT_ONLY))
    assert difference(out, theirs(x, TIMESTEPS, TEXT).sample) < 2e-5


@pytest.mark.parametrize(
    "part",
    [
        ".temporal_stack.3.conv.",
        ".temporal.proj_out.",
        ".temporal.transformer_blocks.0.attn2.to_out.",
        "input_blocks.0.1.proj_out.",
    ],
)
@pytest.mark.parametrize("frames", [1, 4])
def test_every_temporal_part_matters(t2v, part, frames):
    """At one frame too, as in diffusers: a part that is taken away is missed."""
    theirs, unet = t2v[0], copy.deepcopy(t2v[1])
    silenced = [p.zero_() for name, p in unet.named_parameters() if part in name]
    x = randn(2, 4, frames, 8, 8)
    assert silenced
    out = unet(x, TIMESTEPS, Conditioning(TEXT, None, TEXT_ONLY))
    assert difference(out, theirs(x, TIMESTEPS, TEXT).sample) > 1e-3


@pytest.mark.parametrize("frames", [1, 4])
def test_the_body_of_i2vgenxl_is_diffusers(frames):
    """fps, concat latents and longer text: what reaches its convolution and attentions goes into ours."""
    config = dataclasses.replace(RELATIVE, in_channels=8, numbers=("fps",))
    theirs = randomize(diffusers.I2VGenXLUNet(**diffusers_config(config)))
    unet, seen = imported(theirs, config, I2VGENXL_REST), {}

    def see_input(layer, args):
        seen["input"] = args[0].unflatten(0, (2, frames)).transpose(1, 2)

    def see_context(layer, args, kwargs):
        seen["context"] = kwargs["encoder_hidden_states"].unflatten(0, (2, frames))[:, 0]

    theirs.conv_in.register_forward_pre_hook(see_input)
    theirs.down_blocks[0].attentions[0].register_forward_pre_hook(see_context, with_kwargs=True)
    x, latents, image = randn(2, 4, frames, 9, 16), randn(2, 4, frames, 9, 16, seed=1), randn(2, 48, seed=2)
    fps = torch.tensor([8, 16])
    expected = theirs(x, TIMESTEPS, fps, latents, image, TEXT).sample

    concat = seen["input"][:, 4:]
    cond = Conditioning(seen["context"], None, TEXT_ONLY, concat=concat, numbers={"fps": fps})
    assert torch.equal(seen["input"][:, :4], x) and seen["context"].shape[1] > 70
    assert difference(unet(x, TIMESTEPS, cond), expected) < 2e-5
    for change in (
        {"numbers": {"fps": fps.flip(0)}},
        {"concat": concat.flip(0)},
        {"text": cond.text.flip(0)},
    ):
        assert difference(unet(x, TIMESTEPS, dataclasses.replace(cond, **change)), expected) > 1e-3


def test_full_size_is_zeroscopes():
    with torch.device("meta"):
        unet, theirs = UNet(FAMILY.unet), diffusers.UNet3DConditionModel()
    ours = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    weights = theirs.state_dict()
    found = resolve(diffusers_family_unet(FAMILY.unet), ours, weights)
    assert len(found) == len(ours) == len(weights) == 1480
    for name, source in found.items():
        assert [n for n in ours[name] if n > 1] == [n for n in weights[source].shape if n > 1], name


# What a warm start adds


def padded(weight, taps):
    """A temporal convolution's `[o c k 1]` with zeros around, so that it has `taps` taps."""
    more = (taps - weight.shape[2]) // 2
    return torch.nn.functional.pad(weight, (0, 0, more, more))


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_the_extended_network_is_the_plain_one(t2v, frames):
    """Longer kernels with zeros, a silent PSTAttn, an image stream: the same class, another config."""
    plain = t2v[1]
    temporal = dataclasses.replace(RELATIVE.temporal, conv_kernels=(3, 5, 7, 9), segment_frames=(8, 4, 2, 1))
    stream = ImageStreamConfig(width=40, resampler=None)
    unet = randomize(UNet(dataclasses.replace(RELATIVE, temporal=temporal, image_stream=stream)))
    state = unet.state_dict()
    for name, tensor in plain.state_dict().items():
        state[name].copy_(
            padded(tensor, state[name].shape[2])
            if ".temporal_stack." in name and tensor.dim() == 4
            else tensor
        )
    x, cond = randn(2, 4, frames, 9, 16), Conditioning(TEXT, IMAGE, TEXT_ONLY)
    expected = plain(x, TIMESTEPS, cond)
    for name, parameter in unet.named_parameters():
        if "pst_attn.to_out" in name:
            parameter.zero_()
    assert difference(unet(x, TIMESTEPS, cond), expected) < 2e-5
    assert difference(unet(x, TIMESTEPS, dataclasses.replace(cond, weights=BOTH)), expected) > 1e-2
    long = [
        p
        for name, p in unet.named_parameters()
        if ".temporal_stack.2.conv.weight" in name and p.shape[2] == 9
    ]
    for weight in long:
        weight[:, :, 0].fill_(0.1)
    assert long and (difference(unet(x, TIMESTEPS, cond), expected) > 1e-3) == (frames > 4)


def test_the_stack_with_any_kernel_is_conv3d():
    unet = randomize(
        UNet(
            dataclasses.replace(
                RELATIVE, temporal=dataclasses.replace(RELATIVE.temporal, conv_kernels=(5, 5, 7, 9))
            )
        )
    )
    block, h = unet.middle_block[0], randn(2, 64, 6, 3, 4)
    plane = block.temporal_stack(h.flatten(3)).unflatten(3, (3, 4))
    for layer in block.temporal_stack:
        groups = h.unflatten(1, (8, 8))
        var, mean = torch.var_mean(groups, (2, 3, 4, 5), keepdim=True, correction=0)  # over the whole clip
        h = ((groups - mean) / (var + 1e-5).sqrt()).flatten(1, 2)
        h = h * layer.norm.weight[:, None, None, None] + layer.norm.bias[:, None, None, None]
        h = h * h.sigmoid()
        h = torch.nn.functional.conv3d(h, layer.conv.weight[..., None], layer.conv.bias, padding=(4, 0, 0))
    assert difference(plane, h) < 1e-5 and difference(plane, h.flip(2)) > 0.1


def test_a_checkpoint_keeps_it(t2v, tmp_path):
    config = dataclasses.replace(FAMILY, unet=RELATIVE, vae=None, text=None)
    path = tmp_path / "relative.safetensors"
    save(path, UniVid(config, PROFILES["family"], unet=t2v[1], info={}))
    loaded, x, cond = load(path), randn(2, 4, 3, 8, 8), Conditioning(TEXT, None, TEXT_ONLY)
    assert loaded.config == config
    assert torch.equal(loaded.unet(x, TIMESTEPS, cond), t2v[1](x, TIMESTEPS, cond))
    assert "temporal stacks" in describe(path) and "PSTConv" not in describe(path)


def test_text_is_projected_once_a_clip():
    calls = []

    def counted(q, k, v, heads):
        calls.append((q.shape[:2], k.shape[:2]))
        return attention(q, k, v, heads)

    unet = randomize(UNet(RELATIVE, attention=counted))
    unet(randn(2, 4, 5, 8, 8), TIMESTEPS, Conditioning(TEXT, None, TEXT_ONLY))
    assert ((2, 5 * 64), (2, 7)) in calls and not [k for _, k in calls if k == (10, 7)]
    assert ((2 * 64, 5), (2 * 64, 5)) in calls

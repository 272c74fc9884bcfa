"""The relatives' image streams, concat latents and fps (kind "family"), every parameter random."""

import copy
import dataclasses

import diffusers
import pytest
import torch
from reference import RELATIVE, built_with_operations, difference, randn, randomize

from univid.conditioning import Conditioning, cat
from univid.config import ImageStreamConfig, ResamplerConfig
from univid.initialization import extend, initialize, start_image_stream
from univid.unet import UNet

RESAMPLER = ResamplerConfig(width=24, depth=2, heads=3, head_channels=4, tokens=4, frames=None)
TIMESTEPS, TEXT, IMAGE = torch.tensor([3, 800]), randn(2, 7, 48, seed=1), randn(2, 6, 40, seed=2)
TEXT_ONLY, BOTH = torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[1.0, 0.7]] * 2)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def with_stream(frames=None, tokens=4, **fields):
    resampler = dataclasses.replace(RESAMPLER, frames=frames, tokens=tokens)
    return dataclasses.replace(RELATIVE, image_stream=ImageStreamConfig(40, resampler), **fields)


# The resamplers


def plus_projection(resampler):
    """diffusers' implementation of the resampler, with the weights of ours; what is left out is nan."""
    theirs = diffusers.models.embeddings.IPAdapterPlusImageProjection(
        embed_dims=40, output_dims=48, hidden_dims=RESAMPLER.width, depth=RESAMPLER.depth,
        dim_head=RESAMPLER.head_channels, heads=RESAMPLER.heads, num_queries=resampler.num_queries,
    )  # fmt: skip
    for parameter in theirs.parameters():
        parameter.fill_(torch.nan)
    pairs = [
        (getattr(theirs, name), getattr(resampler, name)) for name in ("proj_in", "proj_out", "norm_out")
    ]
    for block, (attn, ff) in zip(theirs.layers, resampler.layers, strict=True):
        pairs += [(block.ln0, attn.norm1), (block.ln1, attn.norm2), (block.ff[0], ff[0])]
        pairs += [(block.attn.to_q, attn.to_q), (block.attn.to_out[0], attn.to_out)]
        pairs += [(block.ff[1].net[0].proj, ff[1]), (block.ff[1].net[2], ff[3])]
        for layer, weight in zip((block.attn.to_k, block.attn.to_v), attn.to_kv.weight.chunk(2), strict=True):
            layer.weight.copy_(weight)
    for layer, source in pairs:
        layer.load_state_dict(source.state_dict())
    theirs.latents.copy_(resampler.latents.weight[None])
    return theirs.eval()


@pytest.fixture(scope="module")
def per_frame():
    """A network like DynamiCrafter: 2 tokens for each of 3 frames, concat latents and fps."""
    return randomize(UNet(with_stream(frames=3, tokens=2, in_channels=8, numbers=("fps",))))


def test_the_resampler_is_ip_adapters(per_frame):
    resampler = randomize(UNet(with_stream()).image_projection)
    assert difference(resampler(IMAGE), plus_projection(resampler)(IMAGE)) < 1e-5
    pictures = randn(2, 5, 6, 40, seed=3)  # one a frame
    expected = torch.stack([plus_projection(resampler)(picture) for picture in pictures.unbind(1)], 1)
    assert difference(resampler(pictures), expected) < 1e-5
    assert difference(resampler(IMAGE), plus_projection(resampler)(IMAGE.flip(0))) > 1e-2

    framewise, tokens = per_frame.image_projection, plus_projection(per_frame.image_projection)(IMAGE)
    out = framewise(IMAGE)
    assert out.shape == (2, 3, 2, 48)
    for frame in range(3):
        assert difference(out[:, frame], tokens[:, 2 * frame : 2 * frame + 2]) < 1e-5
    still = framewise(IMAGE[:, None].expand(-1, 3, -1, -1))  # the same picture for each frame
    assert difference(still, out) < 1e-5
    moving = framewise(torch.stack([IMAGE, IMAGE.flip(0), IMAGE], 1))
    assert difference(moving[:, 1], out.flip(0)[:, 1]) < 1e-5 and difference(moving[:, 1], out[:, 1]) > 1e-2


class Given(torch.nn.Module):
    """An image projection that has its tokens already."""

    def forward(self, tokens):
        return tokens


def dynamic(frames, **fields):
    concat, fps = randn(2, 4, frames, 8, 8, seed=5), torch.tensor([3.0, 24.0])
    return Conditioning(
        **(
            {"text": TEXT, "image": IMAGE, "weights": BOTH, "concat": concat, "numbers": {"fps": fps}}
            | fields
        )
    )


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_tokens_a_frame_reach_their_frame(per_frame, frames):
    """In clips of another length than the resampler's each frame gets all tokens, as in DynamiCrafter."""
    x, given = randn(2, 4, frames, 8, 8), copy.deepcopy(per_frame)
    given.image_projection = Given()
    tokens = plus_projection(per_frame.image_projection)(IMAGE)  # [b (t q) d]
    own = torch.stack([tokens[:, 2 * i : 2 * i + 2] for i in range(3)], 1) if frames == 3 else tokens
    out = per_frame(x, TIMESTEPS, dynamic(frames))
    assert difference(out, given(x, TIMESTEPS, dynamic(frames, image=own))) < 2e-5
    assert difference(out, given(x, TIMESTEPS, dynamic(frames, image=own.flip(1)))) > 1e-3 or frames != 3
    other = tokens if frames == 3 else tokens[:, :2]
    assert difference(out, given(x, TIMESTEPS, dynamic(frames, image=other))) > 1e-3


# Where training starts


def test_initialize_and_extend():
    config = with_stream(frames=3, tokens=2, in_channels=8, numbers=("fps",))
    first, again = UNet(config), UNet(config)
    for unet in (first, again):
        for parameter in unet.parameters():
            parameter.fill_(torch.nan)
        initialize(unet, 1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert all(p.isfinite().all() for p in first.parameters())
    assert first.image_projection.latents.weight.std() > 0.05

    unet, x = randomize(UNet(config)), randn(2, 4, 3, 8, 8)
    extend(unet)
    many, cond = unet(x, TIMESTEPS, dynamic(3)), dynamic(3)
    faster = {"fps": cond.numbers["fps"] + 1}
    tokens = unet.image_projection(IMAGE)
    unet.image_projection = Given()
    for frame in range(3):  # an image model: each frame for itself, whatever the fps
        one = dataclasses.replace(
            cond, image=tokens[:, frame], concat=cond.concat[:, :, frame : frame + 1], numbers=faster
        )
        assert difference(unet(x[:, :, frame : frame + 1], TIMESTEPS, one)[:, :, 0], many[:, :, frame]) < 1e-4
    with pytest.raises(ValueError, match="linear projection"):
        start_image_stream(UNet(RELATIVE), None)


def test_every_parameter_learns_and_checkpointing_changes_nothing(per_frame):
    unet = copy.deepcopy(per_frame).train()

    def gradients(checkpointing):
        unet.zero_grad()
        unet.checkpointing = checkpointing
        with torch.enable_grad():
            unet(randn(2, 4, 3, 8, 8), TIMESTEPS, dynamic(3)).square().mean().backward()
        return {name: p.grad.clone() for name, p in unet.named_parameters()}

    plain, recomputed = gradients(False), gradients(True)
    single = "middle_block.1.transformer_blocks.0.attn1.to_"  # one token attends to itself
    assert all(
        plain[name].abs().max() > 0 for name in plain if not name.startswith((single + "q", single + "k"))
    )
    assert all(torch.allclose(plain[name], recomputed[name], rtol=1e-4, atol=1e-7) for name in plain)


# Conditions


def test_conditions_that_the_network_does_not_take(per_frame):
    x, unet = randn(2, 4, 3, 8, 8), UNet(RELATIVE)
    for cond, words in (
        (Conditioning(TEXT, IMAGE, BOTH), "image weight of 0"),
        (Conditioning(TEXT, None, TEXT_ONLY, numbers={"fps": torch.ones(2)}), r"is told \(none\), got fps"),
        (Conditioning(TEXT, None, TEXT_ONLY, concat=x), "expected 4 channels .* got 8"),
        (
            Conditioning(TEXT, None, TEXT_ONLY, concat=x[:, :, :2]),
            "3 frames, as x has, got 2 clips of 2 frames",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            unet(x, TIMESTEPS, cond)
    for change, words in (
        ({"numbers": {}}, r"is told \(fps\), got none"),
        ({"concat": None}, "expected 8 channels .* got 4"),
        ({"image": None}, "expected image tokens"),
    ):
        with pytest.raises(ValueError, match=words):
            per_frame(x, TIMESTEPS, dynamic(3, **change))
    for fields, words in (
        ({"numbers": {"fps": torch.ones(3)}}, "fps must have 1 dimensions, the first 2 clips"),
        ({"numbers": {"fps": torch.ones(2, 1)}}, "fps must have 1 dimensions"),
        ({"concat": x[:, :, 0]}, "concat must have 5 dimensions"),
        ({"image": IMAGE[:, None].expand(-1, 2, -1, -1)}, "agree on the number of frames"),
    ):
        with pytest.raises(ValueError, match=words):
            dynamic(3, **fields)


def test_conditions_join_and_move(per_frame):
    x, one, other = (
        randn(2, 4, 3, 8, 8),
        dynamic(3),
        dynamic(3, numbers={"fps": torch.tensor([9.0, 1.0])}, text=TEXT.flip(0)),
    )
    both = cat([one, other])
    assert both.numbers["fps"].tolist() == [3, 24, 9, 1] and both.concat.shape[0] == 4
    out = per_frame(x.repeat(2, 1, 1, 1, 1), TIMESTEPS.repeat(2), both)
    assert difference(out[:2], per_frame(x, TIMESTEPS, one)) < 2e-5
    assert difference(out[2:], per_frame(x, TIMESTEPS, other)) < 2e-5
    assert difference(out[:2], out[2:]) > 1e-2
    moved = both.to(dtype=torch.bfloat16)
    assert moved.numbers["fps"].dtype == torch.float32 and moved.concat.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="all have fps or none"):
        cat([one, dataclasses.replace(other, numbers={})])
    expected = per_frame(x, TIMESTEPS, one)
    out = copy.deepcopy(per_frame).bfloat16()(x.bfloat16(), TIMESTEPS, one.to(dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16 and (out.float() - expected).norm() < 0.08 * expected.norm()


def test_every_parameter_is_a_leaf_of_the_given_operations():
    unet, leaves = built_with_operations(with_stream(frames=3, numbers=("fps",)))
    assert {id(p) for p in unet.parameters()} == leaves.keys() and set(leaves.values()) == {"weight", "bias"}
    assert not list(unet.buffers())

"""Where training starts: what is silent, what is copied, what depends on the seed."""

import pytest
import torch
from reference import NEW, SMALL, randn, randomize, stable_diffusion

from univid.blocks import TransformerBlock
from univid.conditioning import Conditioning
from univid.config import VisionConfig
from univid.encoders import ImageEncoder
from univid.initialization import extend, initialize, start_image_stream
from univid.unet import UNet

X, TIMESTEPS, TEXT = randn(2, 4, 5, 9, 7), torch.tensor([3, 800]), randn(2, 7, 48, seed=1)
COND = Conditioning(TEXT, None, torch.tensor([[1.0, 0.0]] * 2))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def same(source, target):
    pairs = list(zip(source.parameters(), target.parameters(), strict=True))
    return all(torch.equal(a, b) for a, b in pairs) and any(a.any() for a, _ in pairs)


def blocks(unet):
    return [module for module in unet.modules() if isinstance(module, TransformerBlock)]


def check_what_is_new(unet):
    for block in blocks(unet):
        for name in ("to_q", "to_k", "to_v"):
            assert same(getattr(block.attn1, name), getattr(block.pst_attn, name))
        assert same(block.norm1, block.norm_pst)
        assert same(block.attn2.to_k, block.attn2.to_k_image)
        assert same(block.attn2.to_v, block.attn2.to_v_image)


def test_extend_keeps_the_image_model():
    unet = randomize(UNet(SMALL))
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    many = unet(X, TIMESTEPS, COND)
    extend(unet)
    check_what_is_new(unet)
    changed = {name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(any(new in name for new in NEW) for name in changed)

    theirs = stable_diffusion(unet)
    expected = torch.stack([theirs(frame, TIMESTEPS, TEXT).sample for frame in X.unbind(2)], 2)
    assert (unet(X, TIMESTEPS, COND) - expected).abs().max() < 1e-4
    assert (many - expected).abs().max() > 0.1


def test_initialize_from_scratch():
    """Every tensor is set (they are nan before), a pure function of the seed."""
    first, again, other = (UNet(SMALL) for _ in range(3))
    for unet, seed in ((first, 1), (again, 1), (other, 2)):
        for parameter in unet.parameters():
            parameter.fill_(torch.nan)
        initialize(unet, seed)
    assert all(p.isfinite().all() for p in first.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    check_what_is_new(first)
    assert not first(X, TIMESTEPS, COND).any()  # the last convolution starts at zero


def test_initialized_clips_are_their_frames():
    """Also after the trunk has learnt: only the temporal parts keep the frames apart."""
    unet = UNet(SMALL)
    initialize(unet, 0)
    for name, parameter in unet.named_parameters():
        if not any(new in name for new in NEW):
            parameter.add_(0.02 * randn(*parameter.shape))
    frames = torch.cat([unet(X[:, :, i : i + 1], TIMESTEPS, COND) for i in range(X.shape[2])], 2)
    assert (unet(X, TIMESTEPS, COND) - frames).abs().max() < 1e-4 < 1e-2 < frames.abs().max()
    assert (unet(X, TIMESTEPS, COND) - frames.flip(2)).abs().max() > 1e-2


def test_every_parameter_learns_once_the_outputs_do():
    """No part starts with zeros on both sides: once the zeros have moved, each parameter has a gradient."""
    unet = UNet(SMALL)
    initialize(unet, 0)
    for parameter in unet.parameters():
        if not parameter.any():
            parameter.add_(0.02 * randn(*parameter.shape))
    cond = Conditioning(TEXT, randn(2, 6, 40, seed=2), torch.ones(2, 2))
    with torch.enable_grad():
        unet(X, TIMESTEPS, cond).square().mean().backward()
    assert not [name for name, parameter in unet.named_parameters() if not parameter.grad.any()]


def test_image_stream_starts_in_clips_joint_space():
    width, context = SMALL.image_stream.width, SMALL.context_dim
    vision = randomize(
        ImageEncoder(
            VisionConfig(
                image_size=16,
                patch_size=8,
                width=width,
                layers=1,
                head_width=20,
                mlp_ratio=4.0,
                embed_dim=context,
            )
        )
    )
    unet = randomize(UNet(SMALL))
    start_image_stream(unet, vision)
    pixels = randn(2, 3, 16, 16)
    tokens = unet.image_projection(vision.tokens(pixels))
    assert (tokens[:, 0] - vision.pooled(pixels)).abs().max() < 1e-5  # the class token is CLIP's embedding
    assert (tokens[:, 1] - vision.pooled(pixels)).abs().max() > 1e-2
    for block in blocks(unet):
        assert same(block.attn2.to_k, block.attn2.to_k_image) and same(
            block.attn2.to_v, block.attn2.to_v_image
        )

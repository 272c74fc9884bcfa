"""The autoencoder against diffusers' AutoencoderKL, and chunks and tiles against the whole."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from univid.config import VAEConfig
from univid.presets import PAPER
from univid.tiles import blended
from univid.vae import Autoencoder

SMALL = VAEConfig(
    in_channels=3, latent_channels=4, channels=16, channel_mult=(1, 2, 4, 4),
    num_res_blocks=2, norm_groups=8, scale=0.18215,
)  # fmt: skip


def randomised(config=SMALL, seed=0):
    torch.manual_seed(seed)
    model = Autoencoder(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * torch.randn_like(parameter) + (".norm" in name and "weight" in name))
    return model


def reference(model):
    """diffusers' autoencoder with the same weights, carried over by diffusers' own importer."""
    config = model.config
    levels = len(config.channel_mult)
    other = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.channels * mult for mult in config.channel_mult),
        layers_per_block=config.num_res_blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
    ).eval()
    state = {"first_stage_model." + name: value for name, value in model.state_dict().items()}
    other.load_state_dict(convert_ldm_vae_checkpoint(state, other.config))
    return other


def difference(a, b):
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()


def noise(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("num_res_blocks", [1, 2])
@torch.no_grad()
def test_equals_diffusers(num_res_blocks):
    model = randomised(VAEConfig(**{**vars(SMALL), "num_res_blocks": num_res_blocks}))
    other = reference(model)
    images, latents = noise(2, 3, 40, 72).clamp(-1, 1), noise(2, 4, 5, 9)
    mean, logvar = model.encode_moments(images)
    posterior = other.encode(images).latent_dist
    assert difference(mean, posterior.mean) < 1e-4
    assert difference(logvar, posterior.logvar) < 1e-4
    assert difference(model.decode_images(latents * SMALL.scale), other.decode(latents).sample) < 1e-4
    video = model.encode(images[None].transpose(1, 2))
    assert difference(video[0].transpose(0, 1), posterior.mean * SMALL.scale) < 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "encoder.down.0.downsample.conv.bias", "encoder.mid.attn_1.v.weight", "encoder.norm_out.weight",
        "decoder.mid.attn_1.q.weight", "decoder.up.0.block.2.norm1.bias", "decoder.up.1.upsample.conv.weight",
    ],
)  # fmt: skip
@torch.no_grad()
def test_a_changed_weight_shows(name):
    model = randomised()
    other = reference(model)
    parameter = model.get_parameter(name)
    parameter.copy_(-parameter)
    images, latents = noise(1, 3, 40, 72).clamp(-1, 1), noise(1, 4, 5, 9)
    encoded = difference(model.encode_moments(images)[0], other.encode(images).latent_dist.mean)
    decoded = difference(model.decode_images(latents * SMALL.scale), other.decode(latents).sample)
    assert max(encoded, decoded) > 1e-3


def test_full_size_has_stable_diffusions_parameters():
    with torch.device("meta"):
        model = Autoencoder(PAPER.vae)
    assert sum(p.numel() for p in model.parameters()) == 83_653_863
    assert len(model.state_dict()) == 248
    assert not list(model.buffers())


def test_every_parameter_sits_in_an_injected_layer():
    operations = SimpleNamespace(
        Conv2d=type("Conv2d", (torch.nn.Conv2d,), {}), GroupNorm=type("GroupNorm", (torch.nn.GroupNorm,), {})
    )
    model = Autoencoder(SMALL, operations)
    owners = {type(module) for module in model.modules() if list(module.parameters(recurse=False))}
    assert owners == {operations.Conv2d, operations.GroupNorm}


def test_chunks_equal_the_whole():
    model = randomised().double()
    video, latents = noise(2, 3, 5, 16, 24, dtype=torch.float64), noise(2, 4, 5, 2, 3, dtype=torch.float64)
    seen = []
    for chunk in (1, 3, 100):
        torch.testing.assert_close(
            model.encode(video, chunk=chunk), model.encode(video), rtol=1e-9, atol=1e-9
        )
        decoded = model.decode(latents, chunk=chunk, callback=lambda *step: seen.append(step))
        torch.testing.assert_close(decoded, model.decode(latents), rtol=1e-9, atol=1e-9)
    assert seen == [(n, 10) for n in range(1, 11)] + [(3, 10), (6, 10), (9, 10), (10, 10), (10, 10)]


def test_frames_are_independent():
    model, video = randomised(), noise(2, 3, 4, 16, 24)
    latents = model.encode(video)
    assert difference(latents[1:, :, 2:3], model.encode(video[1:, :, 2:3])) < 1e-5
    decoded = model.decode(latents)
    assert difference(decoded[1:, :, 2:3], model.decode(latents[1:, :, 2:3])) < 1e-5


def test_a_generator_draws_from_the_posterior():
    model, video = randomised(), noise(1, 3, 3, 16, 24)
    mean, logvar = model.encode_moments(video[0].transpose(0, 1))
    draw = torch.randn(mean.shape, generator=torch.Generator().manual_seed(7))
    expected = ((mean + (logvar / 2).exp() * draw) * SMALL.scale).transpose(0, 1)[None]
    sample = model.encode(video, generator=torch.Generator().manual_seed(7), chunk=2)
    torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-5)
    assert difference(sample, model.encode(video)) > 1e-2


@pytest.mark.parametrize("height, width, tile", [(7, 11, 2), (9, 24, 5), (8, 33, 8), (20, 36, 16), (4, 5, 3)])
def test_tiling_a_cellwise_function_is_exact(height, width, tile):
    cells = noise(2, 4, height, width, dtype=torch.float64)

    def grow(x):
        assert max(x.shape[-2:]) <= tile
        return x.repeat_interleave(8, -1).repeat_interleave(8, -2)

    pixels = blended(lambda part: grow(part.of(cells)), height, width, tile, 8)
    whole = cells.repeat_interleave(8, -1).repeat_interleave(8, -2)
    torch.testing.assert_close(pixels, whole, rtol=1e-6, atol=1e-6)
    back = blended(lambda part: F.avg_pool2d(part.of(whole, 8), 8), height, width, tile)
    torch.testing.assert_close(back, cells, rtol=1e-6, atol=1e-6)


def smooth(*shape):
    """Waves with a period of four cells (of the last two dimensions' unit), alike in every tile."""
    rows, columns = torch.arange(shape[-2]), torch.arange(shape[-1])
    phase = torch.arange(shape[1])[:, None, None, None]
    return torch.sin(phase + rows[:, None] * 0.5 * torch.pi + 1 + columns * 0.25 * torch.pi).expand(shape)


def test_tiles_are_close_to_the_whole():
    model = randomised()
    latents = smooth(1, 4, 2, 24, 40)
    whole, tiled = model.decode(latents), model.decode(latents, tile=16)
    again = model.encode(whole), model.encode(whole, tile=16)
    for a, b in ((tiled, whole), again[::-1]):
        assert ((a - b).square().mean() / b.var()).sqrt() < 0.1
        assert ((a.roll(1, -1) - b).square().mean() / b.var()).sqrt() > 0.2
    assert torch.equal(model.decode(latents, tile=40), whole)
    assert torch.equal(model.encode(whole, tile=40), again[0])


def test_bad_sizes_are_refused():
    model = randomised()
    with pytest.raises(ValueError, match="multiples of 8, got 20 x 24"):
        model.encode(torch.zeros(1, 3, 1, 20, 24))
    with pytest.raises(ValueError, match="multiples of 8, got 16 x 0"):
        model.encode_moments(torch.zeros(1, 3, 16, 0))
    with pytest.raises(ValueError, match="at least 2 latent cells, got 1"):
        model.decode(torch.zeros(1, 4, 1, 4, 4), tile=1)

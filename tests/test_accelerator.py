"""The library on an accelerator, pretended: no operation over two devices, and who waits for the device."""

import dataclasses

import pytest
import torch
from accelerator import DEVICE, Synchronisation, accelerator
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError

from univid import Clip, Sampling, Source, generate, load
from univid.conditioning import Conditioning
from univid.config import ImageStreamConfig, ResamplerConfig
from univid.diffusion import Denoiser, NoiseSchedule
from univid.encoders import ImageEncoder, TextEncoder
from univid.guidance import Joint, Nested, Separate, pulls
from univid.presets import FAMILY, PAPER, TINY
from univid.steer import Dynamics, Reuse, Steering
from univid.unet import UNet
from univid.vae import Autoencoder

CLIPS = 2


def with_picture(frames):
    """As VideoCrafter1's image-to-video (tokens for all frames) and DynamiCrafter (a set a frame)."""
    resampler = ResamplerConfig(width=1024, depth=1, heads=12, head_channels=64, tokens=16, frames=frames)
    return dataclasses.replace(
        FAMILY.unet,
        in_channels=4 if frames is None else 8,
        numbers=("fps",),
        image_stream=ImageStreamConfig(1280, resampler),
    )


# As wide as they are, and less deep: of a block twice in a row, one shows the same.
NETWORKS = {
    name: dataclasses.replace(config, num_res_blocks=1)
    for name, config in {
        "paper": PAPER.unet,
        "built-in": TINY.unet,
        "modelscope": FAMILY.unet,
        "videocrafter": with_picture(None),
        "dynamicrafter": with_picture(16),
    }.items()
}


def conditions(config, frames, per_frame=False, size=(8, 10), weights=((1.0, 0.7), (1.0, 0.0))):
    """Conditions of two clips, of which the second is shown no picture, as a pipeline makes them."""
    stream, lead = config.image_stream, (CLIPS, frames) if per_frame else (CLIPS,)
    weights = torch.tensor(weights)
    if stream is None:
        weights = weights * torch.tensor([1.0, 0.0])
    return Conditioning(
        text=torch.randn(*lead, 77, config.context_dim, device=DEVICE),
        image=None if stream is None else torch.randn(CLIPS, 5, stream.width, device=DEVICE),
        weights=weights[:, None].expand(-1, frames, -1) if per_frame else weights,
        level_weights={2: (0.5, 1.0), 4: (1.0, 0.0)},
        concat=torch.randn(CLIPS, 4, frames, *size, device=DEVICE) if config.in_channels > 4 else None,
        places=torch.rand(CLIPS, frames) if per_frame else None,
        numbers={name: torch.full((CLIPS,), 8.0, device=DEVICE) for name in config.numbers},
    )


def network(config, dtype=torch.bfloat16):
    return UNet(config, device=DEVICE, dtype=dtype).requires_grad_(False)


# What the pretended device sees


def waits_of(run):
    with accelerator() as acc:
        x = torch.ones(3).to(DEVICE)
        acc.waits.clear()
        run(x)
        return acc.waits


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).all()),
        lambda x: x.cpu(),
        lambda x: x + torch.ones(3).to(x.device),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: x[torch.tensor([0, 1])],
    ],
)
def test_waits_are_seen(run):
    assert waits_of(run)
    with accelerator() as acc, pytest.raises(Synchronisation):
        x = torch.ones(3, device=DEVICE)
        with acc.without_waiting():
            run(x)


@pytest.mark.parametrize("choose", [lambda x: x.nonzero(), lambda x: x[x > 0]])
def test_sizes_that_depend_on_values_are_seen(choose):
    with pytest.raises(Synchronisation, match="depends on values"):
        waits_of(choose)


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x * 2 + torch.arange(3, device=x.device),
        lambda x: x * torch.tensor(2.0),
        lambda x: x.to(torch.bfloat16),
        lambda x: torch.ones(3).to(x.device, non_blocking=True),
        lambda x: torch.ones(3).sum().item(),
        lambda x: torch.where(x > 0, x, 0.0),
    ],
)
def test_what_does_not_wait_is_not_counted(run):
    assert not waits_of(run)


def test_devices_that_meet_raise():
    with accelerator(), pytest.raises(FakeTensorDeviceMismatchError):
        torch.ones(3, device=DEVICE) + torch.ones(3)


# The networks


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_wait_for_nothing(name):
    config = NETWORKS[name]
    with accelerator() as acc, torch.no_grad():
        denoiser = Denoiser(network(config), NoiseSchedule(TINY.schedule), "v", torch.bfloat16)
        for frames, per_frame, sigma in ((16, True, torch.tensor(3.0)), (1, False, torch.tensor([3.0, 5.0]))):
            if config.image_stream is not None:
                null = torch.randn(1, 5, config.image_stream.width, device=DEVICE)
                denoiser = dataclasses.replace(denoiser, null_image=null)
            x, cond = (
                torch.randn(CLIPS, 4, frames, 8, 10, device=DEVICE),
                conditions(config, frames, per_frame),
            )
            with acc.without_waiting():
                x0 = denoiser(x, sigma, cond)
            assert x0.device == DEVICE and x0.shape == x.shape and x0.dtype == torch.float32


def test_a_network_waits_for_weights_that_are_not_on_the_cpu():
    with accelerator() as acc, torch.no_grad():
        unet, x = network(TINY.unet), torch.randn(CLIPS, 4, 4, 8, 8, device=DEVICE, dtype=torch.bfloat16)
        cond = conditions(TINY.unet, 4).to(dtype=torch.bfloat16)
        cond = cond.with_weights(cond.weights.to(DEVICE))
        timesteps = torch.zeros(CLIPS, device=DEVICE)
        with acc.without_waiting():
            unet(x, timesteps, cond, streams=(True, True))  # who has decided before needs no value
            with pytest.raises(Synchronisation, match="read back"):
                unet(x, timesteps, cond)


@pytest.mark.parametrize("config", [PAPER, TINY], ids=["paper", "built-in"])
def test_encoders_and_vae(config):
    with accelerator() as acc, torch.no_grad():
        text = TextEncoder(dataclasses.replace(config.text, layers=2)).to(DEVICE)
        image = ImageEncoder(dataclasses.replace(config.vision, layers=2)).to(DEVICE)
        vae = Autoencoder(config.vae).to(DEVICE, torch.bfloat16)
        assert text(["a red circle", ""]).device == DEVICE
        assert image(torch.rand(2, 3, 40, 70)).device == DEVICE
        clip = torch.rand(1, 3, 5, 64, 96, device=DEVICE)
        for tile in (None, 4):
            latents = vae.encode(clip, chunk=2, tile=tile)
            with acc.without_waiting():
                video = vae.decode(latents, chunk=2, tile=tile)
            assert video.device == DEVICE and video.shape == clip.shape


# Guidance and sampling

GUIDERS = [Joint(3.0), Joint(3.0, 0.7), Separate(3.0, 2.0), Separate(3.0, 2.0, 0.7), Nested(3.0, 2.0, 0.3)]


@pytest.mark.parametrize("weights", [((1.0, 0.7),) * 2, ((1.0, 0.7), (1.0, 0.0)), ((0.0, 0.7), (1.0, 1.0))])
@pytest.mark.parametrize("guider", GUIDERS, ids=repr)
def test_guiders_wait_for_nothing(guider, weights):
    with accelerator() as acc, torch.no_grad():
        config = TINY.unet
        denoiser = Denoiser(network(config, torch.float32), NoiseSchedule(TINY.schedule), "v")
        cond = conditions(config, 4, weights=weights)
        none = dataclasses.replace(cond, image=None, weights=torch.tensor([[1.0, 0.0]] * CLIPS))
        x = torch.randn(CLIPS, 4, 4, 8, 8, device=DEVICE)
        with acc.without_waiting():
            assert guider(denoiser, x, torch.tensor(3.0), cond, none).device == DEVICE
            pulls({name: x for name in ("e0", "T", "I")})


def waits_a_step(path, sampler="dpmpp_2m", guidance=None, source=None, **sampling):
    """How often a call of `generate` waits in its last step; the call has to end with a clip on the CPU."""
    with accelerator() as acc:
        model, waits = load(path).to(DEVICE), []
        out = generate(
            model, ["a red circle", "a blue square"], torch.rand(1, 3, 48, 80), guidance=guidance,
            clip=Clip(frames=3), source=source or Source(),
            sampling=Sampling(steps=2, sampler=sampler, **sampling),
            callback=lambda stage, *_: waits.append(len(acc.waits)) if stage == "sample" else None,
        )  # fmt: skip
        assert out.shape == (2, 3, 3, 32, 32) and out.device.type == "cpu"
        return waits[-1] - waits[-2]


@pytest.mark.parametrize(
    ("sampler", "guider"),
    [("heun", Separate(3.0, 2.0, 0.7)), ("dpmpp_2m_sde", Nested(3.0, 2.0)), ("ddim", Joint(3.0))],
)
def test_one_finite_check_is_all_that_waits_between_two_steps(small_checkpoint, sampler, guider):
    assert waits_a_step(small_checkpoint, sampler, guider) == 1


def test_steering_waits_for_nothing(small_checkpoint):
    steering = Steering(dynamics=Dynamics(1.0, share=1.0), temporal_guidance=0.5, reuse=Reuse(2, 3))
    assert waits_a_step(small_checkpoint, steering=steering) == 1


def test_generate_from_a_video(small_checkpoint):
    source = Source(video=torch.rand(1, 3, 3, 32, 32) * 2 - 1, denoise=0.6)
    assert waits_a_step(small_checkpoint, source=source) == 1

"""The network of super-resolution to 720p: no PSTAttn, no image stream, latents of 90 x 160, text or none."""

import copy
import dataclasses

import pytest
import torch
from denoise_runs import Maker, gradients
from reference import SMALL, difference, randn, randomize, silence, stable_diffusion
from torch.utils.flop_counter import FlopCounterMode

from training.stages.denoising import Samples, denoising_losses, draw_references
from univid import checkpoints
from univid.conditioning import Conditioning
from univid.config import from_json, to_json
from univid.diffusion import NoiseSchedule
from univid.model import UniVid
from univid.pipeline import Clip, Sampling, generate
from univid.presets import PAPER, SD21_SCHEDULE
from univid.unet import UNet

SIZE = (90, 160)  # of the latents: their levels are 90, 45, 23 and 12 high
V = dataclasses.replace(SD21_SCHEDULE, prediction="v")


def upscaling(config):
    temporal = dataclasses.replace(config.temporal, segment_frames=())
    return dataclasses.replace(config, temporal=temporal, image_stream=None)


# Without the attention of the finest level, which takes most of the time and halves nothing.
NARROW = dataclasses.replace(
    upscaling(SMALL), num_res_blocks=1, channel_mult=(1, 1, 2, 2), model_channels=16,
    attention_levels=(False, True, True, False),
)  # fmt: skip
TIMESTEPS, TEXT = torch.tensor([600]), randn(1, 7, 48, seed=1)


def condition(text=TEXT, weight=1.0):
    return Conditioning(text, None, torch.tensor([[weight, 0.0]]))


@pytest.fixture(scope="module")
def unet():
    return randomize(UNet(NARROW))


def per_frame(theirs, x):
    return torch.stack([theirs(frame, TIMESTEPS, TEXT).sample for frame in x.unbind(2)], 2)


@torch.no_grad()
def test_latents_of_720p_pass(unet):
    """Frame by frame it is diffusers' network where the temporal layers are silent."""
    x = randn(1, 4, 2, *SIZE)
    theirs, silent = stable_diffusion(unet), silence(copy.deepcopy(unet))
    out, expected = silent(x, TIMESTEPS, condition()), per_frame(theirs, x)
    assert out.shape == x.shape and difference(out, expected) < 1e-4
    assert difference(out, expected.flip(2)) > 0.1
    assert difference(unet(x, TIMESTEPS, condition()), expected) > 0.1  # they are not silent in `unet`


@torch.no_grad()
def test_a_prompt_is_not_needed(unet):
    """Weight 0 leaves the text out, whatever it says, and the network takes part without."""
    x = randn(1, 4, 2, 9, 11)
    none = unet(x, TIMESTEPS, condition(weight=0.0))
    assert none.isfinite().all()
    assert torch.equal(none, unet(x, TIMESTEPS, condition(torch.full_like(TEXT, torch.nan), weight=0.0)))
    assert difference(none, unet(x, TIMESTEPS, condition())) > 1e-2


def test_it_has_no_references():
    assert not any("pst" in name for name, _ in UNet(NARROW).named_parameters())
    assert draw_references(NARROW, 24, seed=1, step=2) == {}
    assert from_json(type(NARROW), to_json(NARROW)) == NARROW


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_trains_on_latents_of_720p(unet, checkpointing):
    unet = copy.deepcopy(unet).train()
    unet.checkpointing = checkpointing
    latents, noise = randn(1, 4, 2, *SIZE, seed=3), randn(1, 4, 2, *SIZE, seed=4)
    for text in (1.0, 0.0):
        batch = Samples(latents, noise, TIMESTEPS, condition(weight=text), draw_references(NARROW, 2, 1, 0))
        loss = denoising_losses(unet, NoiseSchedule(V), "v", batch)
        loss.mean().backward()
        assert loss.isfinite().all()
        if not text:
            continue
        assert all(parameter.grad.any() for parameter in unet.parameters())


@pytest.mark.parametrize(("config", "tflop"), [(upscaling(PAPER.unet), 126.9), (PAPER.unet, 255.6)])
def test_full_size_takes_half_the_work_without_pst_attention(config, tflop):
    with torch.device("meta"):
        unet = UNet(config)
        x, timesteps, text = torch.empty(1, 4, 24, *SIZE), torch.empty(1), torch.empty(1, 77, 1024)
        cond = Conditioning(text, None, torch.tensor([[1.0, 0.0]], device="cpu"))
    with FlopCounterMode(display=False) as counter:
        assert unet(x, timesteps, cond).shape == x.shape
    assert counter.get_total_flops() / 1e12 == pytest.approx(tflop, rel=0.001)


# As a checkpoint


@pytest.fixture(scope="module")
def upscaler(small_checkpoint, tmp_path_factory):
    """The small checkpoint with such a network."""
    base = checkpoints.load(small_checkpoint)
    config = dataclasses.replace(base.config, unet=upscaling(base.config.unet), vision=None, schedule=V)
    model = UniVid(config, base.profile, randomize(UNet(config.unet)), base.vae, base.text_encoder, None)
    path = tmp_path_factory.mktemp("upscaler") / "upscaler.safetensors"
    checkpoints.save(path, model)
    return path


def test_a_checkpoint_keeps_and_samples_it(upscaler):
    model = checkpoints.load(upscaler)
    assert model.config.unet.temporal.segment_frames == () and model.image_encoder is None
    clip = generate(model, "a dog", clip=Clip(3, 72, 88), sampling=Sampling(2))
    assert clip.shape == (1, 3, 3, 72, 88) and clip.isfinite().all()
    with pytest.raises(ValueError, match="has no PSTAttn"):
        generate(model, "a dog", sampling=Sampling(2, references={1: 2}))


def test_it_trains_with_and_without_prompts(upscaler, media, tmp_path):
    make = Maker(media, upscaler, tmp_path)
    for modes in ({"none": 0.5, "text": 0.5}, {"none": 1.0}):
        task = make(stage="full", batch={"video": 2}, modes=modes)
        found = gradients(task)
        assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())
        assert sum(gradient.any().item() for gradient in found.values()) > 0.9 * len(found)

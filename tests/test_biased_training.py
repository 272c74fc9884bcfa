"""Training on biased noise and on part of the noise levels."""

import dataclasses

import pytest
import torch
from denoise_runs import Maker, gradients, relative

from training.lora import LoraConfig
from training.options import NoiseOptions
from training.recipes_univid import finetune
from training.settable import settable
from training.stages.networks import write_result
from univid import checkpoints
from univid.config import BiasedNoiseProfile, StartProfile

pytestmark = pytest.mark.usefixtures("one_thread")

ANIMATE = BiasedNoiseProfile(600, 990)
CLIPS = {"stage": "full", "batch": {"video": 8}, "data": {"reference": "first", "max_frames": 3}}


@pytest.fixture(scope="module")
def make(media, small_checkpoint, tmp_path_factory):
    return Maker(media, small_checkpoint, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def animates(small_checkpoint, tmp_path_factory):
    """A base that sees its picture in every frame."""
    path = tmp_path_factory.mktemp("base") / "animates.safetensors"
    return relative(small_checkpoint, path, ((), "off", "first"), image_stream=None, in_channels=8)


def samples(task, step=0):
    (part,) = task.micro_batches(step)
    return part, task.samples(part.batch)


def test_a_clip_is_led_from_its_picture(make, animates):
    task, plain = (
        make(base=animates, noise=noise, **CLIPS) for noise in (NoiseOptions(biased=ANIMATE), NoiseOptions())
    )
    (part, shown), (_, bare) = samples(task), samples(plain)
    t = shown.timesteps
    assert t.max() < 990 and t.min() < 600 and ((t.sort().values.diff() - 990 / 8).abs() <= 1).all()
    share = ((t - 600) / 390).clamp(min=0).reshape(-1, 1, 1, 1, 1)
    expected = shown.latents + share * (shown.latents[:, :, :1] - shown.latents)
    x = task.schedule.add_noise(shown.latents, shown.noise, t)
    torch.testing.assert_close(x, task.schedule.add_noise(expected, bare.noise, t), rtol=0, atol=2e-6)
    assert (x - task.schedule.add_noise(shown.latents, bare.noise, t)).abs().max() > 1e-4
    assert torch.equal(shown.noise[t <= 600], bare.noise[t <= 600])
    assert task.loss(part.batch)[0].isfinite()
    assert any(g is not None and g.abs().max() > 0 for g in gradients(task).values())


def test_the_result_is_sampled_from_biased_noise_and_trained_on_with_it(make, animates, tmp_path):
    recipe = make.recipe(base=animates, noise=NoiseOptions(biased=ANIMATE), **CLIPS)
    base = checkpoints.load(animates)
    result = tmp_path / "result.safetensors"
    write_result(recipe, tmp_path, base.unet.state_dict(), 1, result)
    start = checkpoints.load(result).profile.start
    assert start == StartProfile(None, 1.0, ANIMATE) != base.profile.start
    lora = {"stage": "lora", "lora": LoraConfig()}
    for options in ({}, lora):
        task = make(base=str(result), **CLIPS | options)
        assert task.profile.start == start and task.timesteps == range(990)
    task.draw_samples(task.module.eval(), tmp_path / "samples", 1)  # from their pictures
    assert (tmp_path / "samples" / "step_00000001.png").exists()
    with pytest.raises(ValueError, match="a LoRA cannot change where sampling starts"):
        make(base=animates, noise=NoiseOptions(biased=ANIMATE), **CLIPS | lora)


def test_an_expert_draws_its_own_timesteps_alone(make):
    task = make(batch={"video": 8}, noise=NoiseOptions(timesteps=(100, 900)))
    drawn = torch.cat([samples(task, step)[1].timesteps for step in range(4)])
    assert 100 <= drawn.min() < 200 and 850 < drawn.max() < 900
    fixed = torch.cat([s.timesteps for s in task._fixed_samples["video"]])
    assert fixed.min() >= 100 and fixed.max() < 900


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        (NoiseOptions(biased=BiasedNoiseProfile(0, 1000)), "one of the schedule's 1000 timesteps, got 1000"),
        (
            NoiseOptions(biased=ANIMATE, timesteps=(0, 995)),
            "below 990, .* got noise.timesteps to 995",
        ),
        (NoiseOptions(timesteps=(0, 1001)), "timesteps below 1000, .* got noise.timesteps to 1001"),
    ],
)
def test_timesteps_that_are_not_there_are_refused(make, animates, noise, words):
    with pytest.raises(ValueError, match=words):
        make(base=animates, noise=noise, **CLIPS)


def test_a_base_that_is_not_shown_a_picture_in_every_frame_is_refused(make):
    with pytest.raises(ValueError, match='take a base with concat latents "first"'):
        make(noise=NoiseOptions(biased=ANIMATE))


def test_words_can_ask_for_biased_noise():
    recipe = settable(finetune(), ["--options.noise.biased.t-m", "0"])
    assert recipe.options.noise.biased == ANIMATE  # the other number is UniVG's
    assert dataclasses.replace(recipe.options.noise, biased=None) == finetune().options.noise

"""Training of super-resolution: poor copies of clips, biased noise from them, experts, and what runs give."""

import dataclasses

import pytest
import torch
from denoise_runs import Maker, gradients

from training.data.config import DEGRADATIONS, DegradationConfig, SourceConfig
from training.data.degradations import PRESETS, degrade
from training.lora import LoraConfig
from training.options import JoinedOptions, NoiseOptions, SampleOptions
from training.prepare import PrepareConfig, prepare
from training.rng import generator, seed_for
from training.stages.conditions import NONE, TEXT
from univid import Clip, Sampling, Source, checkpoints, generate
from univid.config import BiasedNoiseProfile, StartProfile
from univid.video import fit, from_uint8

pytestmark = pytest.mark.usefixtures("one_thread")

BGN = BiasedNoiseProfile(0, 700)
LIGHT = DegradationConfig()


def upscaling(**changes):
    """Options of a run as UniVG's."""
    return {
        "stage": "upscale",
        "batch": {"video": 4},
        "noise": NoiseOptions(biased=BGN),
        "data": {"degradations": LIGHT},
    } | changes


@pytest.fixture(scope="module")
def make(media, small_checkpoint, tmp_path_factory):
    return Maker(media, small_checkpoint, tmp_path_factory.mktemp("runs"))


def samples(task, step=0):
    (part,) = task.micro_batches(step)
    return part.batch, task.samples(part.batch)


def test_the_degradations_are_those_that_options_name():
    assert tuple(PRESETS) == DEGRADATIONS


def test_a_poor_copy_is_enlarged_as_sampling_enlarges():
    clip = torch.rand(1, 3, 2, 48, 48) * 2 - 1
    for position in range(4):
        poor, enlarged = (degrade(clip, "light", 0, [position], size=size) for size in (None, (48, 48)))
        assert poor.shape[-1] < 48 and torch.equal(enlarged, fit(poor, 48, 48))
        assert not torch.equal(enlarged, degrade(clip, "light", 1, [position], size=(48, 48)))


@pytest.mark.parametrize("preset", DEGRADATIONS)
def test_a_clip_is_led_from_its_poor_copy(make, preset):
    config = DegradationConfig(preset, noise=preset == "strong")
    task = make(**upscaling(data={"degradations": config}))
    plain = make(batch={"video": 4}, noise=NoiseOptions(timesteps=(0, 700)))
    (_, shown), (other, bare) = samples(task), samples(plain)
    assert shown.cond.concat is None and torch.equal(shown.latents, bare.latents)
    assert torch.equal(shown.timesteps, bare.timesteps) and shown.timesteps.max() < 700
    seed = seed_for(0, "5 video", 0)
    clips = torch.cat([from_uint8(example.pixels.numpy()) for example in other.examples])
    poor = degrade(clips, preset, seed, range(4), noise=config.noise, size=(64, 64))
    vae = checkpoints.load(make.base).vae.float()
    condition = vae.encode(((poor + 1) * 127.5).round() / 127.5 - 1)
    share = (shown.timesteps / 700).reshape(-1, 1, 1, 1, 1)
    expected = shown.latents + share * (condition - shown.latents)
    x = task.schedule.add_noise(shown.latents, shown.noise, shown.timesteps)
    aim = task.schedule.add_noise(expected, bare.noise, shown.timesteps)
    torch.testing.assert_close(x, aim, rtol=0, atol=4e-6)
    assert (x - task.schedule.add_noise(shown.latents, bare.noise, shown.timesteps)).abs().max() > 1e-3
    swapped = shown.latents + share * (condition.flip(0) - shown.latents)
    assert (x - task.schedule.add_noise(swapped, bare.noise, shown.timesteps)).abs().max() > 1e-3


def test_a_copy_is_the_sample_s_own(make):
    task, again = make(**upscaling()), make(**upscaling())
    first, second = ([e.degraded for e in next(t.feed(s)).examples] for t, s in ((task, 3), (again, 3)))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    later = [e.degraded for e in next(again.feed(4)).examples]
    assert not any(a.shape == b.shape and torch.equal(a, b) for a in first for b in later)
    assert all(e.degraded is None for e in next(make(batch={"video": 2}).feed(0)).examples)


def test_pictures_and_single_frames_have_copies_too(make):
    task = make(**upscaling(batch={"image": 1, "frame": 1, "video": 2}))
    for part in task.micro_batches(0):
        shown = task.samples(part.batch)
        poor = torch.cat([from_uint8(example.degraded.numpy()) for example in part.batch.examples])
        clean = torch.cat([from_uint8(example.pixels.numpy()) for example in part.batch.examples])
        assert poor.shape == clean.shape and (poor - clean).abs().max() > 0.01
        assert task.loss(part.batch)[0].isfinite() and shown.noise.shape == shown.latents.shape


def test_a_run_teaches_a_base_to_upscale(make, media, tmp_path):
    asked = upscaling(batch={"video": 2}, samples=SampleOptions(count=1, steps=2))
    task, before, saved = make.run(tmp_path / "run", **asked)
    assert set(task.modes) == {NONE, TEXT} and task.modes[NONE] == 0.1
    _, shown = samples(task)
    assert shown.streams == (True, False) and shown.reference_frames == {}
    moved = {name for name, value in before.items() if not torch.equal(saved["model"][name], value)}
    text = {name for name in before if "image" not in name}
    assert moved <= text and len(moved) > 0.9 * len(text) and text < set(before)
    task.draw_samples(task.module.eval(), tmp_path / "samples", 1)
    assert (tmp_path / "samples" / "step_00000001_1.mp4").exists()

    path = tmp_path / "upscaler.safetensors"
    task.export(saved["ema"], 2, path)
    model = checkpoints.load(path)
    assert model.profile.start == StartProfile(None, 1.0, BGN)
    assert model.config.unet.temporal.segment_frames == () and model.profile.inputs.concat == "none"
    assert not any("pst" in name for name, _ in model.unet.named_parameters())
    assert any("pst" in name for name, _ in checkpoints.load(make.base).unet.named_parameters())
    video = torch.rand(1, 3, 3, 64, 72) * 2 - 1
    result = generate(model, "a man", source=Source(video=video), sampling=Sampling(steps=1))
    assert result.shape == video.shape and result.isfinite().all()
    with pytest.raises(ValueError, match="makes a video from another, got none"):
        generate(model, "a man", clip=Clip(3, 64, 64))

    goes_on = {"stage": "lora", "lora": LoraConfig(rank=2), "data": {"degradations": LIGHT}}
    own = make(base=str(path), batch={"video": 2}, modes={"text": 1.0}, **goes_on)
    assert own.profile.start.biased_noise == BGN
    assert any(g is not None and g.any() for g in gradients(own).values())


def test_prepared_clips_bring_their_poor_copies(make, media, tmp_path):
    config = PrepareConfig(
        str(make.base), tmp_path / "poor", clips=SourceConfig((str(media / "clips"),)), buckets=((64, 64),),
        frames=4, min_frames=2, references=2, dtype="float32", degradations=LIGHT,
    )  # fmt: skip
    prepare(config, progress=False)
    task = Maker(config.out, make.base, tmp_path)(**upscaling())
    batch, shown = samples(task)
    eps = torch.stack(
        [torch.randn(shown.latents.shape[1:], generator=generator(5, "video noise", i)) for i in range(4)]
    )
    poor = torch.stack([example.degraded for example in batch.examples])
    lead = (shown.timesteps / 700 / task.schedule.sigmas[shown.timesteps]).reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(shown.noise, eps + lead * (poor - shown.latents))
    assert (poor - shown.latents).abs().max() > 1e-3
    assert any(g is not None and g.any() for g in gradients(task).values())
    task.draw_samples(task.module.eval(), tmp_path / "samples", 1)
    assert (tmp_path / "samples" / "step_00000001.png").exists()

    plain = dataclasses.replace(config, out=tmp_path / "plain", degradations=None)
    prepare(plain, progress=False)
    with pytest.raises(ValueError, match="expected data prepared with the degradations .* got none"):
        Maker(plain.out, make.base, tmp_path)(**upscaling())
    old = Maker(plain.out, make.base, tmp_path)(batch={"video": 2})
    assert next(old.feed(0)).examples[0].degraded is None


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data": {}}, "'upscale' needs biased noise and degradations, .* and None; set"),
        ({"noise": NoiseOptions()}, "'upscale' needs biased noise and degradations, got None and"),
        ({"batch": {"image": 2, "frame": 2}}, "one of clips, got a step of image and frame alone"),
        ({"joined": JoinedOptions("known")}, "'upscale' needs joined latents none, got known"),
        (
            {"stage": "full", "noise": NoiseOptions()},
            "poor copies are for biased noise .* got biased noise None",
        ),
        ({"stage": "full", "data": {}}, 'take a base with concat latents "first", or one with none and set'),
        ({"samples": SampleOptions(prompts=("a",))}, "start from clips of the data, got samples.prompts"),
        ({"stage": "known", "noise": NoiseOptions()}, "needs joined latents known or known_blend, got none"),
        ({"stage": "animate", "noise": NoiseOptions()}, "'animate' needs joined latents first, got none"),
    ],
)
def test_what_does_not_go_together_is_told(make, changes, words):
    with pytest.raises(ValueError, match=words):
        make(**upscaling(**changes))


def test_degradations_that_there_are_not_are_told():
    with pytest.raises(ValueError, match="degradations must be one of light, strong, got 'heavy'"):
        DegradationConfig("heavy")


# Experts


@pytest.mark.parametrize("end", [2, 17, 300, 900, 999])
def test_an_expert_is_sampled_from_where_its_training_ends(make, end):
    noise = NoiseOptions(timesteps=(0, end))
    task = make(batch={"video": 2}, noise=noise)
    schedule = task.schedule.starting(task.profile.start)
    if end < 936:
        assert schedule.last == end - 1 and task.profile.start.from_video
    else:  # the base starts at 935 itself
        assert schedule.last == 935 and not task.profile.start.from_video
    lora = make(batch={"video": 2}, noise=noise, stage="lora", lora=LoraConfig(rank=2))
    assert lora.profile.start == make(batch={"video": 2}).profile.start


def test_an_expert_of_a_whole_schedule_starts_at_nine_tenths(make, small_checkpoint, tmp_path):
    model = checkpoints.load(small_checkpoint)
    model.profile = dataclasses.replace(model.profile, start=StartProfile(None, 1.0, None))
    checkpoints.save(tmp_path / "base.safetensors", model)
    base = str(tmp_path / "base.safetensors")
    task = make(base=base, batch={"video": 2}, noise=NoiseOptions(timesteps=(0, 900)), parts="temporal")
    assert task.profile.start == StartProfile(None, 0.9, None)
    task.export(task.module.state_dict(), 1, tmp_path / "expert.safetensors")
    expert = checkpoints.load(tmp_path / "expert.safetensors")
    assert expert.profile.start.denoise == 0.9 and expert.denoiser().schedule.last == 899
    task.draw_samples(task.module.eval(), tmp_path / "samples", 1)  # from clips at half their size
    assert (tmp_path / "samples" / "step_00000001.png").exists()
    again = make(base=str(tmp_path / "expert.safetensors"), batch={"video": 2})
    assert again.profile.start.denoise == 0.9


# Animation, and known frames as a stage


def test_a_base_learns_to_animate(make, tmp_path):
    asked = {
        "stage": "animate", "joined": JoinedOptions("first"), "data": {"reference": "first"},
        "noise": NoiseOptions(biased=BiasedNoiseProfile(600, 990)), "batch": {"video": 2},
    }  # fmt: skip
    task, before, saved = make.run(tmp_path / "run", **asked)
    text = sum(share for mode, share in task.modes.items() if mode[0])
    picture = sum(share for mode, share in task.modes.items() if mode[1][1])
    assert text == pytest.approx(0.9) and picture == pytest.approx(0.9)
    _, shown = samples(task)
    assert torch.equal(shown.cond.concat, shown.latents[:, :, :1].expand_as(shown.latents))
    first = "input_blocks.0.0.weight"
    assert before[first].shape[1] == 8 and (before[first][:, 4:] == 0).all()
    assert saved["model"][first][:, 4:].abs().max() > 0
    path = tmp_path / "animates.safetensors"
    task.export(saved["ema"], 2, path)
    model = checkpoints.load(path)
    assert model.profile.inputs.concat == "first" and model.profile.start.biased_noise.t_n == 990
    clip = generate(model, "a man", torch.zeros(1, 3, 32, 32), sampling=Sampling(steps=1))
    assert clip.shape == (1, 3, 3, 32, 32)


def test_known_frames_are_a_stage(make):
    task = make(stage="known", joined=JoinedOptions("known"), batch={"video": 2})
    assert samples(task)[1].cond.concat.shape[1] == 5 and all(
        p.requires_grad for p in task.module.parameters()
    )

"""Consistency distillation: against a closed form and a step made by hand, and what a run leaves."""

import dataclasses

import pytest
import torch
from denoise_runs import Maker

from training.config import EngineConfig
from training.lora import LoraConfig
from training.options import DistillOptions, NoiseOptions
from training.plan import Cluster, plan
from training.plan.recipe import workload_of
from training.stages.conditions import BOTH, IMAGE, IMAGE_ONLY, TEXT
from training.stages.distill import HUBER, Distilled, consistency_losses
from univid import Clip, Sampling, checkpoints, generate
from univid.checkpoints import apply_lora
from univid.conditioning import Conditioning
from univid.config import BiasedNoiseProfile
from univid.diffusion import NoiseSchedule
from univid.guidance import Joint
from univid.pipeline import encode_conditions, profile_guider
from univid.presets import SD21_SCHEDULE
from univid.samplers import sample_lcm, sigma_schedule

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def make(media, small_checkpoint, tmp_path_factory):
    return Maker(media, small_checkpoint, tmp_path_factory.mktemp("runs"))


def distilling(guidance=None, **changes):
    noise = NoiseOptions(distill=DistillOptions(intervals=8, guidance=guidance))
    return {"stage": "distill", "batch": {"video": 8}, "noise": noise} | changes


def only(task, step=0):
    (part,) = task.micro_batches(step)
    return part.batch, task.samples(part.batch)


# Closed form: of data N(0, S^2) the denoiser, the way of its ODE and the consistency model are known.

S = 0.7
SCHEDULE = NoiseSchedule(SD21_SCHEDULE)


class Known:
    """A denoiser by a formula. (x, sigma broadcastable to x) -> x0."""

    schedule = SCHEDULE

    def __init__(self, formula):
        self.formula = formula

    def __call__(self, x, sigma, cond):
        return self.formula(x, sigma.reshape(-1, 1, 1, 1, 1))


DENOISER = Known(lambda x, sigma: x * S**2 / (S**2 + sigma**2))
CONSISTENT = Known(lambda x, sigma: x * S / (S**2 + sigma**2).sqrt())


def gaussian_losses(student, intervals):
    """Of one clip in each interval, the largest noise left out: there is no data in it."""
    generator = torch.Generator().manual_seed(0)
    ends = sigma_schedule("sgm_uniform", SCHEDULE, intervals)[1:]
    shape = (len(ends) - 1, 4, 3, 8, 8)
    latents, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    cond = Conditioning(
        torch.zeros(len(ends) - 1, 1, 1), None, torch.tensor([[1.0, 0.0]]).expand(shape[0], 2)
    )
    samples = Distilled(S * latents, noise, None, cond, {}, uncond=cond)
    return consistency_losses(student, DENOISER, Joint(1.0), samples, ends[:-1], ends[1:])


def test_a_consistency_model_has_a_loss_that_vanishes_with_the_step():
    coarse, fine = (gaussian_losses(CONSISTENT, intervals)[:-1].mean() for intervals in (20, 80))
    assert fine < coarse / 8 and fine < 2e-3  # an Euler step's error is of second order
    assert gaussian_losses(DENOISER, 80)[:-1].mean() > 3 * fine


def test_a_student_is_pulled_to_what_the_teacher_knows():
    """A number k for all: x0 = k x / sqrt(S^2 + sigma^2). The loss is least at the consistency model's."""

    def loss(k):
        return gaussian_losses(Known(lambda x, s: k * x / (S**2 + s**2).sqrt()), 40)[-1]

    assert loss(S) < min(
        loss(0.9 * S), loss(1.1 * S)
    )  # in the last interval, where the teacher alone is right


@pytest.mark.parametrize("steps", [1, 4])
def test_lcm_needs_a_consistency_model_and_then_any_steps(steps):
    """Which jumps to the end of its ODE; a denoiser gives the mean of all videos, and no deviation."""
    generator = torch.Generator().manual_seed(0)
    sigmas = sigma_schedule("sgm_uniform", SCHEDULE, steps)
    x = torch.randn(50_000, generator=generator) * (S**2 + sigmas[0] ** 2).sqrt()

    def deviation(model):
        def noise(shape):
            return torch.randn(shape, generator=generator)

        return sample_lcm(model.formula, x, sigmas, noise=noise).std().item()

    assert deviation(CONSISTENT) == pytest.approx(S, rel=0.02)
    assert deviation(DENOISER) < 0.8 * S


# The task


def by_hand(task, model, batch, samples, guidance):
    """The losses, from the network's own calls, in variance-preserving terms (DDIM, 2010.02502 eq. 12)."""
    schedule, losses = task.schedule, []
    sigmas = sigma_schedule("sgm_uniform", schedule, 8)
    for i, place in enumerate(samples.places.tolist()):
        sigma, nearer = sigmas[7 - place], sigmas[8 - place]
        mode = task.step_modes("video", 0)[batch.indices[i]]
        example = batch.examples[i]
        pictures = [example.pixels[example.reference].permute(2, 0, 1)[None] / 127.5 - 1] * bool(mode[1][1])
        words = [example.caption if mode[0] else ""]
        cond, uncond = encode_conditions(model, words, pictures, "", *mode[1], range(4))
        latents, noise = samples.latents[i : i + 1], samples.noise[i : i + 1]

        def x0_eps(x, sigma, cond, network):
            """x is variance preserving."""
            alpha = (sigma**2 + 1).rsqrt()
            t = schedule.told(schedule.timestep(sigma[None]))
            v = network(x, t, cond, reference_frames=samples.reference_frames)
            return alpha * x - alpha * sigma * v, alpha * v + alpha * sigma * x

        x = noise if place == 7 else (latents + sigma * noise) * (sigma**2 + 1).rsqrt()
        with torch.no_grad():
            told = x0_eps(x, sigma, cond, model.unet)
            none = x0_eps(x, sigma, uncond, model.unet)
            x0, eps = (n + guidance * (t - n) for t, n in zip(told, none, strict=True))
            answer = x0_eps(x, sigma, cond, task.module)[0]
            if place:
                alpha = (nearer**2 + 1).rsqrt()
                there = alpha * x0 + alpha * nearer * eps
                target = x0_eps(there, nearer, cond, task.module)[0]
            else:
                target = x0
        error = (answer - target).square().mean()
        losses.append((error + HUBER**2).sqrt() - HUBER)
    return torch.stack(losses)


def test_the_loss_is_that_of_a_guided_step_made_by_hand(make):
    guidance = 40.0  # a network with random weights hardly looks at its conditions
    task = make(**distilling(guidance))
    batch, samples = only(task)
    assert sorted(samples.places.tolist()) == [*range(8)]
    model = checkpoints.load(make.base, dtype=torch.float32)
    with torch.no_grad():  # the student is another by now
        for parameter in task.module.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        losses = task._losses(task.module, samples)
    torch.testing.assert_close(losses, by_hand(task, model, batch, samples, guidance), rtol=2e-3, atol=1e-5)
    assert not torch.allclose(losses, by_hand(task, model, batch, samples, 1.0), rtol=2e-2)
    assert make(**distilling()).guider == profile_guider(model.profile) != Joint(1.0)


def test_the_modes_are_those_that_guidance_is_for(make):
    modes = {mode for step in range(20) for mode in make(**distilling()).step_modes("video", step)}
    assert modes == {TEXT, BOTH, IMAGE, IMAGE_ONLY}


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_a_run_leaves_a_model_of_few_steps_or_a_lora(make, tmp_path, lora):
    task, before, saved = make.run(tmp_path, **distilling(lora=lora, name=f"run{bool(lora)}"))
    kept = dict(task.teacher.named_parameters())
    assert all(torch.equal(kept[name], parameter) for name, parameter in before.items())
    moved = [name for name, weight in saved["ema"].items() if not torch.equal(weight, before[name])]
    assert moved and (lora is None or all(".lora_" in name for name in moved))
    task.export(saved["ema"], 2, tmp_path / "made.safetensors")
    if lora is None:
        model = checkpoints.load(tmp_path / "made.safetensors", dtype=torch.float32)
        profile = model.profile
        assert (profile.sampler, profile.steps, profile.sigma_schedule) == ("lcm", 4, "sgm_uniform")
        assert profile.guidance.scale == 1 and profile.guidance.kind == "joint"
        few = Sampling()
    else:
        model, few = checkpoints.load(make.base, dtype=torch.float32), Sampling(steps=4, sampler="lcm")
        apply_lora(model, tmp_path / "made.safetensors")
    calls = []
    model.unet.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    video = generate(model, "bikes", guidance=Joint(1.0), clip=Clip(frames=3), sampling=few)
    assert calls == [1] * 4 and video.isfinite().all()


def test_a_plan_counts_the_teacher(make):
    work = workload_of(make.recipe(**distilling()), prepared=True)
    taught, alone = (
        plan(w, EngineConfig(), Cluster(gpus=1))
        for w in (work, dataclasses.replace(work, shows=("picture",)))
    )
    for layout, memory in taught.memory.items():
        assert memory == alone.memory[layout] | {"teacher's weights": 4 * sum(alone.parameters)}
    unet, lengths = work.network(), work.lengths("video")
    forward = sum(weight * work.cost(unet, 1, frames).forward for frames, weight in lengths.items())
    assert taught.sample_flops["video"] - alone.sample_flops["video"] == pytest.approx(3 * forward)
    # A backward pass costs two forward passes, so the whole is twice as much.
    assert taught.sample_flops["video"] / alone.sample_flops["video"] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(
    "noise, message",
    [
        ({"steps": 9, "intervals": 8}, "noise.distill.steps must be from 1 to intervals"),
        ({"guidance": -1.0}, "noise.distill.guidance must be at least 0"),
        ({"min_snr": True}, "has a noise and a loss of its own"),
        ({"offset": 0.1}, "has a noise and a loss of its own"),
        ({"timesteps": (0, 900)}, "has a noise and a loss of its own"),
        ({"biased": BiasedNoiseProfile(0, 700)}, "has a noise and a loss of its own"),
    ],
)
def test_what_has_no_place_beside_a_teacher_is_refused(noise, message):
    with pytest.raises(ValueError, match=message):
        if noise.keys() <= {"steps", "intervals", "guidance"}:
            DistillOptions(**noise)
        NoiseOptions(distill=DistillOptions(), **noise)


def test_the_stage_and_its_options_go_together(make):
    for changes in ({"noise": NoiseOptions()}, {"stage": "full"}):
        with pytest.raises(ValueError, match='expected noise.distill with stage "distill" and with no other'):
            make(**distilling(**changes))


def test_a_model_that_starts_from_a_video_is_refused(make, tmp_path):
    model = checkpoints.load(make.base)
    start = dataclasses.replace(model.profile.start, denoise=0.5)
    model.profile = dataclasses.replace(model.profile, start=start)
    checkpoints.save(tmp_path / "expert.safetensors", model)
    with pytest.raises(ValueError, match="for models that begin with noise alone"):
        make(**distilling(base=str(tmp_path / "expert.safetensors")))

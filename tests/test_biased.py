"""Biased noise: what training shows, where sampling starts, and an oracle in closed form for both modes."""

import dataclasses

import pytest
import torch
from test_pipeline import FRAMES, PROMPT, SIZE, build

from training.options import NoiseOptions
from univid import checkpoints
from univid.biased import BiasedNoise, biased_mode
from univid.conditioning import Conditioning
from univid.config import BiasedNoiseProfile, StartProfile
from univid.diffusion import TO_X0, NoiseSchedule, training_loss, x0_to_eps, x0_to_v
from univid.pipeline import Clip, Sampling, Source, generate
from univid.presets import PROFILES, SD21_SCHEDULE
from univid.samplers import SAMPLERS, adds_noise, initial_x, sigma_schedule
from univid.video import write_video

UPSCALE, ANIMATE = BiasedNoiseProfile(0, 700), BiasedNoiseProfile(600, 990)
ZERO_SNR = dataclasses.replace(SD21_SCHEDULE, prediction="v", zero_terminal_snr=True)
SCALED = dataclasses.replace(ZERO_SNR, x0_scale=0.7)
SCHEDULES = {"plain": SD21_SCHEDULE, "zero SNR": ZERO_SNR, "x0 scale": SCALED}
FROM_X0 = {"eps": x0_to_eps, "v": x0_to_v, "x0": lambda x0, x, sigma: x0}


def start(biased=None, denoise=1.0, timestep=None):
    return StartProfile(timestep, denoise, biased)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


# Training


@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("profile", [UPSCALE, ANIMATE])
def test_a_noisy_video_goes_from_the_target_to_the_condition(config, profile):
    schedule = NoiseSchedule(config)
    timesteps = torch.tensor([0, 300, int(profile.t_m), 650, int(profile.t_n)])
    target, condition, eps = (randn(5, 4, 2, 3, 3, seed=i) for i in range(3))
    biased = BiasedNoise(profile, schedule).noise(eps, condition, target, timesteps)
    x = schedule.add_noise(target, biased, timesteps)
    below = timesteps <= profile.t_m
    assert below.any() and torch.equal(biased[below], eps[below])  # plain noise, bit for bit
    assert relative(x[-1:], schedule.add_noise(condition, eps, timesteps)[-1:]) < 1e-6
    share = ((timesteps - profile.t_m) / (profile.t_n - profile.t_m)).clamp(0).reshape(-1, 1, 1, 1, 1)
    assert relative(x, schedule.add_noise(target + share * (condition - target), eps, timesteps)) < 1e-6
    assert relative(x, schedule.add_noise(target, eps, timesteps)) > 0.01
    # A condition that is the target already leaves plain diffusion.
    assert torch.equal(BiasedNoise(profile, schedule).noise(eps, target, target, timesteps), eps)


def test_the_noise_is_the_papers():
    """eps' = eps + sqrt(abar) / sqrt(1 - abar) (t - t_m) / (t_n - t_m) (vC - vT), 2401.09084, 3.4."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    bars = (1 - betas).cumprod(0)
    timesteps = torch.tensor([601, 700, 989])
    target, condition, eps = (randn(3, 1, 1, 4, 4, seed=i) for i in range(3))
    bar = bars[timesteps].reshape(3, 1, 1, 1, 1)
    share = ((timesteps - 600) / 390).reshape(3, 1, 1, 1, 1)
    paper = eps + bar.sqrt() / (1 - bar).sqrt() * share * (condition - target)
    own = BiasedNoise(ANIMATE, NoiseSchedule(SD21_SCHEDULE)).noise(eps, condition, target, timesteps)
    assert relative(own, paper.float()) < 1e-6


@pytest.mark.parametrize("profile", [UPSCALE, ANIMATE])
@pytest.mark.parametrize(
    ("kind", "prediction"),
    [("plain", "eps"), *((kind, p) for kind in SCHEDULES for p in ("v", "x0"))],
)
def test_every_prediction_type_learns_the_target(kind, prediction, profile):
    """A network whose x0 is the target has no loss, and one that is off by d loses by d's square alone."""
    schedule = NoiseSchedule(SCHEDULES[kind])
    timesteps = torch.tensor([50, 300, 640, int(profile.t_n) - 1])
    target, condition, eps, wrong = (randn(4, 4, 2, 3, 3, seed=i).double() for i in range(4))
    biased = BiasedNoise(profile, schedule)
    noise, share = biased.noise(eps, condition, target, timesteps), biased.share(timesteps)
    s, sigma = (t[timesteps].reshape(4, 1, 1, 1, 1) for t in (schedule.x0_scales, schedule.sigmas))
    x = target + share.reshape(4, 1, 1, 1, 1) * (condition - target) + sigma * eps
    x, sigma = s * x, (s * sigma).flatten()  # s x0 is the video that the network knows
    cond = Conditioning(torch.zeros(4, 1, 8), None, torch.ones(4, 2))
    shown = []

    def loss(x0, noise):
        answer = FROM_X0[prediction](s * x0, x, sigma)
        assert relative(TO_X0[prediction](answer, x, sigma), s * x0) < 1e-6

        def network(x_t, *_):
            shown.append(x_t * (1 + sigma.reshape(4, 1, 1, 1, 1) ** 2).sqrt())
            return answer

        return training_loss(network, schedule, prediction, target, noise, timesteps, cond)

    exact, off, plain = loss(target, noise), loss(target + wrong, noise), loss(target, eps)
    assert relative(shown[0], x) < 1e-6 and (exact < 1e-12 * off).all()
    assert relative(shown[2][2:], x[2:]) > 1e-3  # had the condition no share
    assert prediction == "x0" or plain[2] > 1e-5
    error = (s * wrong).float().square().flatten(1).mean(1)
    factor = {"eps": sigma**-2, "v": sigma**-2 + 1, "x0": torch.ones(4)}[prediction]
    torch.testing.assert_close(off.float(), error * factor, rtol=1e-5, atol=0)


# Sampling: the oracle. vT ~ N(0, 1), vC = rho vT + d n, a network that sees vC; so vT given vC is normal.


class Oracle:
    def __init__(self, config, profile=UPSCALE, rho=1.0, d=1.0, count=20_000):
        self.biased = BiasedNoise(profile, NoiseSchedule(config).starting(start(profile)))
        target, n, self.eps = (randn(count, seed=i) for i in range(3))
        self.condition = rho * target + d * n
        total = rho**2 + d**2
        self.mean, self.variance = rho / total * self.condition, d**2 / total
        self.wanted = self.mean + self.variance**0.5 * self.eps

    def __call__(self, x, sigma):
        """E[vT | x, vC] of x = (1 - lam) vT + lam vC + sigma eps."""
        share, _ = self.biased.at(sigma)
        gain = (1 - share) * self.variance / ((1 - share) ** 2 * self.variance + sigma**2)
        return self.mean + gain * (x - share * self.condition - (1 - share) * self.mean)

    def error(self, mode, sampler, steps):
        """Root mean square distance of samples to where the flow of the densities ends."""
        sigmas = sigma_schedule("sgm_uniform", self.biased.schedule, steps)
        x = initial_x(self.eps, sigmas[0], self.biased.schedule, self.condition)
        denoise = self if mode == "paper" else self.biased.consistent(self, self.condition)
        return (SAMPLERS[sampler](denoise, x, sigmas) - self.wanted).square().mean().sqrt().item()


STEPS = (7, 28, 112, 448)
TABLE = {  # RMS errors at t_m, t_n = 0, 700 and rho = d = 1
    ("paper", "euler"): (0.186, 0.094, 0.069, 0.063),
    ("consistent", "euler"): (0.137, 0.032, 0.0093, 0.0039),
    ("consistent", "dpmpp_2m"): (0.084, 0.025, 0.0089, 0.0040),
}


@pytest.mark.parametrize(("mode", "sampler"), TABLE)
def test_errors_of_both_modes_against_the_closed_form(mode, sampler):
    oracle = Oracle(SD21_SCHEDULE)
    errors = [oracle.error(mode, sampler, steps) for steps in STEPS]
    assert errors == pytest.approx(TABLE[mode, sampler], rel=0.1)


@pytest.mark.parametrize("config", [SD21_SCHEDULE, ZERO_SNR, SCALED])
def test_consistent_euler_is_of_first_order_and_paper_does_not_converge(config):
    """Down to the least noise of the schedule, whose share of the way the last step does not resolve."""
    oracle = Oracle(config)
    consistent, paper = ([oracle.error(m, "euler", n) for n in (14, 28, 56)] for m in ("consistent", "paper"))
    assert all(1.7 < a / b < 2.4 for a, b in zip(consistent, consistent[1:], strict=False))
    assert paper[1] / paper[2] < 1.5


def test_a_wrong_pull_does_not_converge(monkeypatch):
    """Neither without the slope of lam nor with one of another sign."""
    right = BiasedNoise.at
    for factor in (0.0, -1.0):
        monkeypatch.setattr(BiasedNoise, "at", right)
        oracle = Oracle(SD21_SCHEDULE)

        def wrong(self, sigma, factor=factor):
            share, slope = right(self, sigma)
            return share, factor * slope

        monkeypatch.setattr(BiasedNoise, "at", wrong)
        assert oracle.error("consistent", "euler", 112) > 0.1


def test_the_slope_is_that_of_the_share():
    biased = BiasedNoise(ANIMATE, NoiseSchedule(ZERO_SNR))
    sigmas = biased.schedule.sigma(torch.tensor([100.25, 610.4, 700.3, 985.6, 995.5]))
    above, below = (biased.at(sigmas * factor)[0] for factor in (1.0005, 0.9995))
    slopes = biased.at(sigmas)[1]
    torch.testing.assert_close(slopes, (above - below) / 0.001, rtol=2e-2, atol=1e-6)
    assert slopes[0] == slopes[-1] == 0 < slopes[1:-1].min()
    at_the_start = NoiseSchedule(ZERO_SNR).starting(start(ANIMATE))
    share, slope = BiasedNoise(ANIMATE, at_the_start).at(torch.tensor(at_the_start.sigma_max))
    assert share == 1 and slope > 0


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if not adds_noise(name)])
def test_below_t_m_both_modes_are_plain_diffusion_bit_for_bit(sampler):
    """And where the condition is what the network answers."""
    schedule = NoiseSchedule(SD21_SCHEDULE)
    sigmas = sigma_schedule("sgm_uniform", schedule.until(600), 6)
    x, condition = sigmas[0] * randn(1, 4, 2, 3, 3), randn(1, 4, 2, 3, 3, seed=1)

    def denoise(x, sigma):
        return x / (1 + sigma**2)

    plain = SAMPLERS[sampler](denoise, x, sigmas)
    consistent = BiasedNoise(ANIMATE, schedule).consistent(denoise, condition)
    assert torch.equal(SAMPLERS[sampler](consistent, x, sigmas), plain)
    within = BiasedNoise(UPSCALE, schedule).consistent(denoise, condition)
    assert not torch.allclose(SAMPLERS[sampler](within, x, sigmas), plain, atol=0.01)
    same = BiasedNoise(UPSCALE, schedule).consistent(lambda x, sigma: condition, condition)
    assert torch.equal(same(x, sigmas[2]), condition)


# Starts


@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES)
def test_sampling_starts_at_t_n_from_the_condition_under_its_noise(config):
    whole, schedule = NoiseSchedule(config), NoiseSchedule(config).starting(start(UPSCALE))
    sigmas = sigma_schedule("karras", schedule, 7)
    assert sigmas[0].item() == pytest.approx(whole.sigmas[700].item())
    condition, noise = randn(1, 4, 2, 3, 3), randn(1, 4, 2, 3, 3, seed=1)
    assert torch.equal(initial_x(noise, sigmas[0], schedule, condition), condition + sigmas[0] * noise)
    assert schedule.told(torch.tensor([700])) == 700  # not the timestep of pure noise
    full = initial_x(noise, whole.until(700).sigmas[-1], whole.until(700), condition)
    assert not torch.allclose(full, condition + sigmas[0] * noise)  # as a run that starts from noise


def test_an_expert_starts_at_its_share_of_the_timesteps():
    schedule = NoiseSchedule(SD21_SCHEDULE).starting(start(denoise=0.8))
    assert schedule.last == 799 and not schedule.from_noise
    assert NoiseSchedule(SD21_SCHEDULE).starting(start()).from_noise
    assert NoiseSchedule(ZERO_SNR).starting(start(denoise=0.5, timestep=900)).last == 450


# generate


def model(kind, profile_start, **fields):
    made = build(kind)
    made.profile = dataclasses.replace(made.profile, start=profile_start, **fields)
    return made


VIDEO = randn(1, 3, FRAMES, SIZE, SIZE).clamp(-1, 1)
PICTURE = randn(1, 3, SIZE, SIZE, seed=3).clamp(-1, 1)


def test_a_video_is_turned_into_another_in_both_modes():
    turns = model("modelscope", start(UPSCALE), steps=4, eta=0.0)
    by = {mode: Sampling(biased_noise=mode) for mode in (None, "paper", "consistent")}
    made = {mode: generate(turns, PROMPT, source=Source(VIDEO), sampling=s) for mode, s in by.items()}
    assert torch.equal(made[None], made["paper"])  # this network does not see the condition
    assert not torch.allclose(made["paper"], made["consistent"], atol=1e-3)
    other = generate(turns, PROMPT, source=Source(VIDEO.flip(2)), sampling=by["paper"])
    assert not torch.allclose(other, made["paper"], atol=1e-3)


def test_a_picture_is_animated_from_itself():
    """Where the network sees it in every frame, it is the condition; a video of it is the same."""
    animates = model("dynamicrafter", start(ANIMATE), eta=0.0)
    one = generate(animates, PROMPT, PICTURE, clip=Clip(FRAMES, SIZE, SIZE))
    still = PICTURE[:, :, None].expand(-1, -1, FRAMES, -1, -1)
    for mode, same in (("consistent", True), ("paper", False)):
        how = Sampling(biased_noise=mode)
        other = generate(animates, PROMPT, PICTURE, source=Source(still), sampling=how)
        assert ((one - other).abs().mean() < 1e-5) == same, (mode, (one - other).abs().mean())


def test_an_expert_refines_a_video():
    refines, plain = model("modelscope", start(denoise=0.5)), model("modelscope", start())
    made = generate(refines, PROMPT, source=Source(VIDEO))
    assert made.shape == VIDEO.shape
    # As video to video by another does, whose steps begin at the same noise level.
    how = Sampling(sigma_schedule="sgm_uniform")
    a = generate(refines, PROMPT, source=Source(VIDEO), sampling=how)
    b = generate(plain, PROMPT, source=Source(VIDEO, 0.5), sampling=how)
    assert (a - b).abs().mean() < 0.02 < (a - generate(plain, PROMPT)).abs().mean()


SDE = Sampling(sampler="dpmpp_2m_sde", biased_noise="consistent")
NOISY_DDIM = Sampling(sampler="ddim", eta=0.5, biased_noise="consistent")


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        (start(UPSCALE), {}, "makes a video from another, got none; give one"),
        (start(denoise=0.8), {}, "makes a video from another, got none; give one"),
        (start(UPSCALE), {"source": Source(VIDEO, 0.6)}, "from a whole video, got denoise 0.6"),
        (
            start(UPSCALE),
            {
                "source": Source(VIDEO),
                "sampling": SDE,
            },
            "adds no noise, got dpmpp_2m_sde",
        ),
        (
            start(UPSCALE),
            {
                "source": Source(VIDEO),
                "sampling": NOISY_DDIM,
            },
            "adds no noise, got ddim",
        ),
        (start(UPSCALE), {"source": Source(VIDEO), "sampling": Sampling(biased_noise="x")}, "must be among"),
        (start(), {"sampling": Sampling(biased_noise="paper")}, "has no biased noise, got its mode 'paper'"),
        (start(BiasedNoiseProfile(0, 1000)), {"source": Source(VIDEO)}, "from 1 to 999, got 1000"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_one_sentence(given, options, words):
    with pytest.raises(ValueError, match=words) as error:
        generate(model("modelscope", given), PROMPT, **options)
    assert str(error.value).count(". ") == 0


def test_the_command_line_gives_such_a_model_the_whole_video(run, small_checkpoint, tmp_path):
    turns = checkpoints.load(small_checkpoint)
    turns.profile = dataclasses.replace(turns.profile, start=start(UPSCALE))
    checkpoints.save(tmp_path / "turns.safetensors", turns)
    write_video(VIDEO, tmp_path / "in.mp4", 8)
    words = ("--prompt", PROMPT, "--checkpoint", "turns.safetensors", "--out", "out.mp4")
    status, _, said = run("generate", *words, "--video", "in.mp4")
    assert status == 0 and (tmp_path / "out.mp4").exists(), said
    for more, why in (((), "got none"), (("--video", "in.mp4", "--denoise", 0.6), "got denoise 0.6")):
        status, _, said = run("generate", *words, *more)
        assert status == 2 and why in said


def test_consistent_is_the_default_where_the_network_sees_its_condition():
    profile = dataclasses.replace(PROFILES["paper"], start=start(ANIMATE))
    seen = dataclasses.replace(profile, inputs=dataclasses.replace(profile.inputs, concat="first"))
    assert biased_mode(profile, None, "ddim") == "paper" and biased_mode(seen, None) == "consistent"
    assert biased_mode(PROFILES["paper"], None) is None
    with pytest.raises(ValueError, match="or mode paper"):
        biased_mode(seen, None, "ddim")


def test_a_range_of_timesteps_that_means_nothing_is_refused():
    for timesteps in ((5, 5), (-1, 900), (900, 0)):
        with pytest.raises(ValueError, match="a first one from 0 on and a larger end"):
            NoiseOptions(timesteps=timesteps)

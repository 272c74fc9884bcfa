"""Noise levels in the host: the library's schedules, where sampling starts, curves over the steps."""

import dataclasses

import pytest
import torch
from host_tests.both import FRAMES, LATENT, conditionings, difference, guider, randn
from host_tests.random_model import write

pytestmark = pytest.mark.usefixtures("inference")

FIRST = 940


KINDS = {
    "scaled_linear": {},
    "zero terminal SNR": {"prediction": "v", "zero_terminal_snr": True},
    "x0 scale": {"prediction": "v", "zero_terminal_snr": True, "x0_scale": 0.3},
    "cosine": {"prediction": "v", "betas": ("squaredcos_cap_v2", None, None)},
    "cosine, zero terminal SNR": {
        "prediction": "v", "betas": ("squaredcos_cap_v2", None, None), "zero_terminal_snr": True,
    },
}  # fmt: skip


def both(kind, first):
    """The host's model sampling and the library's schedule of a model that starts at timestep `first`."""
    import comfy.model_base
    from univid_pack.nodes.host.config import Config
    from univid_pack.nodes.host.model import MODEL_TYPES
    from univid_pack.nodes.host.schedule import own_sampling
    from univid_pack.univid.config import BetaConfig
    from univid_pack.univid.diffusion import NoiseSchedule
    from univid_pack.univid.presets import PROFILES, SD21_SCHEDULE, TINY

    fields = dict(KINDS[kind])
    if "betas" in fields:
        fields["betas"] = BetaConfig(*fields["betas"])
    schedule = dataclasses.replace(SD21_SCHEDULE, **fields)
    start = dataclasses.replace(PROFILES["paper"].start, timestep=first)
    profile = dataclasses.replace(PROFILES["paper"], start=start)
    host = Config(dataclasses.replace(TINY, schedule=schedule), profile)
    assert host.unet_config["schedule"].last == (first or 999)
    sampling = comfy.model_base.model_sampling(host, MODEL_TYPES[schedule.prediction])
    return own_sampling(sampling, schedule, start), NoiseSchedule(schedule).starting(start)


@pytest.mark.parametrize("first", [None, FIRST, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_the_host_has_the_librarys_noise_levels(pack, kind, first):
    import comfy.samplers
    from univid_pack.univid.samplers import SIGMA_SCHEDULES, initial_x, sigma_schedule

    host, library = both(kind, first)
    torch.testing.assert_close(host.sigmas, library.sigmas, rtol=1e-4, atol=0)
    assert host.sigma_max == host.sigmas[-1] and len(host.sigmas) == (first or 999) + 1
    assert torch.equal(host.timestep(library.sigmas), library.timestep(library.sigmas))
    for name in SIGMA_SCHEDULES:
        for steps in (1, 4, 7):
            theirs = comfy.samplers.calculate_sigmas(host, name, steps)
            torch.testing.assert_close(theirs, sigma_schedule(name, library, steps), rtol=2e-4, atol=0)
    noise, latents = randn(1, 4, 3, 2, 2), randn(1, 4, 3, 2, 2, seed=1)
    for sigma in (host.sigmas[-1], host.sigmas[len(host.sigmas) // 2]):
        full = bool(sigma >= host.sigma_max)  # as the host decides
        start = host.noise_scaling(sigma.reshape(1), noise.clone(), latents, full)
        torch.testing.assert_close(start, initial_x(noise, sigma, library, latents), rtol=1e-4, atol=1e-4)
    for percent in (0.25, 0.5, 0.999):
        at = (1 - percent) * library.last
        assert host.percent_to_sigma(percent) == pytest.approx(library.sigma(at).item(), rel=1e-3)
    assert host.percent_to_sigma(0.0) > 1e8 and host.percent_to_sigma(1.0) == 0


@pytest.fixture(scope="module")
def path(pack, tmp_path_factory):
    return write(tmp_path_factory.mktemp("checkpoint"), zero_terminal_snr=True, first=FIRST)


@pytest.fixture
def model(path):
    from univid_pack.nodes.host.model import load_model

    return load_model(path, "fp32")


def falling():
    """Conditionings whose picture counts less and less along the sampling."""
    points = torch.ones(1, 64, 2)
    points[:, :, 1] = torch.linspace(1, 0, 64)
    return conditionings(points)


def staged(model, sampler, scheduler, cuts, conds):
    """Latents of joint guidance by KSampler (Advanced), one node from each cut to the next."""
    import nodes

    latent = LATENT
    for start, end in zip(cuts, cuts[1:], strict=False):
        (latent,) = nodes.common_ksampler(
            model, 7, cuts[-1], 3.0, sampler, scheduler, *conds, latent,
            disable_noise=start > 0, start_step=start, last_step=end, force_full_denoise=end == cuts[-1],
        )  # fmt: skip
    return latent["samples"]


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2"])
@pytest.mark.parametrize("scheduler", ["normal", "karras"])
def test_two_ksamplers_with_a_curve_are_one(model, sampler, scheduler):
    whole = staged(model, sampler, scheduler, (0, 8), falling())
    assert difference(staged(model, sampler, scheduler, (0, 4, 8), falling()), whole) < 1e-5
    assert difference(staged(model, sampler, scheduler, (0, 1, 6, 8), falling()), whole) < 1e-5
    assert difference(staged(model, sampler, scheduler, (0, 8), conditionings((1, 1))), whole) > 1e-3


@pytest.mark.parametrize("guidance", ["joint", "separate", "separate rescaled", "nested"])
def test_two_guiders_with_a_curve_are_one(model, guidance):
    import comfy.samplers
    from univid_pack.nodes.host.guider import UniVidGuider

    def run(conds, *stages):
        latent, noise = LATENT["samples"], randn(FRAMES, 4, 8, 8)
        for sigmas in stages:
            host_guider = UniVidGuider(model, guider(guidance))
            host_guider.set_conds(*conds)
            sampler = comfy.samplers.sampler_object("euler")
            latent = host_guider.sample(noise, latent, sampler, sigmas, seed=7, disable_pbar=True)
            noise = torch.zeros_like(noise)
        return latent

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "sgm_uniform", 8)
    whole = run(falling(), sigmas)
    assert difference(run(falling(), sigmas[:5], sigmas[4:]), whole) < 1e-5
    assert difference(run(conditionings((1, 1)), sigmas), whole) > 1e-3


def test_with_denoise_below_1_a_curve_starts_where_the_noise_does(model):
    """Half of the noise levels are left: of a curve that falls to 0 before the middle only 0 is seen."""
    from univid_pack.nodes.host.sampling import sample

    points = torch.ones(1, 64, 2)
    points[:, 31:, 1] = 0  # from 0.49 on

    def run(conds, denoise):
        return sample(
            model, *conds, {"samples": randn(FRAMES, 4, 8, 8)}, seed=7, steps=4, sampler_name="euler",
            scheduler="sgm_uniform", guider=guider("separate"), denoise=denoise,
        )[0]["samples"]  # fmt: skip

    assert difference(run(conditionings(points), 0.5), run(conditionings((1, 0)), 0.5)) < 1e-5
    assert difference(run(conditionings(points), 1.0), run(conditionings((1, 0)), 1.0)) > 1e-3


def test_a_users_own_noise_schedule_is_used_as_it_is(model):
    """ModelSamplingDiscrete does not know where sampling starts; curves begin where the model's own does."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    for zero_snr, largest in ((True, 4518.76), (False, 14.6146)):
        (patched,) = ModelSamplingDiscrete().patch(model, "v_prediction", zero_snr)
        sampling = patched.get_model_object("model_sampling")
        assert sampling.sigma_max.item() == pytest.approx(largest, rel=1e-4)
        assert staged(patched, "euler", "sgm_uniform", (0, 4), falling()).isfinite().all()
    own = model.model.progress(torch.tensor([1e4, 4518.76, 5.0, 1.0, 0.03]))
    assert own[0] == own[1] == 0 < own[2] < own[3] < own[4] <= 1

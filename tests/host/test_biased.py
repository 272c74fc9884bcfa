"""Biased noise in the host: mode "paper" in its own KSampler, mode "consistent" as a patch of the MODEL."""

import comfy.samplers
import pytest
import torch
from einops import rearrange
from host_tests.both import FRAMES, conditionings, difference, guider, randn, run
from host_tests.random_model import write

pytestmark = pytest.mark.usefixtures("inference")

T_M, T_N, STEPS = 300.0, 700.0, 4
LATENT = {"samples": randn(FRAMES, 4, 8, 8, seed=5)}


@pytest.fixture(scope="module")
def path(pack, tmp_path_factory):
    """A random checkpoint that starts from biased noise."""
    from univid_pack.univid import checkpoints
    from univid_pack.univid.config import BiasedNoiseProfile, StartProfile

    folder = tmp_path_factory.mktemp("checkpoint")
    model = checkpoints.load(write(folder, zero_terminal_snr=True))
    return saved(model, StartProfile(None, 1.0, BiasedNoiseProfile(T_M, T_N)), folder / "biased.safetensors")


def saved(model, start, path):
    import dataclasses

    from univid_pack.univid import checkpoints

    model.profile = dataclasses.replace(model.profile, start=start)
    checkpoints.save(path, model)
    return path


@pytest.fixture
def model(path):
    from univid_pack.nodes.host.model import load_model

    return load_model(path, "fp32")


@pytest.fixture(scope="module")
def library(path):
    from univid_pack.univid.checkpoints import load

    return load(path)


def expected(library, mode, guidance, sampler):
    """The library's own sampler from the same latents, seed, steps and conditions."""
    from univid_pack.univid import samplers
    from univid_pack.univid.biased import BiasedNoise
    from univid_pack.univid.conditioning import Conditioning
    from univid_pack.univid.noise import ClipNoise

    (text, extras), (none, _) = (c[0] for c in conditionings())
    cond = Conditioning(text=text, image=extras["univid_image"], weights=extras["univid_weights"][:, 0])
    uncond = Conditioning(text=none, image=None, weights=torch.tensor([[1.0, 0.0]]))
    denoiser, g = library.denoiser(), guider(guidance)
    condition = rearrange(LATENT["samples"], "t c h w -> 1 c t h w") * 0.18215
    sigmas = samplers.sigma_schedule("sgm_uniform", denoiser.schedule, STEPS)
    x = samplers.initial_x(ClipNoise([7])(condition.shape), sigmas[0], denoiser.schedule, condition)

    def denoise(x, sigma):
        return g(denoiser, x, sigma, cond, uncond)

    if mode == "consistent":
        biased = library.profile.start.biased_noise
        denoise = BiasedNoise(biased, denoiser.schedule).consistent(denoise, condition)
    x = samplers.get_sampler(sampler, denoiser.schedule)(denoise, x, sigmas, noise=ClipNoise([7]))
    return rearrange(x, "1 c t h w -> t c h w") / 0.18215


def in_mode(model, mode):
    from univid_pack.nodes.host.biased import with_consistent_noise

    return model if mode == "paper" else with_consistent_noise(model, LATENT["samples"])


@pytest.mark.parametrize(
    ("guidance", "sampler"),
    [("joint", "dpmpp_2m"), ("joint rescaled", "euler"), ("separate", "heun"), ("nested", "euler")],
)
def test_both_modes_are_the_librarys(model, library, guidance, sampler):
    own = {mode: expected(library, mode, guidance, sampler) for mode in ("paper", "consistent")}
    for mode, other in (("paper", "consistent"), ("consistent", "paper")):
        out, _ = run(in_mode(model, mode), guidance, sampler=sampler, latent=LATENT, steps=STEPS)
        assert difference(out, own[mode]) < 1e-4
        assert difference(out, own[other]) > 1e-3


@pytest.mark.parametrize("mode", ["paper", "consistent"])
def test_the_hosts_ksampler_is_our_sampler(model, library, mode):
    import nodes

    (latent,) = nodes.common_ksampler(
        in_mode(model, mode), 7, STEPS, 3.0, "euler", "sgm_uniform", *conditionings(), LATENT
    )
    assert difference(latent["samples"], expected(library, mode, "joint", "euler")) < 1e-4


def test_with_context_windows_a_clip_follows_its_whole_condition(model):
    from comfy.context_windows import ContextFuseMethods, ContextSchedules, IndexListContextHandler
    from comfy.context_windows import get_matching_context_schedule as schedule
    from comfy.context_windows import get_matching_fuse_method as fuse

    def windowed(mode):
        other = in_mode(model, mode).clone()
        other.model_options["context_handler"] = IndexListContextHandler(
            schedule(ContextSchedules.STATIC_STANDARD), fuse(ContextFuseMethods.PYRAMID),
            context_length=3, context_overlap=1, dim=0,
        )  # fmt: skip
        return run(other, latent=LATENT, steps=STEPS)[0]

    assert windowed("consistent").isfinite().all()
    assert difference(windowed("consistent"), windowed("paper")) > 1e-3


def test_samplers_that_add_noise_are_refused_and_no_others_are_taken(model):
    """Each that is taken gives the same clip whatever the noise that it could draw."""
    from univid_pack.nodes.host.biased import ODE

    patched = in_mode(model, "consistent")
    assert ODE < set(comfy.samplers.KSampler.SAMPLERS)
    for sampler in ("euler_ancestral", "dpmpp_2m_sde", "lcm", "ddpm", "uni_pc"):
        with pytest.raises(ValueError, match=f"that adds no noise, got .*{sampler.split('_')[0]}"):
            run(patched, sampler=sampler, latent=LATENT, steps=STEPS)
    sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "sgm_uniform", 3)
    for sampler in sorted(ODE | {"ddim"}):
        made = [ksampled(patched, sampler, sigmas, seed) for seed in (1, 2)]
        assert torch.equal(*made), sampler
    assert not torch.equal(*(ksampled(model, "euler_ancestral", sigmas, seed) for seed in (1, 2)))


def ksampled(model, sampler, sigmas, seed):
    """From one noise, under two seeds."""
    from univid_pack.nodes.host.guider import UniVidGuider

    host_guider = UniVidGuider(model, guider("joint"))
    host_guider.set_conds(*conditionings())
    return host_guider.sample(
        randn(FRAMES, 4, 8, 8), LATENT["samples"], comfy.samplers.sampler_object(sampler), sigmas,
        seed=seed, disable_pbar=True,
    )  # fmt: skip


def test_without_a_video_or_biased_noise_it_is_refused(model, pack, tmp_path):
    from univid_pack.nodes.host.biased import with_consistent_noise
    from univid_pack.nodes.host.model import load_model
    from univid_pack.univid.checkpoints import load
    from univid_pack.univid.config import StartProfile

    empty = {"samples": torch.zeros(FRAMES, 4, 8, 8)}
    plain = write(tmp_path)
    expert = saved(load(plain), StartProfile(None, 0.8, None), tmp_path / "expert.safetensors")
    for needs in (model, load_model(expert, "fp32")):
        with pytest.raises(ValueError, match="makes a video from another, got none"):
            run(needs, latent=empty)
    made, _ = run(load_model(expert, "fp32"), latent=LATENT)
    assert made.isfinite().all()
    with pytest.raises(ValueError, match="has no biased noise, got its mode 'consistent'"):
        with_consistent_noise(load_model(plain, "fp32"), LATENT["samples"])

"""FreeNoise Windows and FreeInit in the host: what the library makes, by every sampler node."""

import pytest
import torch
from einops import rearrange
from host_tests.both import LATENT, conditionings, difference, guider, randn, run

pytestmark = pytest.mark.usefixtures("inference")

FRAMES, STEPS, SEED, FRESH = 5, 4, 7, 99  # both.run's seed is 7


@pytest.fixture
def model(path):
    from univid_pack.nodes.host.model import load_model

    return load_model(path, "fp32")


@pytest.fixture(scope="module")
def library(path):
    from univid_pack.univid.checkpoints import load

    return load(path)


def free(model, length=3, stride=1, free_noise=True, references="window"):
    from univid_pack.nodes.longer import UniVidFreeNoise

    return UniVidFreeNoise.execute(model, length, stride, free_noise, references).result[0]


def init(model, latents, seed=FRESH, cutoff=0.6, level=0.5):
    from univid_pack.nodes.longer import UniVidFreeInit

    return UniVidFreeInit.execute(model, {"samples": latents}, seed, cutoff, level).result[0]


def expected(library, windows=None, free_noise=False, low=None):
    """The library's sampler; low: latents of the host, of which the start has the low band."""
    from functools import partial

    from univid_pack.univid import samplers
    from univid_pack.univid.conditioning import Conditioning
    from univid_pack.univid.noise import ClipNoise, LowBand
    from univid_pack.univid.steer import FrameWindows, Steering

    (text, extras), (none, _) = (c[0] for c in conditionings())
    cond = Conditioning(text=text, image=extras["univid_image"], weights=extras["univid_weights"][:, 0])
    uncond = Conditioning(text=none, image=None, weights=torch.tensor([[1.0, 0.0]]))
    windows = windows and FrameWindows(*windows)
    denoiser, g, shape = library.denoiser(), guider("joint"), (1, 4, FRAMES, 8, 8)
    denoiser = type(denoiser)(
        partial(library.unet, steering=Steering(windows=windows)), denoiser.schedule, denoiser.prediction
    )
    sigmas = samplers.sigma_schedule("sgm_uniform", denoiser.schedule, STEPS)
    order = windows if free_noise else None
    noise = ClipNoise([SEED], windows=order)(shape)
    if low is not None:
        fresh = ClipNoise([FRESH], windows=order)(shape)
        low = rearrange(low, "t c h w -> 1 c t h w") * 0.18215
        noise = LowBand(cutoff=0.6, level=0.5).start(low, noise, fresh, denoiser.schedule)
    x = samplers.initial_x(noise, sigmas[0], denoiser.schedule)
    x = samplers.sample_euler(lambda x, s: g(denoiser, x, s, cond, uncond), x, sigmas)
    return rearrange(x, "1 c t h w -> t c h w") / 0.18215


def by_ksampler(model):
    import nodes

    return nodes.common_ksampler(model, SEED, STEPS, 3.0, "euler", "sgm_uniform", *conditionings(), LATENT)[
        0
    ]["samples"]


def by_custom_sampler(model):
    from comfy_extras.nodes_custom_sampler import (
        BasicScheduler,
        KSamplerSelect,
        RandomNoise,
        SamplerCustomAdvanced,
    )
    from univid_pack.nodes.guide import UniVidGuiderNode

    def one(node, *given):
        return node.execute(*given).result[0]

    guided = one(UniVidGuiderNode, model, *conditionings(), "joint", 3.0, 3.0, 2.0)
    sigmas = one(BasicScheduler, model, "sgm_uniform", STEPS, 1.0)
    sampler = one(KSamplerSelect, "euler")
    return one(SamplerCustomAdvanced, one(RandomNoise, SEED), guided, sampler, sigmas, LATENT)["samples"]


SAMPLERS = {"PST Sampler": lambda model: run(model)[0], "KSampler": by_ksampler, "custom": by_custom_sampler}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_free_noise_is_the_librarys_whatever_samples(model, library, sampler):
    sample = SAMPLERS[sampler]
    out = sample(free(model))
    assert difference(out, expected(library, (3, 1), True)) < 1e-4
    assert difference(out, expected(library, (3, 1), False)) > 1e-2
    assert difference(out, expected(library)) > 1e-2
    assert torch.equal(sample(free(model, FRAMES, 2)), sample(model))  # one window


def test_windows_alone_and_for_the_whole_clip_are_the_librarys(model, library):
    for references in ("window", "clip"):
        out = run(free(model, 3, 2, False, references))[0]
        assert difference(out, expected(library, (3, 2, references))) < 1e-4
    again = free(free(model), 3, 2, False)  # the last node counts
    assert torch.equal(run(again)[0], run(free(model, 3, 2, False))[0])
    whole = run(model)[0]
    assert difference(run(free(model))[0], whole) > 1e-2 and torch.equal(run(model)[0], whole)


def test_reference_frames_of_pst_options_are_a_windows(model):
    from univid_pack.nodes.host.model import with_reference_frames

    out = run(free(model, 3, 1))[0]
    assert torch.equal(run(with_reference_frames(free(model, 3, 1), {8: 3}))[0], out)
    assert difference(run(with_reference_frames(free(model, 3, 1), {1: 3}))[0], out) > 1e-4


@pytest.mark.parametrize(("frames", "length", "stride"), [(36, 12, 8), (32, 12, 8), (20, 7, 3)])
def test_the_order_of_free_noise_is_the_hosts(pack, frames, length, stride):
    from comfy.context_windows import apply_freenoise
    from univid_pack.univid.noise import ClipNoise
    from univid_pack.univid.steer import FrameWindows

    shape = (1, 4, frames, 8, 8)
    noise = rearrange(ClipNoise([SEED])(shape), "1 c t h w -> t c h w")
    theirs = apply_freenoise(noise.clone(), 0, length, length - stride, SEED)
    ours = rearrange(ClipNoise([SEED], windows=FrameWindows(length, stride))(shape), "1 c t h w -> t c h w")
    assert torch.equal(ours, theirs) and not torch.equal(ours, noise)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_free_init_is_the_librarys_whatever_samples(model, library, sampler):
    sample = SAMPLERS[sampler]
    before = sample(model)
    out = sample(init(model, before))
    assert difference(out, expected(library, low=before)) < 1e-4
    assert difference(out, before) > 1e-2
    still = randn(1, 4, 8, 8, seed=4)
    assert difference(sample(init(model, still)), expected(library, low=still)) < 1e-4


def test_free_init_after_free_noise_in_any_order(model, library):
    before = run(free(model))[0]
    one, other = run(init(free(model), before))[0], run(free(init(model, before)))[0]
    assert torch.equal(one, other)
    assert difference(one, expected(library, (3, 1), True, before)) < 1e-4
    assert difference(one, expected(library, (3, 1), False, before)) > 1e-3


def test_the_last_free_init_counts(model):
    before = run(model)[0]
    assert torch.equal(run(init(init(model, before, seed=3), before))[0], run(init(model, before))[0])


def test_a_model_without_them_is_as_it_was(model):
    before = run(model)[0]
    init(free(model), before)
    assert torch.equal(run(model)[0], before)


def test_what_makes_no_sense_is_refused(model):
    latents = LATENT["samples"]
    with pytest.raises(ValueError, match=r"at least 9 frames.*got 5"):
        run(free(model, 9, 3))
    with pytest.raises(ValueError, match=r"at least 9 frames.*got 5"):
        run(free(model, 9, 3, False))
    with pytest.raises(ValueError, match="from 1 to their 3 frames, got 4"):
        free(model, 3, 4)
    with pytest.raises(ValueError, match="at least 2 frames, got 1"):
        free(model, 1, 1)
    with pytest.raises(ValueError, match="start from noise alone"):
        run(init(model, latents), latent={"samples": randn(FRAMES, 4, 8, 8)})
    with pytest.raises(ValueError, match=r"of one picture of its size, got \[4, 4, 8, 8\]"):
        run(init(model, latents[:4]))
    with pytest.raises(ValueError, match="same seed 7; take another"):
        run(init(model, latents, seed=SEED))

"""Interpolate, Extend and Upscale in the host give the library's frames, and so do Known Frames."""

import dataclasses

import numpy as np
import pytest
import torch
from host_tests.both import randn

pytestmark = pytest.mark.usefixtures("inference")

STEPS, SEED, PROMPT = 2, 11, "a red circle"


@pytest.fixture(scope="module")
def files(pack, tmp_path_factory):
    """Whole small models with random weights: of known frames, and two that upscale."""
    from univid_pack.univid import checkpoints, presets
    from univid_pack.univid.checkpoints.native import meta_modules
    from univid_pack.univid.config import BiasedNoiseProfile, StartProfile
    from univid_pack.univid.model import UniVid
    from univid_pack.univid.widened import widened

    tiny = presets.PRESETS["tiny"]
    small = dataclasses.replace(
        tiny,
        unet=dataclasses.replace(
            tiny.unet, model_channels=16, head_channels=16, norm_groups=8, context_dim=32, image_stream=None
        ),
        vae=dataclasses.replace(tiny.vae, channels=8, channel_mult=(1, 1, 2, 2)),
        text=dataclasses.replace(tiny.text, width=32, layers=2, embed_dim=32),
        vision=None,
    )
    profile = dataclasses.replace(
        presets.PROFILES["tiny"], frames=3, height=32, width=32, steps=STEPS, sampler="dpmpp_2m"
    )
    generator, parts = torch.Generator().manual_seed(0), meta_modules(small)
    for part in parts.values():
        for parameter in part.to_empty(device="cpu").parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
            parameter.data.normal_(std=fan_in**-0.5, generator=generator)
    for layer in (parts["vae"].quant_conv, parts["vae"].decoder.conv_out):
        layer.weight.data.mul_(5)  # random weights lose most of a frame
    base = UniVid(small, profile, info={}, **parts)
    drawing = dataclasses.replace(profile, sampler="lcm")  # new noise in each step
    known = widened(dataclasses.replace(base, profile=drawing), "known_blend")
    known.unet.input_blocks[0][0].weight.data[:, 4:] = 0.3 * randn(16, 5, 3, 3, seed=1)
    starts = {
        "expert": StartProfile(None, 0.8, None),
        "biased": StartProfile(None, 1.0, BiasedNoiseProfile(0, 700)),
    }
    models = {"base": base, "known": known} | {
        name: dataclasses.replace(base, profile=dataclasses.replace(profile, start=start))
        for name, start in starts.items()
    }
    folder = tmp_path_factory.mktemp("cascade")
    for name, model in models.items():
        checkpoints.save(folder / f"{name}.safetensors", model)
    return {name: folder / f"{name}.safetensors" for name in models}


@pytest.fixture(scope="module")
def loaded(files):
    """Of each, what Load UniVid gives, and the library's."""
    from univid_pack.nodes.host.encoders import load_vae
    from univid_pack.nodes.host.model import load_model
    from univid_pack.univid.checkpoints import load
    from univid_pack.univid.checkpoints.opened import open_checkpoint

    return {
        name: (load_model(path, "fp32"), load_vae(open_checkpoint(path)), load(path, dtype=torch.float32))
        for name, path in files.items()
    }


def frames(number, height=32, width=32):
    """Each of one colour, uint8."""
    colours = np.random.default_rng(0).integers(0, 256, (number, 1, 1, 3))
    return np.broadcast_to(colours, (number, height, width, 3)).astype(np.uint8)


def image(clip):
    return torch.from_numpy(np.ascontiguousarray(clip)).float() / 255


def conditioning(library, prompt=PROMPT):
    with torch.no_grad():
        text, none = library.text_encoder([prompt]), library.text_encoder([""])
    weights = {"univid_weights": torch.tensor([[[1.0, 0.0]]])}
    return [[text, {"univid_has_text": True} | weights]], [[none, dict(weights)]]


def both(loaded, name, stage, work, longest=3):
    """The frames 0..255 of the library's stage, and of the host's node."""
    from univid_pack.nodes.host.cascade import Run
    from univid_pack.univid.cascade import Told, whole

    model, vae, library = loaded[name]
    run = Run(model, vae, *conditioning(library), seed=SEED, longest=longest)
    return whole(stage(library, Told(PROMPT, seed=SEED, longest=longest))).astype(float), 255 * work(
        run
    ).numpy()


def close(a, b):
    assert a.shape == b.shape
    assert np.abs(a - b).max() < 1.5, np.abs(a - b).max()  # a level is what uint8 rounds to


def test_interpolate_gives_the_librarys_frames(loaded):
    from univid_pack.nodes.host.cascade import interpolate
    from univid_pack.univid.cascade import Interpolate

    clip = frames(4)
    library, host = both(
        loaded, "known", lambda model, told: Interpolate(model, clip, told, factor=2),
        lambda run: interpolate(run, image(clip), 2),
    )  # fmt: skip
    close(library, host)
    assert np.array_equal(np.float32(host[::2]), np.float32(255 * image(clip).numpy()))
    assert np.abs(host[1] - host[0]).max() > 5, "the new ones are others"


def test_extend_gives_the_librarys_frames(loaded):
    from univid_pack.nodes.host.cascade import extend
    from univid_pack.univid.cascade import Extend

    clip = frames(3)
    library, host = both(
        loaded, "known", lambda model, told: Extend(model, clip, told, more=5, known=2),
        lambda run: extend(run, image(clip), 5, 2), longest=4,
    )  # fmt: skip
    close(library, host)
    assert np.array_equal(np.float32(host[:3]), np.float32(255 * image(clip).numpy()))


@pytest.mark.parametrize("name, mode", [("expert", None), ("biased", "paper"), ("biased", "consistent")])
@pytest.mark.parametrize("size, tile", [((40, 64), 0), ((32, 64), 32)])
def test_upscale_gives_the_librarys_frames(loaded, name, mode, size, tile):
    from univid_pack.nodes.host.cascade import upscale
    from univid_pack.univid.asked import Sampling
    from univid_pack.univid.cascade import Upscale

    clip, sampling = frames(5, 24, 32), Sampling(tile=tile or 64, biased_noise=mode)

    def stage(model, told):
        return Upscale(model, clip, dataclasses.replace(told, sampling=sampling), size=size)

    library, host = both(loaded, name, stage, lambda run: upscale(run, image(clip), *size, tile or 64, mode))
    if tile:  # the host blends the VAE's tiles in its own way
        assert np.corrcoef(library.ravel(), host.ravel())[0, 1] > 0.9
    else:
        close(library, host)


def test_tiles_of_the_network_are_the_librarys(loaded):
    """Of the network alone, without the VAE's."""
    from univid_pack.nodes.host.model import with_tile
    from univid_pack.univid import samplers
    from univid_pack.univid.conditioning import Conditioning
    from univid_pack.univid.guidance import Joint
    from univid_pack.univid.noise import ClipNoise
    from univid_pack.univid.tiles import blended

    import nodes

    model, _, library = loaded["base"]
    positive, negative = conditioning(library)
    latent = {"samples": torch.zeros(3, 4, 8, 12)}

    def host(model):
        (out,) = nodes.common_ksampler(
            model, 7, STEPS, 3.0, "euler", "sgm_uniform", positive, negative, latent
        )
        return out["samples"]

    denoiser, weights = library.denoiser(), torch.tensor([[1.0, 0.0]])
    cond, uncond = (Conditioning(c[0][0], None, weights) for c in (positive, negative))
    noise = ClipNoise([7])
    sigmas = samplers.sigma_schedule("sgm_uniform", denoiser.schedule, STEPS, 1.0)
    x = samplers.initial_x(noise((1, 4, 3, 8, 12)), sigmas[0], denoiser.schedule, None)

    def denoise(x, sigma):
        return blended(lambda tile: Joint(3.0)(denoiser, tile.of(x), sigma, cond, uncond), *x.shape[-2:], 6)

    x = samplers.get_sampler("euler", denoiser.schedule)(denoise, x, sigmas, noise=noise)
    own, tiled, whole = x[0].transpose(0, 1) / 0.18215, host(with_tile(model, 48)), host(model)
    assert (tiled - own).abs().max() / own.std() < 1e-4
    assert (whole - own).abs().max() / own.std() > 1e-2


def test_known_frames_for_any_sampler(loaded):
    from host_tests.both import run as sampled
    from univid_pack.nodes.known import UniVidKnownFrames
    from univid_pack.univid import Clip, Sampling, Source, generate
    from univid_pack.univid.guidance import Joint
    from univid_pack.univid.video import from_uint8

    model, vae, library = loaded["known"]
    clip = frames(4)
    latent = {"samples": torch.zeros(4, 4, 4, 4)}
    positive, negative = UniVidKnownFrames.execute(
        *conditioning(library), vae, latent, image(clip[[0, 2, 3]]), "0, 2-3"
    ).args
    out, _ = sampled(model, conds=(positive, negative), latent=latent, steps=STEPS)
    expected = generate(
        library, PROMPT, source=Source(from_uint8(clip), known=(0, 2, 3)), seed=7, clip=Clip(4, 32, 32),
        sampling=Sampling(sampler="euler"), guidance=Joint(3.0),
    )  # fmt: skip
    made = vae.decode(out[1:2])[0].permute(2, 0, 1) * 2 - 1
    assert (made - expected[0, :, 1].clamp(-1, 1)).abs().max() < 0.05


def test_known_frames_have_a_model_and_a_place(loaded):
    from host_tests.both import run as sampled
    from univid_pack.nodes.known import UniVidKnownFrames

    for name, frames_of_run, words in (
        ("base", 4, "takes no known frames"),
        ("known", 3, "frame 3 is known, and"),
    ):
        model, vae, library = loaded[name]
        latent = {"samples": torch.zeros(4, 4, 4, 4)}
        conds = UniVidKnownFrames.execute(*conditioning(library), vae, latent, image(frames(2)), "0,-1").args
        with pytest.raises(ValueError, match=words):
            sampled(model, conds=conds, latent={"samples": latent["samples"][:frames_of_run]}, steps=STEPS)


def test_frames_are_told_in_words():
    from univid_pack.nodes.known import places

    assert places("0, 4-6,-1", 12) == [0, 4, 5, 6, 11] and places("", 3) == []
    for text, words in (
        ("a", "got 'a'"),
        ("5", "frames from 0 to 4"),
        ("3-1", "got '3-1'"),
        ("-9", "got '-9'"),
    ):
        with pytest.raises(ValueError, match=words):
            places(text, 5)


def test_wrong_work_is_refused(loaded):
    from univid_pack.nodes.cascade import UniVidExtend, UniVidInterpolate, UniVidUpscale
    from univid_pack.nodes.known import UniVidBiasedNoise, UniVidKnownFrames

    def given(name, clip):
        model, vae, library = loaded[name]
        return model, vae, *conditioning(library), image(clip)

    latent = {"samples": torch.zeros(4, 4, 4, 4)}
    _, vae, library = loaded["known"]
    for call, words in (
        (lambda: UniVidInterpolate.execute(*given("base", frames(3)), 4, 8.0, 0), "got one that makes clips"),
        (lambda: UniVidInterpolate.execute(*given("known", frames(1)), 4, 8.0, 0), "at least 2 frames"),
        (lambda: UniVidInterpolate.execute(*given("known", frames(3)), 1, 8.0, 0), "factor must be"),
        (
            lambda: UniVidInterpolate.execute(*given("known", frames(3, 20)), 2, 8.0, 0),
            "multiple of 8, got 20",
        ),
        (lambda: UniVidExtend.execute(*given("known", frames(3)), 2, 3, 0), "known must be from 1 to 2"),
        (lambda: UniVidExtend.execute(*given("expert", frames(3)), 2, 1, 0), "got one that refines"),
        (
            lambda: UniVidUpscale.execute(*given("expert", frames(3)), 16, 32, 0, 0),
            "at least the frames' 32 x",
        ),
        (lambda: UniVidUpscale.execute(*given("expert", frames(3)), 36, 40, 0, 0), "width must be"),
        (lambda: UniVidUpscale.execute(*given("expert", frames(3)), 64, 64, 20, 0), "tile must be"),
        (
            lambda: UniVidKnownFrames.execute(*conditioning(library), vae, latent, image(frames(2)), "0"),
            "one place for each of 2 known frames",
        ),
        (lambda: UniVidBiasedNoise.execute(loaded["base"][0], latent, "paper"), "a model of biased noise"),
    ):
        with pytest.raises(ValueError, match=words):
            call()

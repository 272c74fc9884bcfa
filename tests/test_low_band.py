"""FreeInit, FrameInit and windows in whole runs: in the library and on the command line."""

import dataclasses

import pytest
import torch

from univid import generate, load, receipt, samplers
from univid.joined import picture_latents
from univid.noise import FRESH, ClipNoise, LowBand
from univid.pipeline import Clip, Sampling, Source, encode_conditions, profile_guider
from univid.steer import FrameWindows, Steering

PROMPT = "a red circle moves left on a black background"
FRAMES, SEED = 6, 5


@pytest.fixture(scope="module")
def model(small_checkpoint):
    """Without zero terminal SNR, so that something of the clip is left at every level."""
    model = load(small_checkpoint, dtype=torch.float32)
    schedule = dataclasses.replace(model.config.schedule, zero_terminal_snr=False)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, schedule=schedule))


@pytest.fixture(scope="module")
def picture():
    return torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1


def make(model, image=None, **sampling):
    sampling = Sampling(sampler="euler", **sampling)
    return generate(model, PROMPT, image, seed=SEED, clip=Clip(frames=FRAMES), sampling=sampling)


@torch.no_grad()
def by_hand(model, band, image=None, windows=None, low_of=None):
    """Run after run, without `generate`; low_of: latents in the place of the run before."""
    cond, uncond = encode_conditions(
        model, [PROMPT], [] if image is None else [image], "", 1.0, 1.0, range(FRAMES)
    )
    denoiser, guider = model.denoiser(torch.float32), profile_guider(model.profile)
    sigmas = samplers.sigma_schedule(model.profile.sigma_schedule, denoiser.schedule, model.profile.steps)
    shape = (1, 4, FRAMES, model.profile.height // 8, model.profile.width // 8)
    first, x = ClipNoise([SEED], windows=windows)(shape), None
    if band.picture:
        x = picture_latents(model, image, (model.profile.height, model.profile.width), 1)
    for run in range(1, band.runs + 1):
        fresh = ClipNoise([SEED + run * FRESH], windows=windows)(shape)
        start = (
            first
            if x is None
            else band.start(x if low_of is None else low_of, first, fresh, denoiser.schedule)
        )
        x = samplers.sample_euler(
            lambda x, sigma: guider(denoiser, x, sigma, cond, uncond),
            samplers.initial_x(start, sigmas[0], denoiser.schedule),
            sigmas,
        )
    return model.vae.decode(x).clamp(-1, 1)


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_free_init_is_run_after_run(model, runs):
    band = LowBand(runs=runs, cutoff=0.6, level=0.5)
    out = make(model, low_band=band)
    assert torch.allclose(out, by_hand(model, band), atol=1e-5)
    assert torch.equal(make(model), make(model, low_band=LowBand(cutoff=0.6)))  # one run is the plain one
    if runs > 1:
        assert (out - make(model)).abs().max() > 1e-2
        other = by_hand(model, band, low_of=torch.zeros(1, 4, 1, 1, 1))
        assert (out - other).abs().max() > 1e-3


def test_frame_init_starts_from_the_picture(model, picture):
    band = LowBand(picture=True, cutoff=0.6, level=0.5)
    out = make(model, picture, low_band=band)
    assert torch.allclose(out, by_hand(model, band, picture), atol=1e-5)
    assert (out - make(model, picture)).abs().max() > 1e-2


def test_the_fresh_noise_is_free_noise_too(model):
    windows, plain = FrameWindows(6, 2), LowBand(runs=2, level=0.5)
    out = make(model, low_band=plain, steering=Steering(windows=windows), free_noise=True)
    assert torch.equal(out, make(model, low_band=plain))  # one window
    shape, windows = (1, 4, FRAMES, 4, 4), FrameWindows(3, 1)
    sampling = Sampling(steering=Steering(windows=windows), free_noise=True)
    assert torch.equal(sampling.noise([9], 0)(shape), ClipNoise([9], windows=windows)(shape))
    assert not torch.equal(
        Sampling(steering=Steering(windows=windows)).noise([9], 0)(shape), sampling.noise([9], 0)(shape)
    )


def test_a_clip_of_a_batch_is_the_clip_alone(model):
    sampling = Sampling(
        steering=Steering(windows=FrameWindows(3, 2)), free_noise=True, low_band=LowBand(runs=2)
    )
    options = {"clip": Clip(frames=FRAMES), "sampling": sampling}
    batch = generate(model, [PROMPT, "a blue square"], seed=SEED, **options)
    alone = generate(model, "a blue square", seed=SEED + 1, **options)
    assert torch.allclose(batch[1:], alone, atol=1e-4)


def test_progress_counts_all_runs(model):
    said = []
    sampling = Sampling(steps=2, low_band=LowBand(runs=3))
    generate(model, PROMPT, sampling=sampling, callback=lambda *step: said.append(step))
    assert [step[1:] for step in said if step[0] == "sample"] == [(n, 6) for n in range(7)]


def test_what_makes_no_sense_is_refused(model, picture):
    video = torch.zeros(1, 3, FRAMES, 32, 32)
    for band in (LowBand(runs=2), LowBand(picture=True)):
        with pytest.raises(ValueError, match="start from noise alone, got a video"):
            generate(model, PROMPT, picture, source=Source(video, 0.5), sampling=Sampling(low_band=band))
    with pytest.raises(ValueError, match="FrameInit needs a picture, got none"):
        make(model, low_band=LowBand(picture=True))


# The command line


OPTIONS = {
    "windows": (["--windows", 4, "--free-noise"], {"windows": 4, "stride": 1, "window_references": "window"}),
    "clip": (["--windows", 3, "--stride", 2, "--window-references", "clip"], {"stride": 2}),
    "free init": (["--free-init", 2], {"free_init": 2, "init_cutoff": 0.25, "init_level": 0.85}),
    "frame init": (["--frame-init", "--init-cutoff", 0.5, "--init-level", 1], {"frame_init": True}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_file_says_how_and_is_made_again(run, call, made, tmp_path, name):
    given, expected = OPTIONS[name]
    words = ["--prompt", PROMPT, "--frames", FRAMES, "--steps", 1, "--image", made / "picture.png"]
    assert run("generate", *words, *given, "--out", "a")[0] == 0
    assert run("generate", *words, "--out", "plain")[0] == 0
    settings, plain = (receipt.read(tmp_path / file).settings for file in ("a", "plain"))
    assert expected.items() <= settings.items()
    assert settings.get("free_noise") == ("--free-noise" in given or None)
    assert not {"windows", "free_noise", "free_init", "frame_init", "init_cutoff"} & plain.keys()
    files = ["--image", made / "picture.png", "--checkpoint", made / "small.safetensors"]
    assert call("repeat", "a", *files, "--out", "b")[0] == 0
    frames = [
        [file.read_bytes() for file in sorted((tmp_path / folder).iterdir())]
        for folder in ("a", "b", "plain")
    ]
    assert frames[0] == frames[1] and frames[0] != frames[2]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--stride", 2], "--stride does nothing without --windows"),
        (["--free-noise"], "--free-noise does nothing without --windows"),
        (["--window-references", "clip"], "--window-references does nothing without --windows"),
        (["--init-cutoff", 0.5], "--init-cutoff does nothing without --free-init or --frame-init"),
        (["--frame-init"], "--frame-init does nothing without --image"),
        (["--windows", 1], "at least 2 frames, got 1"),
        (["--windows", 4, "--stride", 0], "from 1 to their 4 frames, got 0"),
        (["--windows", 9], "at least 9 frames.*got 6"),
        (["--free-init", 0], "at least once, got 0"),
        (["--free-init", 2, "--init-level", 0], "above 0 and at most 1, got 0"),
    ],
)
def test_an_option_that_has_no_part_is_refused(run, tmp_path, given, words):
    status, _, err = run("generate", "--prompt", PROMPT, "--frames", FRAMES, *given, "--out", "a")
    assert status == 2 and len(err.splitlines()) == 1 and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=words):
        raise ValueError(err)

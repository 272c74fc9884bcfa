"""Degradations against PIL, torchvision and kornia, and that a clip's frames share one draw."""

import io
import math

import numpy as np
import pytest
import torch
from kornia.augmentation import RandomGaussianBlur, VideoSequential
from kornia.enhance import jpeg_codec_differentiable
from PIL import Image
from skimage import data
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from training.data.degradations import (
    PRESETS,
    Blur,
    Jpeg,
    Noise,
    Resize,
    apply_steps,
    degrade,
    draw_steps,
)
from training.rng import generator

PIXELS = torch.from_numpy(data.astronaut()[:96, 160:288].copy()).permute(2, 0, 1)  # uint8 [3 96 128]
STILL = (PIXELS.float() / 127.5 - 1)[:, None].expand(-1, 4, -1, -1)  # [3 4 96 128]
BOTH = pytest.mark.parametrize("preset", PRESETS)


def steps_of(preset, position, **options):
    return draw_steps(preset, generator(7, "degradation", position), **options)


def psnr(a, b):
    return -10 * math.log10((a - b).square().mean().item() / 4)


def flicker(clip):
    return clip.diff(dim=1).abs().max().item()


# One step against others' code


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
@pytest.mark.parametrize("size", [(96, 128), (37, 51)])
def test_jpeg_is_pils(quality, size):
    pixels = PIXELS[:, : size[0], : size[1]]
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    coded = apply_steps(pixels[:, None] / 127.5 - 1, [Jpeg(quality)])
    levels = ((coded[:, 0] + 1) * 127.5).round()
    assert (levels - expected).abs().max() <= 1 and (levels != expected).float().mean() < 1e-3
    other = apply_steps(pixels[:, None] / 127.5 - 1, [Jpeg(quality - 10)])
    assert (other - coded).abs().max() > 4 / 127.5


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_jpeg_is_near_kornias(quality):
    """An independent codec, whose rounding is soft: far nearer than JPEG is to the picture."""
    pixels = PIXELS[None] / 255
    theirs = jpeg_codec_differentiable(pixels, torch.tensor([float(quality)]))[0] * 2 - 1
    ours = apply_steps(STILL, [Jpeg(quality)])[:, 0]
    assert psnr(ours, theirs) > psnr(ours, STILL[:, 0]) + 5


def torchvisions(kernel, sigma):
    """Its blur knows no replicated border, so it gets one that is cut off again."""
    pad = kernel // 2
    padded = F.pad(STILL.permute(1, 0, 2, 3), [pad] * 4, mode="replicate")
    return gaussian_blur(padded, [kernel, kernel], list(sigma))[..., pad:-pad, pad:-pad].permute(1, 0, 2, 3)


@pytest.mark.parametrize(
    ("kernel", "sigmas"), [(7, (0.2, 0.2)), (9, (1.3, 1.3)), (21, (3.0, 3.0)), (15, (0.5, 2.5))]
)
def test_blur_is_torchvisions(kernel, sigmas):
    blurred = apply_steps(STILL, [Blur(kernel, sigmas, 0.0)])
    torch.testing.assert_close(blurred, torchvisions(kernel, sigmas), rtol=0, atol=2e-6)
    if sigmas[0] != sigmas[1]:
        assert (blurred - torchvisions(kernel, sigmas[::-1])).abs().max() > 0.1


def test_a_turned_blur_is_the_turned_one():
    """A hair's breadth of angle takes the other path; a right angle swaps the axes."""
    for angle, sigmas in ((1e-9, (0.5, 2.5)), (math.pi / 2, (2.5, 0.5))):
        blurred = apply_steps(STILL, [Blur(15, sigmas, angle)])
        torch.testing.assert_close(blurred, torchvisions(15, (0.5, 2.5)), rtol=0, atol=1e-5)
    slanted = apply_steps(STILL, [Blur(15, (0.5, 2.5), math.pi / 4)])
    mirrored = apply_steps(STILL.flip(-1), [Blur(15, (0.5, 2.5), -math.pi / 4)]).flip(-1)
    torch.testing.assert_close(slanted, mirrored, rtol=0, atol=1e-5)
    assert (slanted - apply_steps(STILL, [Blur(15, (0.5, 2.5), -math.pi / 4)])).abs().max() > 0.05


def test_blur_is_kornias_of_a_video():
    same = VideoSequential(
        RandomGaussianBlur((9, 9), (1.3, 1.3), border_type="replicate", p=1.0),
        data_format="BCTHW",
        same_on_frame=True,
    )
    expected = same((STILL[None] + 1) / 2)[0] * 2 - 1
    torch.testing.assert_close(apply_steps(STILL, [Blur(9, (1.3, 1.3), 0.0)]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_is_pils(mode):
    small = apply_steps(STILL, [Resize(0.4, mode)])
    for channel in range(3):
        kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[mode]
        expected = np.array(Image.fromarray(STILL[channel, 0].numpy()).resize((51, 38), kind))
        torch.testing.assert_close(
            small[channel, 0], torch.from_numpy(expected).clamp(-1, 1), rtol=0, atol=1e-5
        )


def test_resizing_by_area_is_the_mean():
    small = apply_steps(STILL, [Resize(0.25, "area")])
    expected = STILL.unflatten(-1, (32, 4)).unflatten(-3, (24, 4)).mean((-1, -3))
    torch.testing.assert_close(small, expected, rtol=0, atol=1e-5)


def test_noise_has_its_strength_and_no_frame_that_of_another():
    noisy = apply_steps(torch.zeros(3, 8, 64, 64), [Noise(12.0, 3)])
    torch.testing.assert_close(noisy.std() * 127.5, torch.tensor(12.0), rtol=0.02, atol=0)
    frames = noisy.flatten(2).permute(1, 0, 2).flatten(1)
    assert (torch.corrcoef(frames) - torch.eye(8)).abs().max() < 0.05
    assert torch.equal(apply_steps(torch.zeros(3, 5, 64, 64), [Noise(12.0, 3)]), noisy[:, :5])


# Drawn once a clip


@BOTH
def test_a_still_clip_stays_still(preset):
    for position in range(12):
        assert flicker(apply_steps(STILL, steps_of(preset, position), (96, 128))) == 0


@BOTH
def test_drawn_for_each_frame_it_would_flicker(preset):
    frames = [apply_steps(STILL[:, :1], steps_of(preset, p), (96, 128)) for p in range(4)]
    assert flicker(torch.cat(frames, 1)) > 0.1


@BOTH
def test_a_frame_does_not_depend_on_the_clip_s_length(preset):
    clip = STILL * torch.linspace(0.2, 1, 4)[:, None, None]
    for position in range(4):
        steps = steps_of(preset, position, noise=True)
        whole, part = apply_steps(clip, steps), apply_steps(clip[:, :2], steps)
        torch.testing.assert_close(whole[:, :2], part, rtol=0, atol=1e-5)


# Draws


@BOTH
def test_draws_are_a_function_of_seed_and_position(preset):
    torch.manual_seed(0)
    first = [steps_of(preset, position) for position in range(20)]
    torch.manual_seed(1)
    assert [steps_of(preset, position) for position in range(20)] == first
    assert len(set(first)) == 20
    assert draw_steps(preset, generator(8, "degradation", 0)) != first[0]
    state = torch.random.get_rng_state()
    clips = torch.stack([STILL, STILL])
    video = degrade(clips, preset, 7, [4, 5], size=(96, 128))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(video[1], degrade(clips[:1], preset, 7, [5], size=(96, 128))[0])
    assert not torch.equal(video[0], video[1])


@BOTH
def test_all_orders_occur_and_all_ranges_hold(preset):
    drawn = [steps_of(preset, position, noise=True) for position in range(300)]
    rounds = len(PRESETS[preset])
    for i, ranges in enumerate(PRESETS[preset]):
        parts = [steps[4 * i : 4 * i + 4] for steps in drawn]
        orders = {tuple(type(step) for step in part) for part in parts}
        assert len(orders) == 24 and all(len(set(order)) == 4 for order in orders)
        of = {kind: [s for part in parts for s in part if type(s) is kind] for kind in (Blur, Resize, Jpeg)}
        assert {blur.kernel for blur in of[Blur]} == set(range(7, 22, 2))
        sigmas = [sigma for blur in of[Blur] for sigma in blur.sigmas]
        low, high = ranges.blur
        assert low <= min(sigmas) < low + 0.1 and high - 0.1 < max(sigmas) <= high
        isotropic = sum(blur.angle == 0 and blur.sigmas[0] == blur.sigmas[1] for blur in of[Blur])
        assert 100 < isotropic < 200
        assert {resize.mode for resize in of[Resize]} == {"area", "bilinear", "bicubic"}
        qualities = [jpeg.quality for jpeg in of[Jpeg]]
        assert (min(qualities), max(qualities)) == (30, 95)
        scales = [resize.scale for resize in of[Resize]]
        assert 0.25 <= min(scales) < 0.27 and 0.98 < max(scales) <= 1
    for position, steps in enumerate(drawn):
        assert len(steps) == 4 * rounds
        without = tuple(step for step in steps if not isinstance(step, Noise))
        assert steps_of(preset, position) == without


@BOTH
@pytest.mark.parametrize("noise", [False, True])
def test_results_stay_in_range(preset, noise):
    extremes = torch.stack([STILL.sign(), STILL.flip(-1).sign()])
    for position in range(8):
        small = degrade(extremes[:1], preset, 7, [position], noise=noise)
        assert small.isfinite().all() and small.abs().max() <= 1
        least = 4 ** len(PRESETS[preset])
        assert 96 // least <= small.shape[-2] <= 96 and 128 // least <= small.shape[-1] <= 128
        large = degrade(extremes[:1], preset, 7, [position], noise=noise, size=(96, 128))
        assert large.shape == (1, 3, 4, 96, 128) and large.abs().max() <= 1
    tiny = torch.zeros(1, 3, 1, 2, 3)
    assert degrade(tiny, preset, 7, [1], noise=noise, size=(2, 3)).shape == tiny.shape


def test_quality_falls_with_what_is_done():
    """PSNR to the clip in dB: it rises with JPEG's quality, falls with blur, and strong is below light."""
    by_quality = [psnr(apply_steps(STILL, [Jpeg(q)]), STILL) for q in (30, 50, 75, 95)]
    assert by_quality == sorted(by_quality) and by_quality[-1] - by_quality[0] > 4
    by_sigma = [psnr(apply_steps(STILL, [Blur(21, (s, s), 0.0)]), STILL) for s in (0.5, 1.0, 2.0, 3.0)]
    assert by_sigma == sorted(by_sigma, reverse=True)
    positions = range(40)

    def mean(preset, **options):
        clips = (degrade(STILL[None, :, :1], preset, 7, [p], size=(96, 128), **options)[0] for p in positions)
        return sum(psnr(clip, STILL[:, :1]) for clip in clips) / len(positions)

    light, strong = mean("light"), mean("strong")
    assert 20 < strong < light - 1 and light < 30
    assert mean("light", noise=True) < light - 0.5 and mean("strong", noise=True) < strong - 0.5


# Bad input


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (torch.zeros(3, 2, 8), "take clips [3 t h w] of a float type, got (3, 2, 8) of torch.float32"),
        (torch.zeros(4, 2, 8, 8), "got (4, 2, 8, 8)"),
        (torch.zeros(3, 0, 8, 8), "got (3, 0, 8, 8)"),
        (torch.zeros(3, 2, 8, 8, dtype=torch.uint8), "of torch.uint8; give RGB frames"),
        (torch.full((3, 2, 8, 8), 255.0), "take clips in -1..1, got 255..255; scale or clamp them"),
        (torch.full((3, 2, 8, 8), math.nan), "take clips in -1..1, got nan..nan"),
    ],
)
def test_clips_that_are_none(clip, words):
    with pytest.raises(ValueError) as caught:
        degrade(clip[None], "light", 7, [0])
    assert words in str(caught.value) and str(caught.value).endswith(".")


def test_other_bad_input():
    clips = torch.zeros(2, 3, 1, 96, 128)
    for message, arguments, options in (
        ("must be one of light, strong, got 'heavy'", ("heavy", 7, [0, 1]), {}),
        ("a position for each of 2 clips, got 1", ("light", 7, [0]), {}),
        ("came out in 2 sizes; give one to enlarge them to", ("light", 7, [0, 1]), {}),
        (r"at least 1 x 1 pixels, got \(0, 32\)", ("light", 7, [0, 1]), {"size": (0, 32)}),
    ):
        with pytest.raises(ValueError, match=message):
            degrade(clips, *arguments, **options)

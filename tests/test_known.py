"""Known frames: what the network is shown of them, and clips that keep them."""

import dataclasses

import pytest
import torch
from experts import knowing

from univid import Clip, Sampling, Source, checkpoints, generate
from univid.conditioning import Conditioning
from univid.known import known_channels, noisy
from univid.widened import widened

PROMPT = "a red circle"


def latents(clips=2, frames=7, seed=0):
    return torch.randn(clips, 4, frames, 3, 5, generator=torch.Generator().manual_seed(seed))


def mask(*known, frames=7):
    return torch.tensor([[k in frames_known for k in range(frames)] for frames_known in known])


def test_zeros_stand_for_what_is_not_known():
    x, known = latents(), mask((0, 4), (6,))
    channels = known_channels("known", x, known)
    assert channels.shape == (2, 5, 7, 3, 5)
    for clip, frames in enumerate(((0, 4), (6,))):
        for k in range(7):
            expected = x[clip, :, k] if k in frames else torch.zeros(4, 3, 5)
            assert torch.equal(channels[clip, :4, k], expected)
            assert (channels[clip, 4, k] == (k in frames)).all()


def test_a_blend_lies_between_its_known_neighbours():
    x = latents()
    channels = known_channels("known_blend", x, mask((1, 5), (3,)))[:, :4]
    for k, (a, b, share) in {
        0: (1, 1, 0),
        1: (1, 1, 0),
        2: (1, 5, 0.25),
        4: (1, 5, 0.75),
        6: (5, 5, 0),
    }.items():
        torch.testing.assert_close(channels[0, :, k], (1 - share) * x[0, :, a] + share * x[0, :, b])
    assert torch.equal(channels[1], x[1, :, 3:4].expand(4, 7, 3, 5))


@pytest.mark.parametrize("kind", ["known", "known_blend"])
def test_unknown_frames_say_nothing(kind):
    x, known = latents(), mask((0, 4), ())
    other = torch.where(known[:, None, :, None, None], x, latents(seed=1))
    assert torch.equal(known_channels(kind, x, known), known_channels(kind, other, known))
    assert (known_channels(kind, x, known)[1] == 0).all()  # nothing is known of it
    all_known = torch.ones(2, 7, dtype=torch.bool)
    assert torch.equal(known_channels(kind, x, all_known)[:, :4], x)


def test_noise_on_known_frames_is_as_strong_as_said_and_not_that_of_the_start():
    x, noise = latents(8, 24), latents(8, 24, seed=2)
    assert noisy(x, 0.0, noise) is x
    added = (noisy(x, 0.3, noise) - x) / 0.3
    assert abs(added.std() - 1) < 0.03 and added.dtype == x.dtype
    assert abs((added * noise).mean()) < 0.03


@pytest.fixture(scope="module")
def base(small_checkpoint):
    return checkpoints.load(small_checkpoint, dtype=torch.float32)


@pytest.fixture(scope="module")
def model(base):
    return knowing(base, noise=0.0)


@pytest.mark.parametrize("concat", ["first", "ends", "known", "known_blend"])
def test_a_widened_network_is_the_old_one_at_first(base, concat):
    noise = 0.1 if concat == "known" else None
    model = widened(base, concat, noise)
    extra = 5 if "known" in concat else 4
    assert model.config.unet.in_channels == 4 + extra and model.profile.inputs.concat == concat
    x, t = torch.randn(2, 4, 3, 4, 4), torch.tensor([10, 900])
    cond = Conditioning(torch.randn(2, 77, 32), None, torch.tensor([[1.0, 0.0]] * 2))
    told = {"noise": torch.tensor([0.0, 100.0])} if noise is not None else {}
    joined = dataclasses.replace(cond, concat=torch.randn(2, extra, 3, 4, 4), numbers=told)
    with torch.no_grad():
        torch.testing.assert_close(model.unet(x, t, joined), base.unet(x, t, cond), atol=1e-6, rtol=1e-5)
    assert model.config.unet == dataclasses.replace(
        base.config.unet, in_channels=4 + extra, numbers=tuple(told)
    )
    assert widened(base, concat, noise).unet.state_dict().keys() == model.unet.state_dict().keys()


def test_a_widened_model_is_saved_and_loaded(base, tmp_path):
    model = widened(base, "known_blend", 0.05)
    checkpoints.save(tmp_path / "known.safetensors", model)
    loaded = checkpoints.load(tmp_path / "known.safetensors", dtype=torch.float32)
    assert loaded.config == model.config and loaded.profile == model.profile
    assert loaded.profile.inputs.number("noise").value == 50
    with pytest.raises(ValueError, match="takes nothing but latents, got one of 9 channels"):
        widened(loaded, "first")


def make(model, **source):
    return generate(
        model, PROMPT, guidance=None, seed=4, clip=Clip(), source=Source(**source), sampling=Sampling(steps=2)
    )


def clip(frames=5, seed=5):
    return torch.rand(1, 3, frames, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_known_frames_stay_bit_for_bit_and_steer_the_others(model):
    video = clip()
    result = make(model, video=video, known=(0, 2))
    assert result.shape == video.shape and torch.equal(result[:, :, [0, 2]], video[:, :, [0, 2]])
    unknown = [1, 3, 4]
    other = video.clone()
    other[:, :, unknown] = clip(seed=6)[:, :, unknown]
    assert torch.equal(make(model, video=other, known=(0, 2))[:, :, unknown], result[:, :, unknown])
    other[:, :, 2] = clip(seed=6)[:, :, 2]
    moved = make(model, video=other, known=(0, 2))
    assert not torch.equal(moved[:, :, unknown], result[:, :, unknown])
    fewer = make(model, video=video, known=(0,))
    assert (fewer[:, :, unknown] - result[:, :, unknown]).abs().max() > 1e-4


def test_with_noise_they_are_made_anew(model):
    video = clip()
    plain, noised = (make(model, video=video, known=(0, 2), known_noise=level) for level in (None, 0.5))
    assert not torch.equal(noised[:, :, [0, 2]], video[:, :, [0, 2]])
    assert (noised - plain).abs()[:, :, [1, 3, 4]].max() > 1e-4
    assert torch.equal(make(model, video=video, known=(0, 2), known_noise=0.0), plain)


def test_pictures_are_the_first_and_the_last_frame(model, monkeypatch):
    """As a clip of which these two are known; without any picture nothing is."""
    seen = []
    forward = type(model.unet).forward

    def spy(unet, x, timesteps, cond, **options):
        seen.append(cond)
        return forward(unet, x, timesteps, cond, **options)

    monkeypatch.setattr(type(model.unet), "forward", spy)
    first, last = clip(1)[:, :, 0], clip(1, seed=7)[:, :, 0]
    how = {"seed": 4, "clip": Clip(frames=5), "sampling": Sampling(steps=1)}

    def masks(**given):
        seen.clear()
        generate(model, PROMPT, given.pop("image", None), source=Source(**given), **how)
        return seen[0].concat

    both = masks(image=first, last_image=last)
    video = torch.cat([first[:, :, None], clip()[:, :, 1:4], last[:, :, None]], 2)
    torch.testing.assert_close(both[:1], masks(video=video, known=(0, 4))[:1])
    assert masks(image=first)[0, 4, :, 0, 0].tolist() == [1, 0, 0, 0, 0]
    assert masks(last_image=last)[0, 4, :, 0, 0].tolist() == [0, 0, 0, 0, 1]
    assert (masks() == 0).all()


@pytest.mark.parametrize(
    "source, words",
    [
        ({"known": (0,)}, "expected known frames of a video"),
        ({"video": clip(), "known": (0,), "denoise": 0.5}, "with denoise 1"),
        ({"video": clip(), "known": (0,), "last_image": clip(1)[:, :, 0]}, "without a picture beside it"),
        ({"video": clip(), "known": (2, 1)}, "each once and ascending, got \\(2, 1\\)"),
        ({"video": clip(), "known": (0, 5)}, "frames from 0 to 4"),
        ({"video": clip(), "known": (-1, 0)}, "frames from 0 to 4"),
        ({"video": clip(), "known": (0, 1, 2, 3, 4)}, "all 5 frames are known"),
        ({"video": clip(), "known": (0,), "known_noise": 2.0}, "from 0 to 1, got 2"),
    ],
)
def test_what_cannot_be_known_is_told(model, source, words):
    with pytest.raises(ValueError, match=words):
        make(model, **source)


def test_a_model_without_known_frames_says_so(base):
    with pytest.raises(ValueError, match="takes no known frames"):
        make(base, video=clip(), known=(0,))
    with pytest.raises(ValueError, match="trained without noise on known frames"):
        make(base, video=clip(), known_noise=0.1)

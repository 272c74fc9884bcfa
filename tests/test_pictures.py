"""Several pictures: the sum of what each gives by itself, under its weight, in its frames and its region."""

import math

import pytest
import torch
from reference import SMALL, attend, difference, randn, randomize

from univid import Masks, Picture, Sampling, generate, load
from univid.asked import over_steps
from univid.conditioning import Conditioning, cat, streams_on, with_null_image
from univid.curves import parse
from univid.diffusion import Denoiser, NoiseSchedule
from univid.guidance import Joint, Nested, Separate
from univid.layers import DualCrossAttention
from univid.presets import SD21_SCHEDULE
from univid.steer import Steering
from univid.steer.run import Run
from univid.unet import UNet

CLIPS, FRAMES, HEIGHT, WIDTH, TOKENS, PICTURES = 2, 3, 5, 6, 4, 3
TEXT, IMAGES = randn(CLIPS, 7, 48, seed=1), randn(CLIPS, PICTURES * TOKENS, 40, seed=2)
X, TIMESTEPS = randn(CLIPS, 4, FRAMES, HEIGHT, WIDTH, seed=3), torch.tensor([600, 300])
MAPS = torch.rand(CLIPS, FRAMES, 1 + PICTURES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4))
SWAPPED = MAPS[:, :, [0, 2, 1, 3]]
PROMPT = "a red circle moves left on a black background"


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def unet():
    return randomize(UNet(SMALL))


def conditions(maps=MAPS, image=IMAGES, weights=(0.8, 0.6)):
    return Conditioning(TEXT, image, torch.tensor(weights).expand(CLIPS, -1), maps=maps)


def test_every_picture_is_attended_by_itself(unet):
    """Every cross-attention of a forward at full size as a loop over clips, frames, tokens and pictures."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda layer, given, out: seen.append((layer, *given, out)))
        for layer in unet.modules()
        if isinstance(layer, DualCrossAttention)
    ]
    unet(X, TIMESTEPS, conditions())
    for hook in hooks:
        hook.remove()
    finest = [(layer, x, out) for layer, x, _, factor, out in seen if factor == 1]
    assert finest
    image = torch.cat([unet.image_projection(part) for part in IMAGES.split(TOKENS, 1)], 1)
    for layer, x, out in finest:
        assert difference(out, one_by_one(layer, x, image, MAPS, TOKENS)) < 1e-5
        assert difference(out, one_by_one(layer, x, image, SWAPPED, TOKENS)) > 1e-2
        at_once = one_by_one(layer, x, image, MAPS, PICTURES * TOKENS)  # one softmax over all of them
        assert difference(out, at_once) > 1e-2


def one_by_one(layer, x, image, maps, tokens):
    """x `[(b t) s d]`: out(lambda_t A(q, K_t, V_t) + sum of lambda_v map_i A(q, K_v c_i, V_v c_i))."""
    out = torch.empty_like(x)
    for row in range(len(x)):
        clip, frame = divmod(row, FRAMES)
        for token in range(HEIGHT * WIDTH):
            q, place = layer.to_q(x[row, token : token + 1]), (token // WIDTH, token % WIDTH)
            text = TEXT[clip]
            total = (
                0.8 * maps[clip, frame, 0][place] * attend(q, layer.to_k(text), layer.to_v(text), layer.heads)
            )
            for number, part in enumerate(image[clip].split(tokens)):
                k, v = layer.to_k_image(part), layer.to_v_image(part)
                total = total + 0.6 * maps[clip, frame, 1 + number][place] * attend(q, k, v, layer.heads)
            out[row, token] = layer.to_out[0](total)[0]
    return out


def test_one_picture_and_others_of_weight_0_are_that_one(unet):
    first = IMAGES[:, :TOKENS]
    plain = unet(X, TIMESTEPS, conditions(None, first))
    alone = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, -1, 1, 1).expand(CLIPS, -1, -1, -1)
    assert difference(unet(X, TIMESTEPS, conditions(alone)), plain) < 1e-5
    halves = torch.tensor([1.0, 0.5, 0.5]).view(1, -1, 1, 1).expand(CLIPS, -1, -1, -1)
    twice = conditions(halves, torch.cat([first, first], 1))
    assert difference(unet(X, TIMESTEPS, twice), plain) < 1e-4
    other = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, -1, 1, 1).expand(CLIPS, -1, -1, -1)
    assert difference(unet(X, TIMESTEPS, conditions(other)), plain) > 1e-2


def test_guidance_and_what_has_no_picture_go_along(unet):
    schedule = NoiseSchedule(SD21_SCHEDULE)
    denoiser, sigma = Denoiser(unet, schedule, "v"), schedule.sigmas[TIMESTEPS]
    empty = randn(CLIPS, 7, 48, seed=9)
    uncond = Conditioning(empty, None, torch.tensor([[1.0, 0.0]] * CLIPS))
    joined = cat([conditions(), uncond])
    assert joined.maps[CLIPS:].eq(1).all() and joined.pictures == PICTURES
    e0, e_ti = denoiser(X, sigma, uncond), denoiser(X, sigma, conditions())
    e_t = denoiser(X, sigma, conditions(weights=(0.8, 0.0)))
    shown = torch.cat([(MAPS[:, :, :1] > 0).float(), MAPS[:, :, 1:]], 2)
    e_i = denoiser(X, sigma, Conditioning(empty, IMAGES, torch.tensor([[1.0, 0.6]] * CLIPS), maps=shown))
    for guider, expected in (
        (Joint(3.0), e0 + 3 * (e_ti - e0)),
        (Separate(3.0, 2.0), e0 + 3 * (e_t - e0) + 2 * (e_i - e0)),
        (Nested(3.0, 2.0), e0 + 2 * (e_i - e0) + 3 * (e_ti - e_i)),
    ):
        assert difference(guider(denoiser, X, sigma, conditions(), uncond), expected) < 1e-4
        assert difference(guider(denoiser, X, sigma, conditions(SWAPPED), uncond), expected) > 1e-3
    assert streams_on(torch.tensor([[0.0, 0.0, 0.1]])) == (False, True)


def test_a_null_image_is_seen_once():
    weights = torch.tensor([[1.0, 0.0], [1.0, 0.5]])
    null = randn(1, TOKENS, 40, seed=5)
    cond = with_null_image(Conditioning(TEXT, IMAGES, weights, maps=MAPS), null)
    assert torch.equal(cond.image[0], null[0].repeat(PICTURES, 1)) and torch.equal(cond.image[1], IMAGES[1])
    assert cond.maps[0, :, 1].eq(1).all() and not cond.maps[0, :, 2:].any()
    assert torch.equal(cond.maps[1], MAPS[1]) and torch.equal(cond.maps[:, :, 0], MAPS[:, :, 0])


# In generate


@pytest.fixture(scope="module")
def model(small_checkpoint):
    return load(small_checkpoint, dtype=torch.float32)


def made(model, image, **more):
    return generate(model, PROMPT, image, sampling=Sampling(steps=1), **more)


def picture(seed):
    return torch.rand(1, 3, 9, 12, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_one_of_a_list_is_a_picture_bit_for_bit(model):
    a, b = picture(1), picture(2)
    plain = made(model, a)
    assert torch.equal(made(model, [Picture(a)]), plain)
    assert torch.equal(made(model, [Picture(a, 0.5)]), made(model, a, image_weight=0.5))
    assert torch.equal(made(model, [Picture(a, 0.0)]), made(model, a, image_weight=0.0))
    assert (made(model, [Picture(a), Picture(b, 0.0)]) - plain).abs().max() < 1e-3
    assert (made(model, [Picture(a, 0.5), Picture(a, 0.5)]) - plain).abs().max() < 1e-3
    both = made(model, [Picture(a), Picture(b)])
    assert (both - plain).abs().max() > 0.02
    assert (made(model, [Picture(b), Picture(a)]) - both).abs().max() < 1e-3  # a sum has no order


def test_a_picture_has_frames_and_a_region(model):
    a, b = picture(1), picture(2)
    half = torch.zeros(1, 8, 8)
    half[..., 4:] = 1
    in_part = made(model, [Picture(a, mask=half)])
    assert torch.equal(in_part, made(model, a, masks=Masks(image=half)))
    later = torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1)
    assert torch.equal(made(model, [Picture(a, frames=(1, 2))]), made(model, a, masks=Masks(image=later)))
    clip = made(model, [Picture(a, frames=(0, 0)), Picture(b, 0.5, (1, 2), half)])
    shares = [picture.share(3) for picture in (Picture(a, frames=(0, 0)), Picture(b, 0.5, (1, 2), half))]
    assert shares[0].flatten().tolist() == [1, 0, 0] and not shares[1][0].any()
    assert torch.equal(shares[1][1], 0.5 * half[0])
    assert (clip - made(model, [Picture(a), Picture(b)])).abs().max() > 0.02


def test_a_picture_has_steps(model):
    """The first of two steps of Euler is at all noise, so progress 0; the second one lies further on."""
    a, b = picture(1), picture(2)

    def steps(*pictures, n=2):
        return generate(model, PROMPT, list(pictures), sampling=Sampling(steps=n, sampler="euler"))

    first, last = parse("1..0 step"), parse("0..1 step")
    assert torch.equal(steps(Picture(a, over_steps=parse("0.5"))), steps(Picture(a, 0.5)))
    assert torch.equal(steps(Picture(a, over_steps=parse("0"))), steps(Picture(a, 0.0)))
    assert torch.equal(steps(Picture(a, over_steps=first), n=1), steps(Picture(a), n=1))
    only = steps(Picture(a), Picture(b, over_steps=last), n=1)
    assert (only - steps(Picture(a), n=1)).abs().max() < 1e-3
    assert (only - steps(Picture(a), Picture(b), n=1)).abs().max() > 0.02
    shares = over_steps([Picture(a), Picture(b, over_steps=parse("1..0"))])
    assert shares.shape == (1, 64, 2) and shares[..., 0].eq(1).all()
    assert shares[0, [0, -1], 1].tolist() == [1, 0] and over_steps([Picture(a)]) is None


def test_maps_of_pictures_follow_the_noise_level(model):
    denoiser = model.denoiser(torch.float32)
    schedule = denoiser.schedule
    curves = [parse(text) for text in ("", "1..0", "1")]
    falling = over_steps([Picture(picture(1), over_steps=curve) for curve in curves])
    run, cond = Run(denoiser, Steering(), falling), conditions()
    for timestep in (schedule.last, schedule.last // 4, 0):
        sigma = schedule.sigma(torch.tensor([timestep]))[0]
        found = run.shown(cond, sigma).maps / cond.maps
        share = timestep / schedule.last
        expected = torch.tensor([1.0, 1.0, share, 1.0]).view(4, 1, 1).expand_as(found)
        assert torch.allclose(found[cond.maps > 0], expected[cond.maps > 0], atol=1e-5)
    assert Run(denoiser, Steering()).shown(cond, sigma) is cond


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"weight": math.nan}, "weight must be a finite number of at least 0, got nan"),
        ({"weight": -1.0}, "got -1"),
        ({"frames": (2, 1)}, "the first and the last, from 0 on, got 2 and 1"),
        ({"frames": (-1, 1)}, "got -1 and 1"),
        ({"frames": (0, 3)}, "for frame 3, and the clip ends with 2"),
        ({"mask": torch.full((1, 2, 2), math.nan)}, "image_mask must have finite values"),
        ({"mask": torch.ones(2, 2, 2)}, "each of 3 frames, got 2"),
        ({"image": torch.ones(1, 1, 4, 4)}, "image must be .1 3 h w."),
    ],
)
def test_what_cannot_be_is_refused(model, fields, words):
    with pytest.raises(ValueError, match=words):
        made(model, [Picture(picture(1)), Picture(**{"image": picture(2)} | fields)])

"""Weights over the plane: maps against loops over cells and tokens, at random weights."""

import dataclasses
import math

import pytest
import torch
from reference import SMALL, attend, difference, randn, randomize

from univid.conditioning import Conditioning, cat, with_null_image
from univid.diffusion import Denoiser, NoiseSchedule
from univid.guidance import Joint, Nested, Separate
from univid.hooks import Hook
from univid.layers import DualCrossAttention
from univid.presets import SD21_SCHEDULE
from univid.steer import Masks
from univid.steer.plane import averaged
from univid.tiles import tiles
from univid.unet import UNet

CLIPS, FRAMES, HEIGHT, WIDTH = 2, 3, 9, 14  # levels of 9 x 14, 5 x 7, 3 x 4 and 2 x 2 cells
TEXT, IMAGE = randn(CLIPS, 7, 48, seed=1), randn(CLIPS, 6, 40, seed=2)
X, TIMESTEPS = randn(CLIPS, 4, FRAMES, HEIGHT, WIDTH, seed=3), torch.tensor([600, 300])
MAPS = torch.rand(CLIPS, FRAMES, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4))
LEVELS = {2: (0.5, 3.0)}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def unet():
    return randomize(UNet(SMALL))


def conditions(weights=(0.8, 0.6), **fields):
    weights = torch.tensor(weights).expand(CLIPS, -1)
    return Conditioning(TEXT, IMAGE, weights, LEVELS, **fields)


def by_area(maps, height, width):
    """Every pixel split into equal parts, until each cell has a whole number of them."""
    split = maps.double().repeat_interleave(height, -2).repeat_interleave(width, -1)
    rows, columns = maps.shape[-2:]
    return split.unflatten(-1, (width, columns)).unflatten(-3, (height, rows)).mean((-3, -1)).float()


# Averaging


@pytest.mark.parametrize(("before", "after"), [(45, 23), (23, 12), (64, 8), (5, 4), (4, 9), (1, 6), (7, 1)])
def test_a_cell_is_the_mean_of_its_area(before, after):
    maps = torch.rand(2, 3, before, 6, generator=torch.Generator().manual_seed(0))
    out = averaged(maps, after, 4)
    torch.testing.assert_close(out, by_area(maps, after, 4))
    torch.testing.assert_close(averaged(maps.mT, 4, after), by_area(maps.mT, 4, after))
    if min(before, after) > 1:
        assert (out - by_area(maps.flip(-2), after, 4)).abs().max() > 1e-2


@pytest.mark.parametrize("value", [0.7, 1 / 3, 1.0, 0.0])
def test_what_is_the_same_everywhere_stays_so_to_the_last_bit(value):
    maps = torch.full((2, 45, 77), value)
    for size in ((23, 39), (12, 20), (6, 10), (50, 80), (45, 77)):
        assert averaged(maps, *size).eq(maps[0, 0, 0]).all()
    half = torch.cat([torch.zeros(1, 45, 40), torch.rand(1, 45, 37)], -1)
    assert not averaged(half, 23, 39)[..., : 39 * 40 // 77].any()


def test_a_map_of_one_cell_is_a_number(unet):
    number = unet(X, TIMESTEPS, conditions((0.8 * 0.5, 0.6 * 0.25)))
    assert torch.equal(
        unet(X, TIMESTEPS, conditions(maps=torch.tensor([0.5, 0.25]).view(1, 2, 1, 1).expand(2, -1, -1, -1))),
        number,
    )


# In the network


def test_maps_weigh_each_token_on_its_own(unet):
    """Every cross-attention of a forward, level by level, as a loop over clips, frames and tokens."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda layer, given, out: seen.append((layer, *given, out)))
        for layer in unet.modules()
        if isinstance(layer, DualCrossAttention)
    ]
    unet(X, TIMESTEPS, conditions(maps=MAPS))
    for hook in hooks:
        hook.remove()
    assert {factor for *_, factor, _ in seen} == {1, 2, 4, 8}
    text, image = TEXT, unet.image_projection(IMAGE)
    for layer, x, _, factor, out in seen:
        assert difference(out, token_by_token(layer, x, text, image, MAPS, factor)) < 1e-5
        swapped = token_by_token(layer, x, text, image, MAPS.flip(2), factor)
        assert difference(out, swapped) > 1e-2
        still = token_by_token(layer, x, text, image, MAPS[:, :1].expand_as(MAPS), factor)
        assert difference(out, still) > 1e-2


def token_by_token(layer, x, text, image, maps, factor):
    """x `[(b t) s d]`: out(lambda_t A(q, K_t, V_t) + lambda_v A(q, K_v, V_v)), a token at a time."""
    height, width = math.ceil(HEIGHT / factor), math.ceil(WIDTH / factor)
    maps = by_area(maps, height, width)  # [b t 2 h w]
    levels, out = LEVELS.get(factor, (1, 1)), torch.empty_like(x)
    for clip in range(CLIPS):
        keys = layer.to_k(text[clip]), layer.to_k_image(image[clip])
        values = layer.to_v(text[clip]), layer.to_v_image(image[clip])
        for frame in range(FRAMES):
            for token in range(height * width):
                q = layer.to_q(x[clip * FRAMES + frame, token : token + 1])
                total = 0
                for stream, number in enumerate((0.8, 0.6)):
                    local = maps[clip, frame, stream, token // width, token % width]
                    weight = number * levels[stream] * local
                    total = total + weight * attend(q, keys[stream], values[stream], layer.heads)
                out[clip * FRAMES + frame, token] = layer.to_out[0](total)[0]
    return out


def test_a_constant_map_is_the_number_bit_for_bit(unet):
    constant = torch.tensor([0.8, 0.6]).view(1, 2, 1, 1).expand(CLIPS, 2, HEIGHT, WIDTH)
    for size in ((HEIGHT, WIDTH), (45, 77), (1, 30)):
        maps = constant[..., :1, :1].expand(CLIPS, 2, *size)
        assert torch.equal(
            unet(X, TIMESTEPS, conditions((1.0, 1.0), maps=maps)), unet(X, TIMESTEPS, conditions())
        )
    ones = torch.ones(CLIPS, FRAMES, 2, HEIGHT, WIDTH)
    assert torch.equal(unet(X, TIMESTEPS, conditions(maps=ones)), unet(X, TIMESTEPS, conditions()))
    assert difference(unet(X, TIMESTEPS, conditions(maps=MAPS)), unet(X, TIMESTEPS, conditions())) > 1e-2


def test_a_stream_runs_where_maps_are_zero_in_places(unet):
    maps = torch.ones(CLIPS, 2, HEIGHT, WIDTH)
    maps[:, 1, :, :7] = 0
    assert conditions(maps=maps).streams() == (True, True)
    out, plain = unet(X, TIMESTEPS, conditions(maps=maps)), unet(X, TIMESTEPS, conditions())
    assert (
        difference(out, plain) > 1e-2 and difference(out, unet(X, TIMESTEPS, conditions((0.8, 0.0)))) > 1e-2
    )


# Conditions


@pytest.mark.parametrize(
    "shape", [(CLIPS, 1, 4, 5), (CLIPS, 5, 4, 5), (CLIPS, 2, 4), (3, 2, 4, 5), (CLIPS, 2, 2, 4, 5)]
)
def test_maps_of_another_layout_are_refused(shape):
    with pytest.raises(ValueError, match="got"):
        conditions(maps=torch.ones(shape), places=torch.zeros(CLIPS, FRAMES))


def test_maps_go_along(unet):
    with_maps, plain = conditions(maps=MAPS), conditions()
    joined = cat([plain, with_maps])
    assert joined.maps[:CLIPS].eq(1).all() and torch.equal(joined.maps[CLIPS:], MAPS)
    x, timesteps = X.repeat(2, 1, 1, 1, 1), TIMESTEPS.repeat(2)
    alone = torch.cat([unet(X, TIMESTEPS, plain), unet(X, TIMESTEPS, with_maps)])
    assert difference(unet(x, timesteps, joined), alone) < 1e-4
    still = dataclasses.replace(plain, maps=MAPS[:, 0])
    assert torch.equal(cat([still, with_maps]).maps[:CLIPS], MAPS[:, :1].expand_as(MAPS))
    one = dataclasses.replace(plain, maps=MAPS[:, 0, :, :1, :1])
    assert cat([one, still]).maps[:CLIPS].eq(MAPS[:, 0, :, :1, :1]).all()
    with pytest.raises(ValueError, match="maps of one size"):
        cat([still, dataclasses.replace(plain, maps=MAPS[:, 0, :, :5])])
    assert with_maps.scaled(1, 0).maps is MAPS and with_maps.with_weights(plain.weights).maps is MAPS
    assert with_maps.to(dtype=torch.bfloat16).maps.dtype == torch.float32


def test_a_tile_sees_its_part():
    large = torch.rand(CLIPS, 2, 45, 70)
    whole = averaged(large, HEIGHT, WIDTH)
    for tile in tiles(HEIGHT, WIDTH, 6):
        part = conditions(maps=large).within(tile).maps
        assert torch.equal(part, whole[..., tile.rows, tile.columns])
    assert conditions(maps=torch.ones(CLIPS, 2, 1, 1)).within(tile).maps.eq(1).all()
    plain = conditions()
    assert plain.within(tile) is plain


def test_a_null_image_is_seen_everywhere():
    """A clip without image weight is shown it at weight 1, whatever the maps of a picture say."""
    weights = torch.tensor([[1.0, 0.0], [1.0, 0.5]])
    cond = Conditioning(TEXT, IMAGE, weights, maps=MAPS)
    maps = with_null_image(cond, torch.zeros(1, 6, 40)).maps
    assert (
        maps[0, :, 1].eq(1).all()
        and torch.equal(maps[1], MAPS[1])
        and torch.equal(maps[:, :, 0], MAPS[:, :, 0])
    )


# Guidance

SCHEDULE = NoiseSchedule(SD21_SCHEDULE)


@pytest.mark.parametrize("maps", [MAPS, MAPS[:, 0]], ids=["a frame", "a clip"])
def test_branches_are_calls_of_their_own(unet, maps):
    denoiser, sigma = Denoiser(unet, SCHEDULE, "v"), SCHEDULE.sigmas[TIMESTEPS]
    maps = torch.where(maps < 0.3, 0.0, maps)
    cond, empty = conditions(maps=maps), randn(CLIPS, 7, 48, seed=9)
    uncond = Conditioning(empty, None, torch.tensor([[1.0, 0.0]] * CLIPS))
    text_map, image_map = maps.unbind(-3)

    def call(text, weights, text_map, image_map):
        stacked = torch.stack([text_map, image_map], -3)
        given = Conditioning(text, IMAGE, torch.tensor(weights).expand(CLIPS, -1), LEVELS, maps=stacked)
        return denoiser(X, sigma, given)

    ones = torch.ones_like(text_map)
    e0 = denoiser(X, sigma, dataclasses.replace(uncond, level_weights=LEVELS))
    e_t, e_ti = call(TEXT, (0.8, 0.0), text_map, ones), call(TEXT, (0.8, 0.6), text_map, image_map)
    e_i = call(empty, (1.0, 0.6), (text_map > 0).float(), image_map)  # the empty text, where text counts
    for guider, expected in (
        (Joint(7.5), e0 + 7.5 * (e_ti - e0)),
        (Separate(5.0, 2.0), e0 + 5 * (e_t - e0) + 2 * (e_i - e0)),
        (Nested(5.0, 2.0), e0 + 2 * (e_i - e0) + 5 * (e_ti - e_i)),
    ):
        guided = guider(denoiser, X, sigma, cond, uncond)
        assert difference(guided, expected) < 1e-4
        swapped = dataclasses.replace(cond, maps=maps.flip(-3))
        assert difference(guider(denoiser, X, sigma, swapped, uncond), expected) > 1e-2


def test_a_clip_without_weights_is_unconditional_under_maps(unet):
    denoiser, sigma = Denoiser(unet, SCHEDULE, "v"), SCHEDULE.sigmas[TIMESTEPS]
    uncond = Conditioning(randn(CLIPS, 7, 48, seed=9), None, torch.tensor([[1.0, 0.0]] * CLIPS))
    cond = Conditioning(TEXT, IMAGE, torch.tensor([[0.8, 0.6], [0.0, 0.0]]), maps=MAPS)
    guided = Joint(3.0)(denoiser, X, sigma, cond, uncond)
    assert difference(guided[1:], denoiser(X, sigma, uncond)[1:]) < 1e-4


# Masks


def test_masks_become_maps_of_latent_cells():
    image, text = torch.rand(1, 33, 50), torch.rand(FRAMES, 8, 8)
    maps = Masks(text, image).maps(FRAMES, HEIGHT, WIDTH)
    assert maps.shape == (1, FRAMES, 2, HEIGHT, WIDTH)
    torch.testing.assert_close(maps[0, :, 0], by_area(text, HEIGHT, WIDTH))
    torch.testing.assert_close(maps[0, :, 1], by_area(image, HEIGHT, WIDTH).expand(FRAMES, -1, -1))
    still = Masks(image=image).maps(FRAMES, HEIGHT, WIDTH)
    assert still.shape == (1, 2, HEIGHT, WIDTH) and still[0, 0].eq(1).all()
    assert Masks().maps(FRAMES, HEIGHT, WIDTH) is None
    assert Masks(torch.ones(1, 1, 1)).maps(1, 1, 1).eq(1).all()


def test_pictures_that_count_everywhere_keep_maps_of_one_cell():
    one, region = torch.ones(1, 1, 1), torch.rand(1, 4, 4)
    assert Masks().maps(FRAMES, HEIGHT, WIDTH, [one, one]).shape == (1, 3, 1, 1)
    assert Masks().maps(FRAMES, HEIGHT, WIDTH, [one, region]).shape == (1, 3, HEIGHT, WIDTH)


def test_a_frame_that_shrinks_on_its_way_has_no_masks(unet):
    class Smaller(Hook):
        def between(self, place, index, h, skip):
            return torch.nn.functional.avg_pool2d(h, 2) if (place, index) == ("input", 0) else h, skip

    with pytest.raises(ValueError, match="126 cells a frame here.* 28 cells; take away the masks"):
        unet(X, TIMESTEPS, conditions(maps=MAPS), hook=Smaller())


def test_masks_of_zeros_count_nowhere():
    zeros, some = torch.zeros(FRAMES, 4, 4), torch.zeros(FRAMES, 4, 4)
    some[1, 2, 3] = 0.1
    assert Masks().counts() == (True, True) and Masks(zeros, some).counts() == (False, True)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.full((1, 4, 4), math.nan), "image_mask must have finite values"),
        (torch.full((1, 4, 4), math.inf), "image_mask must have finite values"),
        (torch.full((1, 4, 4), -0.1), "at least 0"),
        (torch.ones(4, 4), "must be .1 or frames, h, w., got shape .4, 4."),
        (torch.ones(0, 4, 4), "got shape"),
        (torch.ones(1, 0, 4), "got shape"),
    ],
)
def test_bad_masks_are_refused(mask, words):
    with pytest.raises(ValueError, match=words):
        Masks(image=mask)


def test_masks_of_another_clip_are_refused():
    with pytest.raises(ValueError, match="1 text_mask, or one for each of 3 frames, got 5; give one"):
        Masks(torch.ones(5, 4, 4)).check(3)

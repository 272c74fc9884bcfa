"""Masks of text and picture inside the host, against the library's maps on the same random weights."""

import dataclasses
import math

import pytest
import torch
from einops import rearrange
from host_tests.both import FRAMES, SCHEDULER, conditionings, difference, expected, run

pytestmark = pytest.mark.usefixtures("inference")


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def masked(text=None, image=None, weights=(0.8, 0.6)):
    """Positive and negative as Set Modality Weights gives them."""
    from univid_pack.nodes.weights import UniVidModalityWeights

    positive, negative = conditionings()
    masks = {"text_mask": text, "image_mask": image}
    node = UniVidModalityWeights.PREPARE_CLASS_CLONE(None)
    weighted = UniVidModalityWeights.execute.__func__(
        node, conditioning=[positive], text_weight=[weights[0]], image_weight=[weights[1]],
        **{name: [mask] for name, mask in masks.items() if mask is not None},
    ).result[0]  # fmt: skip
    return weighted, negative


@pytest.mark.parametrize("guidance", ["joint", "separate", "nested"])
@pytest.mark.parametrize("frames", [1, FRAMES])
def test_masks_are_the_librarys_maps(model, library, guidance, frames):
    text, image = rand(1, 21, 13, seed=1), rand(frames, 8, 8, seed=2).round()
    conds = masked(text, image)
    ours = run(model, guidance, conds)[0]
    assert difference(ours, expected(library, guidance, conds)) < 1e-4
    assert difference(ours, expected(library, guidance, masked(image, text))) > 1e-2
    assert difference(ours, expected(library, guidance, conditionings())) > 1e-2


def test_constant_masks_are_numbers_bit_for_bit(model):
    plain = run(model, "separate", conditionings((0.5, 0.25)))[0]
    half, quarter = torch.full((1, 33, 20), 0.5), torch.full((FRAMES, 5, 70), 0.25)
    assert torch.equal(run(model, "separate", masked(half, quarter, (1.0, 1.0)))[0], plain)
    ones = torch.ones(1, 8, 8)
    assert torch.equal(run(model, conds=masked(ones, ones))[0], run(model, conds=masked())[0])
    for zero, weights in ((masked(image=0 * ones), (0.8, 0.0)), (masked(0 * ones), (0.0, 0.6))):
        for guidance in ("joint", "nested"):
            out = run(model, guidance, conditionings(weights))[0]
            assert torch.equal(run(model, guidance, zero)[0], out)


def test_all_branches_share_one_call(model):
    calls, clone = [], model.clone()

    def count(apply, args):
        calls.append(args["cond_or_uncond"])
        return apply(args["input"], args["timestep"], **args["c"])

    clone.set_model_unet_function_wrapper(count)
    run(clone, "nested", masked(image=rand(FRAMES, 9, 9)))
    assert [len(call) for call in calls] == [3] * 4


def test_tiles_see_their_part(model, library):
    from univid_pack.nodes.host.model import with_tile

    tiled = with_tile(model, 40)
    conds = masked(rand(1, 30, 17, seed=1), rand(FRAMES, 6, 6, seed=2))
    ours, theirs = run(tiled, conds=conds)[0], in_tiles(library.denoiser(), conds)
    assert difference(ours, theirs) < 1e-4 and difference(run(tiled)[0], theirs) > 1e-2
    ones = torch.ones(1, 3, 3)
    assert torch.equal(run(tiled, conds=masked(ones))[0], run(tiled, conds=masked())[0])


def in_tiles(denoiser, conds):
    """Tiles of 5 cells in the library, each under maps that are cut here."""
    from univid_pack.univid import samplers
    from univid_pack.univid.conditioning import Conditioning
    from univid_pack.univid.guidance import Joint
    from univid_pack.univid.noise import ClipNoise
    from univid_pack.univid.tiles import blended

    (text, extras), (none, _) = (c[0] for c in conds)
    maps = extras["univid_masks"].maps(FRAMES, 8, 8)
    cond = Conditioning(text, extras["univid_image"], extras["univid_weights"][:, 0])
    uncond = Conditioning(none, None, torch.tensor([[1.0, 0.0]]))

    def denoise(x, sigma):
        def part(tile):
            own = dataclasses.replace(cond, maps=maps[..., tile.rows, tile.columns])
            return Joint(3.0)(denoiser, tile.of(x), sigma, own, uncond)

        return blended(part, 8, 8, 5)

    sigmas = samplers.sigma_schedule(SCHEDULER, denoiser.schedule, 4, 1.0)
    noise = ClipNoise([7])
    x = samplers.initial_x(noise((1, 4, FRAMES, 8, 8)), sigmas[0], denoiser.schedule, None)
    x = samplers.get_sampler("euler", denoiser.schedule)(denoise, x, sigmas, noise=noise)
    return rearrange(x, "1 c t h w -> t c h w") / 0.18215


def test_context_windows_see_their_frames(model):
    """Of two windows that do not overlap each is under the masks of its own frames."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    windows = (3, 0, "standard_static", 1, False, "pyramid", 0, False)
    model = ContextWindowsManualNode.execute(model, *windows).result[0]
    latent = {"samples": torch.zeros(6, 4, 8, 8)}
    image = rand(6, 8, 8, seed=2)
    other = torch.cat([image[:3], rand(3, 8, 8, seed=3)])
    a, b = (run(model, conds=masked(image=mask), latent=latent)[0] for mask in (image, other))
    assert torch.equal(a[:3], b[:3]) and difference(a[3:], b[3:]) > 1e-2


def test_an_area_sees_its_part(model):
    """The host's own areas: as a clip of the area alone, under the part of the masks."""
    from univid_pack.nodes.host.conditioning import CONDMaps

    maps = rand(FRAMES, 2, 8, 8)
    assert torch.equal(CONDMaps(maps).process_cond(FRAMES, [4, 5, 1, 2]).cond, maps[..., 1:5, 2:7])
    one = torch.ones(1, 2, 1, 1)
    assert torch.equal(CONDMaps(one).process_cond(FRAMES, [4, 5, 1, 2]).cond, one.expand(FRAMES, -1, -1, -1))
    assert not CONDMaps(maps).can_concat(CONDMaps(maps[..., :5])) and CONDMaps(maps).can_concat(CONDMaps(one))


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"image": torch.full((1, 4, 4), math.nan)}, "image_mask must have finite values"),
        ({"text": torch.full((1, 4, 4), -1.0)}, "text_mask must have finite values of at least 0"),
    ],
)
def test_bad_masks_are_refused_by_the_node(model, masks, words):
    with pytest.raises(ValueError, match=words):
        masked(**masks)


def test_masks_of_another_clip_are_refused_before_sampling(model):
    with pytest.raises(ValueError, match="1 image_mask, or one for each of 5 frames, got 3"):
        run(model, conds=masked(image=torch.ones(3, 8, 8)))


def test_what_a_mask_needs(model):
    from univid_pack.nodes.weights import UniVidModalityWeights

    positive, _ = conditionings()
    without = [[positive[0][0], {"univid_has_image": False}]]

    def weigh(**inputs):
        node = UniVidModalityWeights.PREPARE_CLASS_CLONE(None)
        given = {"conditioning": [positive], "text_weight": [1.0], "image_weight": [0.0]} | inputs
        return UniVidModalityWeights.execute.__func__(node, **given).result

    with pytest.raises(ValueError, match="image_mask is given, but there is no picture"):
        weigh(conditioning=[without], image_mask=[torch.ones(1, 4, 4)])
    with pytest.raises(ValueError, match="one for each of 4 frames, got 3"):
        weigh(text_mask=[torch.ones(3, 4, 4)], frames=[4])
    weighted, preview = weigh(text_mask=[torch.ones(4, 4)], text_over_frames=["1..0"], frames=[3])
    assert weighted[0][1]["univid_weights"].shape == (3, 1, 2) and preview.shape == (1, 256, 768, 3)
    fading, _ = weigh(text_mask=[torch.ones(3, 4, 4)], text_over_frames=["1..0"])  # it knows the length
    assert fading[0][1]["univid_weights"][:, 0, 0].tolist() == [1, 0.5, 0]
    again, _ = weigh(conditioning=[weighted])  # new weights have no masks
    assert again[0][1]["univid_masks"].text is None

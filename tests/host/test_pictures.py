"""Add Picture inside the host, against the library on the same random weights."""

import pytest
import torch
from host_tests.both import FRAMES, IMAGE, conditionings, difference, expected, randn, run

pytestmark = pytest.mark.usefixtures("inference")
OTHER = randn(1, 6, 20, seed=11)


def added(conds, tokens=OTHER, share=1.0, region=None):
    from univid_pack.nodes.host.conditioning import with_picture

    positive, negative = conds
    share = torch.as_tensor(share, dtype=torch.float32)
    share = share.reshape(-1, 1, 1) if share.dim() < 3 else share
    return with_picture(positive, tokens, share, region), negative


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("guidance", ["joint", "separate", "nested"])
def test_pictures_are_the_librarys(model, library, guidance):
    region, per_frame = rand(1, 5, 7, seed=1), rand(FRAMES, seed=2)
    conds = added(added(conditionings(), share=per_frame), randn(1, 6, 20, seed=12), 0.5, region)
    maps = maps_of([torch.ones(1, 1, 1), per_frame.view(-1, 1, 1), 0.5 * region])
    ours, theirs = run(model, guidance, conds)[0], expected(library, guidance, conds, maps=maps)
    assert difference(ours, theirs) < 1e-4
    swapped = maps_of([per_frame.view(-1, 1, 1), torch.ones(1, 1, 1), 0.5 * region])
    assert difference(ours, expected(library, guidance, conds, maps=swapped)) > 1e-3


def maps_of(shares):
    from univid_pack.univid.steer import Masks

    return Masks().maps(FRAMES, 8, 8, shares)


def test_steps_of_a_picture_are_the_librarys(model, library):
    falling = torch.linspace(1, 0, 64)
    ours = run(model, conds=added(conditionings(), share=falling.view(1, 64, 1)))[0]
    maps, shares = maps_of([torch.ones(1, 1, 1)] * 2), torch.stack([torch.ones(64), falling], 1)[None]
    conds = added(conditionings())
    assert difference(ours, expected(library, conds=conds, maps=maps, over_steps=shares)) < 1e-4
    rising = shares.flip(1)  # a control: the other way round
    assert difference(ours, expected(library, conds=conds, maps=maps, over_steps=rising)) > 1e-3


def test_shares_follow_the_steps_and_weights_set_later(model):
    from univid_pack.nodes.host.conditioning import with_weights

    both = added(conditionings())
    falling = torch.linspace(1, 0, 64).view(1, 64, 1)
    out = run(model, conds=added(conditionings(), share=falling))[0]
    assert difference(out, run(model, conds=both)[0]) > 1e-3
    assert difference(out, run(model, conds=conditionings())[0]) > 1e-3
    none = with_weights(both[0], torch.tensor([[[0.8, 0.0]]]))  # of all pictures
    assert (
        difference(run(model, conds=(none, both[1]))[0], run(model, conds=conditionings((0.8, 0.0)))[0])
        < 1e-4
    )
    off = added(conditionings(), share=0.0)
    assert difference(run(model, conds=off)[0], run(model, conds=conditionings())[0]) < 1e-4


def test_the_first_picture_may_be_added_too(model):
    positive, negative = conditionings()
    without = [[positive[0][0], negative[0][1]]]
    alone = added((without, negative), IMAGE, 0.6)
    assert difference(run(model, conds=alone)[0], run(model, conds=conditionings((1.0, 0.6)))[0]) < 1e-5
    assert positive[0][1]["univid_has_image"] and not without[0][1]["univid_has_image"]


def test_all_branches_share_one_call_and_tokens_of_a_frame_go_along(model, library):
    calls, clone = [], model.clone()

    def count(apply, args):
        calls.append(args["cond_or_uncond"])
        return apply(args["input"], args["timestep"], **args["c"])

    clone.set_model_unet_function_wrapper(count)
    conds = added(conditionings(), randn(FRAMES, 6, 20, seed=13))
    out = run(clone, "nested", conds)[0]
    assert [len(call) for call in calls] == [3] * 4
    maps = maps_of([torch.ones(1, 1, 1)] * 2)
    assert difference(out, expected(library, "nested", conds, maps=maps)) < 1e-4


def test_conditions_of_fewer_and_more_pictures_go_together(pack):
    from univid_pack.nodes.host.conditioning import CONDMaps, CONDTokens, CONDWeights

    one, three = CONDTokens(torch.ones(5, 4, 3)), CONDTokens(torch.ones(5, 12, 3))
    assert one.can_concat(three) and three.can_concat(one)
    assert not one.can_concat(CONDTokens(torch.ones(5, 6, 3)))
    joined = one.concat([three])
    assert joined.shape == (10, 12, 3) and not joined[:5, 4:].any() and joined[5:].all()
    weights = CONDWeights(torch.ones(5, 2, 2)).concat([CONDWeights(torch.ones(5, 2, 4))])
    assert weights.shape == (10, 2, 4) and not weights[:5, :, 2:].any() and weights[5:].all()
    maps = CONDMaps(torch.zeros(5, 2, 1, 1)).concat([CONDMaps(torch.zeros(5, 4, 8, 6))])
    assert maps.shape == (10, 4, 8, 6) and maps[:5, 2:].eq(1).all() and not maps[5:].any()


def test_the_node_encodes_and_refuses(pack, model):
    from univid_pack.nodes.encode import UniVidEncodeDualPrompt
    from univid_pack.nodes.load import UniVidLoad
    from univid_pack.nodes.picture import UniVidAddPicture

    _, clip, vision, _ = UniVidLoad.execute("built-in").result
    a, b = rand(1, 20, 30, 3, seed=1), rand(1, 9, 9, 3, seed=2)
    positive, _ = UniVidEncodeDualPrompt.execute(clip, "waves", "", vision, a).result
    (both,) = UniVidAddPicture.execute(positive, vision, b, 0.5, 5, "0..1", "1..0", torch.ones(4, 4)).result
    tokens = positive[0][1]["univid_image"]
    alone = UniVidEncodeDualPrompt.execute(clip, "waves", "", vision, b).result[0][0][1]["univid_image"]
    assert torch.equal(both[0][1]["univid_image"], torch.cat([tokens, alone], 1))
    shares = both[0][1]["univid_shares"]
    assert shares.shape == (5, 64, 2) and shares[..., 0].eq(1).all()
    assert shares[:, 0, 1].tolist() == [0, 0.125, 0.25, 0.375, 0.5] and not shares[:, -1, 1].any()
    assert [region is None for region in both[0][1]["univid_regions"]] == [True, False]
    assert positive[0][1]["univid_image"] is tokens and "univid_shares" not in positive[0][1]
    for inputs, words in (
        ({"weight": -1.0}, "image_weight|weight"),
        ({"over_frames": "1..0"}, "set frames"),
        ({"over_steps": "a lot"}, "over_steps: .*no curve"),
        ({"mask": torch.full((1, 4, 4), float("nan"))}, "finite values"),
        ({"mask": torch.ones(3, 4, 4), "frames": 5}, "each of 5 frames, got 3"),
    ):
        with pytest.raises(ValueError, match=words):
            UniVidAddPicture.execute(positive, vision, b, **{"weight": 1.0} | inputs)
    with pytest.raises(ValueError, match="width 96, as of the pictures before, got 20"):
        added((both, None))
    with pytest.raises(ValueError, match="one number of frames, got 5 and 6"):
        UniVidAddPicture.execute(both, vision, b, 1.0, 6, "0..1")


def test_windows_see_their_frames(pack):
    from univid_pack.nodes.host import conditioning as keys
    from univid_pack.nodes.host.cascade import _within
    from univid_pack.univid.steer import Masks
    from univid_pack.univid.windows import Window

    positive, _ = added(conditionings(), share=torch.arange(6.0), region=rand(6, 4, 4))
    masked = keys.with_weights(positive, torch.ones(1, 1, 2), Masks(rand(6, 2, 2, seed=3), rand(1, 2, 2)))
    (_, before), (_, part) = masked[0], _within(masked, Window(2, 5, 2), 6)[0]
    assert part[keys.SHARES][:, 0, 1].tolist() == [2, 3, 4]
    assert torch.equal(part[keys.REGIONS][1], before[keys.REGIONS][1][2:5]) and part[keys.REGIONS][0] is None
    assert torch.equal(part[keys.MASKS].text, before[keys.MASKS].text[2:5])
    assert part[keys.MASKS].image is before[keys.MASKS].image

"""The U-Net against diffusers and plain loops, every parameter random."""

import copy
import dataclasses

import pytest
import torch
from reference import (
    NEW,
    SMALL,
    PlainUniVid,
    built_with_operations,
    difference,
    randn,
    randomize,
    silence,
    stable_diffusion,
)
from torch.utils.flop_counter import FlopCounterMode

from univid.attention import attention
from univid.blocks import SpatialTransformer
from univid.conditioning import Conditioning
from univid.presets import PAPER, TINY
from univid.unet import UNet

TIMESTEPS = torch.tensor([3, 800])
TEXT, IMAGE = randn(2, 7, 48, seed=1), randn(2, 6, 40, seed=2)
NARROW = dataclasses.replace(
    SMALL, num_res_blocks=1, channel_mult=(1, 1, 2, 2)
)  # the same four levels, faster


class Counted:
    """The attention function that keeps the number of queries and of keys of each call."""

    def __init__(self):
        self.calls = []

    def __call__(self, q, k, v, heads):
        self.calls.append((q.shape[1], k.shape[1]))
        return attention(q, k, v, heads)


@pytest.fixture(scope="module")
def unet():
    return randomize(UNet(SMALL))


@pytest.fixture(scope="module")
def placed():
    """The narrow network whose frames know their place in the clip."""
    return randomize(
        UNet(
            dataclasses.replace(
                NARROW, temporal=dataclasses.replace(NARROW.temporal, position=TINY.unet.temporal.position)
            )
        )
    )


@pytest.fixture(scope="module")
def narrow():
    return randomize(UNet(NARROW))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def conditions(text_weight=1.0, image_weight=0.0, **fields):
    weights = torch.tensor([[text_weight, image_weight]]).expand(2, 2)
    return Conditioning(**({"text": TEXT, "image": IMAGE, "weights": weights} | fields))


def per_frame(model, x, timesteps=TIMESTEPS, text=TEXT):
    """A 2-D U-Net on every frame of x `[b c t h w]` alone."""
    return torch.stack([model(frame, timesteps, text).sample for frame in x.unbind(2)], 2)


def counted(config=NARROW):
    function = Counted()
    return randomize(UNet(config, attention=function)), function.calls


def blocks(unet, factor=None):
    found = [m.transformer_blocks[0] for m in unet.modules() if isinstance(m, SpatialTransformer)]
    return len([block for block in found if factor in (None, block.factor)])


# Stable Diffusion, frame by frame


@pytest.mark.parametrize("size", [(16, 16), (23, 9), (1, 3), (45, 80)])
def test_one_frame_is_stable_diffusion(unet, size):
    x, theirs = randn(2, 4, 1, *size), stable_diffusion(unet)
    out, expected = unet(x, TIMESTEPS, conditions()), per_frame(theirs, x)
    assert out.shape == x.shape and difference(out, expected) < 1e-4
    assert difference(out, expected.flip(0)) > 0.1
    assert difference(out, per_frame(theirs, x, text=TEXT.flip(0))) > 1e-2
    assert difference(out, per_frame(theirs, x, timesteps=TIMESTEPS.flip(0))) > 1e-2
    theirs.mid_block.attentions[0].proj_in.weight.mul_(1.5)
    assert difference(out, per_frame(theirs, x)) > 1e-3


@pytest.mark.parametrize(("frames", "size"), [(7, (23, 9)), (2, (45, 80))])
def test_silent_temporal_parts_are_stable_diffusion_frame_by_frame(narrow, frames, size):
    silent = silence(copy.deepcopy(narrow))
    x, theirs = randn(2, 4, frames, *size), stable_diffusion(narrow)
    out, expected = silent(x, TIMESTEPS, conditions()), per_frame(theirs, x)
    assert difference(out, expected) < 1e-4
    assert difference(out, expected.flip(2)) > 0.1
    assert difference(out, per_frame(theirs, x, text=TEXT.flip(0))) > 1e-2
    assert difference(narrow(x, TIMESTEPS, conditions()), expected) > 0.1  # the temporal parts do something


def test_one_frame_does_not_touch_the_temporal_parts(narrow):
    x = randn(2, 4, 1, 8, 8)
    poisoned = copy.deepcopy(narrow)
    for name, parameter in poisoned.named_parameters():
        if "temporal" in name or "pst" in name:
            parameter.fill_(torch.nan)
    assert torch.equal(poisoned(x, TIMESTEPS, conditions(1, 1)), narrow(x, TIMESTEPS, conditions(1, 1)))
    assert poisoned(randn(2, 4, 2, 8, 8), TIMESTEPS, conditions(1, 1)).isnan().all()


# The whole network


@pytest.mark.parametrize("frames", [2, 9])
def test_the_whole_network_is_the_plain_one(unet, frames):
    """Places, levels, kernels, reference frames and streams: diffusers' trunk with plain loops in between."""
    x, plain = randn(2, 4, frames, 23, 9), PlainUniVid(unet)
    expected = plain(x, TIMESTEPS, TEXT, IMAGE, 0.7)
    assert difference(unet(x, TIMESTEPS, conditions(1, 0.7)), expected) < 1e-4
    assert difference(unet(x, TIMESTEPS, conditions(1, 0.9)), expected) > 1e-3
    assert difference(unet(x.flip(2), TIMESTEPS, conditions(1, 0.7)).flip(2), expected) > 1e-2
    assert difference(unet(x, TIMESTEPS, conditions(1, 0.7, image=IMAGE.flip(0))), expected) > 1e-2

    references = {1: [1], 2: [0, 1]}
    given = unet(x, TIMESTEPS, conditions(1, 0.7), reference_frames=references)
    assert difference(given, plain(x, TIMESTEPS, TEXT, IMAGE, 0.7, references)) < 1e-4
    assert difference(given, expected) > 1e-3


def test_the_network_with_places_is_the_plain_one(placed):
    x, plain = randn(2, 4, 5, 9, 8), PlainUniVid(placed)
    expected = plain(x, TIMESTEPS, TEXT, IMAGE, 0.7)
    assert difference(placed(x, TIMESTEPS, conditions(1, 0.7)), expected) < 1e-4
    places = torch.tensor([[0.1, 0.2, 0.3, 0.9, 1.0], [-1, -1, 0.5, 0.6, 0.7]])
    given = placed(x, TIMESTEPS, conditions(1, 0.7, places=places))
    assert difference(given, plain(x, TIMESTEPS, TEXT, IMAGE, 0.7, places=places)) < 1e-4
    assert difference(given, expected) > 1e-2


def test_a_single_frame_is_stable_diffusion_unless_it_has_a_place_in_a_clip(placed):
    x, theirs = randn(2, 4, 1, 9, 8), stable_diffusion(placed)
    expected = per_frame(theirs, x)
    assert difference(placed(x, TIMESTEPS, conditions()), expected) < 1e-4
    for place, same in ((-1.0, True), (0.0, False), (0.5, False)):
        out = placed(x, TIMESTEPS, conditions(places=torch.full((2, 1), place)))
        assert (difference(out, expected) < 1e-4) == same


@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 5, 2), (4, 8, 8), (11, 6, 10)])
def test_a_clip_of_a_batch_is_the_clip_alone(narrow, shape):
    x, weights = randn(2, 4, *shape), torch.tensor([[1.0, 0.3], [0.0, 1.0]])
    together = narrow(x, TIMESTEPS, conditions(weights=weights))
    alone = [
        narrow(
            x[i : i + 1],
            TIMESTEPS[i : i + 1],
            Conditioning(TEXT[i : i + 1], IMAGE[i : i + 1], weights[i : i + 1]),
        )
        for i in range(2)
    ]
    assert together.shape == x.shape
    assert difference(together, torch.cat(alone)) < 1e-4
    assert difference(together, torch.cat(alone[::-1])) > 0.1


def test_concat_latents_join_the_channels():
    unet = randomize(UNet(dataclasses.replace(NARROW, in_channels=7)))
    x, concat = randn(2, 4, 3, 8, 8), randn(2, 3, 3, 8, 8, seed=1)
    out = unet(x, TIMESTEPS, conditions(concat=concat))
    assert torch.equal(out, unet(torch.cat([x, concat], 1), TIMESTEPS, conditions()))
    assert difference(out, unet(x, TIMESTEPS, conditions(concat=concat.flip(2)))) > 1e-2


# Streams and weights


def test_a_weight_of_zero_skips_its_stream():
    """Attention calls a forward: self, PST and temporal in each block, and one for each stream that is on."""
    unet, calls = counted()
    x, always = randn(2, 4, 3, 8, 8), 3 * blocks(unet)

    def run(cond):
        calls.clear()
        return unet(x, TIMESTEPS, cond), (len(calls) - always) / blocks(unet)

    (both, two), (text, one), (image, other), (_, none) = (
        run(conditions(*weights)) for weights in ((1, 1), (1, 0), (0, 1), (0, 0))
    )
    assert (two, one, other, none) == (2, 1, 1, 0)
    assert torch.equal(text, run(conditions(1, 0, image=None))[0])  # the plain run
    assert torch.equal(image, run(conditions(0, 1, text=TEXT.flip(0)))[0])
    assert difference(text, both) > 1e-2 and difference(image, both) > 1e-2
    with pytest.raises(ValueError, match="image tokens"):
        unet(x, TIMESTEPS, conditions(1, 1, image=None))


def test_level_weights_act_at_their_level():
    unet, calls = counted()
    x = randn(2, 4, 3, 8, 8)

    def run(*weights, **levels):
        calls.clear()
        levels = {int(name[1:]): pair for name, pair in levels.items()}
        return unet(x, TIMESTEPS, conditions(*weights, level_weights=levels)), len(calls)

    plain, all_calls = run(1, 0.5)
    for factor in (1, 2, 4, 8):
        out, fewer = run(1, 0.5, **{f"f{factor}": (1, 0)})
        assert all_calls - fewer == blocks(unet, factor) and difference(out, plain) > 1e-4
    assert all_calls == 5 * sum(blocks(unet, factor) for factor in (1, 2, 4, 8))
    everywhere, _ = run(1, 0.5, f1=(0.5, 3), f2=(0.5, 3), f4=(0.5, 3), f8=(0.5, 3))
    assert difference(everywhere, run(0.5, 1.5)[0]) < 1e-5
    with pytest.raises(ValueError, match="level_weights must be for levels among"):
        run(1, 0.5, f3=(1, 1))


def test_conditions_per_frame(narrow):
    x = randn(2, 4, 3, 8, 8)
    shared = narrow(x, TIMESTEPS, conditions(1, 0.5))
    text, image = (tokens[:, None].expand(-1, 3, -1, -1) for tokens in (TEXT, IMAGE))
    weights = torch.tensor([1, 0.5]).expand(2, 3, 2)
    for fields in (
        {"text": text},
        {"image": image},
        {"weights": weights},
        {"text": text, "weights": weights},
    ):
        assert difference(shared, narrow(x, TIMESTEPS, conditions(1, 0.5, **fields))) < 1e-5
    changed = torch.tensor([[1, 0.5], [1, 0.5], [1, 1.5]]).expand(2, 3, 2)
    assert difference(shared, narrow(x, TIMESTEPS, conditions(weights=changed))) > 1e-3
    assert difference(shared, narrow(x, TIMESTEPS, conditions(1, 0.5, text=text.flip(0)))) > 1e-2


def test_conditions_of_other_clips_or_frames_are_refused(narrow):
    with pytest.raises(ValueError, match="3 clips of 4 frames, as x has, got 2 clips"):
        narrow(randn(3, 4, 4, 8, 8), torch.zeros(3), conditions())
    with pytest.raises(ValueError, match="2 clips of 1 frames, as x has, got 2 clips of 3 frames"):
        narrow(randn(2, 4, 1, 8, 8), TIMESTEPS, conditions(weights=torch.ones(2, 3, 2)))


# Reference frames


def test_reference_frames_can_be_chosen_at_inference(narrow):
    x, still = randn(2, 4, 6, 8, 8), copy.deepcopy(narrow)
    for name, parameter in still.named_parameters():
        if "_temporal.conv" in name:  # their zero padding alone tells the frames of a still clip apart
            parameter.zero_()
    picture = x[:, :, :1].expand_as(x)
    for references in ({8: [0]}, {1: torch.tensor([0, 5]), 4: [2, 3]}):
        moving, plain = (narrow(x, TIMESTEPS, conditions(), reference_frames=r) for r in (references, None))
        assert difference(moving, plain) > 1e-3
        chosen, plain = (
            still(picture, TIMESTEPS, conditions(), reference_frames=r) for r in (references, None)
        )
        assert difference(chosen, plain) < 1e-4
    with pytest.raises(ValueError, match=r"reference_frames must be for levels among .*, got \[16\]"):
        narrow(x, TIMESTEPS, conditions(), reference_frames={16: [0]})


def test_pst_attention_is_one_call_a_block():
    unet, calls = counted()
    unet(randn(1, 4, 24, 16, 16), TIMESTEPS[:1], Conditioning(TEXT[:1], IMAGE[:1], torch.ones(1, 2)))
    for factor, n in {1: 3, 2: 6, 4: 12, 8: 24}.items():
        tokens = (16 // factor) ** 2
        pst = [call for call in calls if call == (24 * tokens, n * tokens)]
        assert len(pst) == blocks(unet, factor) > 0
    assert len(calls) == 5 * blocks(unet)


# What a host and training need


def test_every_parameter_is_a_leaf_of_the_given_operations():
    unet, leaves = built_with_operations(SMALL)
    assert {id(p) for p in unet.parameters()} == leaves.keys() and set(leaves.values()) == {"weight", "bias"}
    assert not list(unet.buffers())
    assert unet.dtype == torch.float16 and {(p.dtype, p.device.type) for p in unet.parameters()} == {
        (torch.float16, "meta")
    }


def test_operations_may_cast_the_weights(narrow):
    """As a host does that stores half precision and computes in another: no forward reads a weight itself."""

    def casting(kind):
        class Casting(kind):
            def forward(self, x):
                weights = {name: p.to(x.dtype) for name, p in self.named_parameters()}
                return torch.func.functional_call(self.plain, weights, (x,))

            def __init__(self, *args, dtype=None, **kwargs):
                super().__init__(*args, dtype=dtype, **kwargs)
                object.__setattr__(self, "plain", kind(*args, **kwargs))

        return Casting

    class Operations:
        Linear, Conv2d, GroupNorm, LayerNorm = map(
            casting, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm)
        )

    x, cond = randn(2, 4, 3, 8, 8), conditions(1, 0.5)
    half = UNet(NARROW, operations=Operations, dtype=torch.float16)
    half.load_state_dict(narrow.state_dict())
    rounded = copy.deepcopy(narrow).half().float()
    out = half(x, TIMESTEPS, cond)
    assert out.dtype == torch.float32 and difference(out, rounded(x, TIMESTEPS, cond)) < 1e-5
    assert difference(out, narrow(x, TIMESTEPS, cond)) > 1e-5


def test_bfloat16(narrow):
    x, cond = randn(2, 4, 3, 8, 8), conditions(1, 0.5)
    out = copy.deepcopy(narrow).bfloat16()(x.bfloat16(), TIMESTEPS, cond.to(dtype=torch.bfloat16))
    expected = narrow(x, TIMESTEPS, cond)
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).norm() < 0.05 * expected.norm()


def test_checkpointing_has_the_same_gradients():
    unet, calls = counted()
    x, cond = randn(2, 4, 3, 8, 8), conditions(1, 0.5)

    def run(checkpointing):
        unet.train().zero_grad()
        unet.checkpointing = checkpointing
        calls.clear()
        with torch.enable_grad():
            unet(x, TIMESTEPS, cond, reference_frames={8: [1]}).square().mean().backward()
        return {name: p.grad.clone() for name, p in unet.named_parameters()}, len(calls)

    (plain, once), (recomputed, twice) = run(False), run(True)
    assert twice == 2 * once
    assert all(plain[name].abs().max() > 0 for name in plain if "to_k" not in name)
    assert all(torch.allclose(plain[name], recomputed[name], rtol=1e-4, atol=1e-7) for name in plain)


# Size


def test_ablations_have_no_such_parts():
    temporal = dataclasses.replace(NARROW.temporal, conv_kernels=(), segment_frames=(), attention=False)
    unet = randomize(UNet(dataclasses.replace(NARROW, temporal=temporal)))
    assert not [name for name, _ in unet.named_parameters() if "temporal" in name or "pst" in name]
    x = randn(2, 4, 3, 8, 8)
    assert difference(unet(x, TIMESTEPS, conditions()), per_frame(stable_diffusion(unet), x)) < 1e-4


def test_full_size_counts():
    with torch.device("meta"):
        unet = UNet(PAPER.unet)
    trunk = [p for name, p in unet.named_parameters() if not any(word in name for word in NEW)]
    assert len(trunk) == 686 and sum(p.numel() for p in trunk) == 865_910_724
    assert sum(p.numel() for p in unet.parameters()) == 1_510_352_644
    assert blocks(unet) == 16 and blocks(unet, 8) == 1  # PSTAttn-8 in the middle block only


def test_full_size_flops():
    """The design says 25.6 TFLOP for 24 frames of 40 x 72 latents."""
    with torch.device("meta"):
        unet = UNet(PAPER.unet)
        x, timesteps = torch.empty(1, 4, 24, 40, 72), torch.empty(1)
        text, image = torch.empty(1, 77, 1024), torch.empty(1, 257, 1280)
    with FlopCounterMode(display=False) as counter:
        unet(x, timesteps, Conditioning(text, image, torch.ones(1, 2)))
    assert counter.get_total_flops() == pytest.approx(25.6e12, rel=0.03)

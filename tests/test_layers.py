"""Sublayers against plain loops and diffusers, every parameter random."""

import math

import pytest
import torch
from diffusers.models.attention_processor import Attention
from reference import (
    attend,
    centres,
    difference,
    image_processor,
    pst_attention,
    randn,
    randomize,
    temporal_attention,
    temporal_conv,
)

from univid.attention import attention
from univid.blocks import TemporalTransformer
from univid.conditioning import Conditioning, cat, check_weights
from univid.config import PositionConfig
from univid.layers import (
    Context,
    DualCrossAttention,
    Layers,
    PSTAttention,
    PSTConv,
    even_places,
    reference_frames,
)

MAKE = Layers(torch.nn, attention)
CLIPS, FRAMES, HEADS, WIDTH, CONTEXT = 2, 5, 3, 24, 20


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def test_attention_is_the_softmax_head_by_head():
    q, k, v = randn(1, 7, WIDTH), randn(1, 9, WIDTH, seed=1), randn(1, 9, WIDTH, seed=2)
    assert difference(attention(q, k, v, HEADS)[0], attend(q[0], k[0], v[0], HEADS)) < 1e-5
    assert difference(attention(q, k, v, HEADS)[0], attend(q[0], k[0], v[0], 1)) > 1e-2


@pytest.mark.parametrize("kernel", [1, 3, 5, 9])
@pytest.mark.parametrize("frames", [2, 5, 12])
def test_pst_conv_is_a_loop_over_padded_frames(kernel, frames):
    layer = randomize(PSTConv(MAKE, 6, kernel))
    x = randn(CLIPS, frames, 6, 4, 3)
    out = layer(x.flatten(0, 1), frames).unflatten(0, (CLIPS, frames))
    assert difference(out, temporal_conv(x, layer.conv)) < 1e-5
    assert (
        difference(out, temporal_conv(x.flip(1), layer.conv).flip(1)) > 1e-2 or kernel == 1
    )  # it knows the order


def test_pst_conv_keeps_channels_last():
    """The plane of the convolution and the tokens of the attentions are views then: no copies in between."""
    layer = randomize(PSTConv(MAKE, 6, 3))
    x = randn(CLIPS * FRAMES, 6, 4, 3).contiguous(memory_format=torch.channels_last)
    assert layer(x, FRAMES).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("references", [[2], [0, 2, 4], [0, 1, 2, 3, 4]])
def test_pst_attention_is_equation_6(references):
    layer = randomize(PSTAttention(MAKE, WIDTH, HEADS))
    x = randn(CLIPS, FRAMES, 6, WIDTH)
    out = layer(x.flatten(0, 1), FRAMES, torch.tensor(references)).unflatten(0, (CLIPS, FRAMES))
    assert difference(out, pst_attention(x, references, layer)) < 1e-5
    assert difference(out, pst_attention(x, [1], layer)) > 1e-2
    assert difference(out, pst_attention(x.flip(1), references, layer)) > 1e-2


@pytest.mark.parametrize(
    "position",
    [None, PositionConfig(1000.0, 10000.0), PositionConfig(12.0, 30.0)],
    ids=["none", "tiny", "slow"],
)
def test_temporal_attention_is_equation_8(position):
    layer = randomize(TemporalTransformer(MAKE, WIDTH, HEADS, groups=4, position=position, factor=1))
    x = randn(CLIPS, FRAMES, WIDTH, 3, 4)
    places = torch.rand(CLIPS, FRAMES, generator=torch.Generator().manual_seed(0))

    def run(places):
        context = Context(FRAMES, None, places, None, None, {}, {}, {})
        return layer(x.flatten(0, 1), context).unflatten(0, (CLIPS, FRAMES))

    assert difference(run(places), temporal_attention(x, layer, places)) < 1e-4
    assert (difference(run(places), run(places.flip(0))) > 1e-2) == (position is not None)
    out = run(even_places(FRAMES).expand(CLIPS, -1))
    assert difference(out, temporal_attention(x, layer)) < 1e-4
    assert difference(out, temporal_attention(x.mT, layer).mT) < 1e-4  # every position for itself
    order = torch.tensor([3, 0, 4, 1, 2])
    reordered = difference(out[:, order], temporal_attention(x[:, order], layer))
    assert (reordered > 1e-2) if position is not None else (reordered < 1e-5)
    assert difference(out, temporal_attention(x[:, order], layer)) > 1e-2


# Dual-stream cross-attention


class Dual:
    """One layer, its queries and its tokens; `run` gives `[b t s d]`."""

    def __init__(self):
        self.calls = 0
        self.layer = randomize(
            DualCrossAttention(Layers(torch.nn, self.attention), WIDTH, CONTEXT, HEADS, True)
        )
        self.x = randn(CLIPS, FRAMES, 6, WIDTH)
        self.text, self.image = randn(CLIPS, 7, CONTEXT, seed=1), randn(CLIPS, 4, CONTEXT, seed=2)

    def attention(self, *args):
        self.calls += 1
        return attention(*args)

    def run(self, weights, factor=1, level_weights=None, text=True, image=True):
        self.calls = 0
        text, image = (
            own if given is True else given for own, given in ((self.text, text), (self.image, image))
        )
        weights = torch.as_tensor(weights, dtype=torch.float32).expand(CLIPS, -1, 2)
        cond = Conditioning(self.text, self.image, weights, level_weights or {})
        level = cond.at_level(factor, 2, 3)
        context = Context(
            frames=FRAMES,
            embedding=None,
            places=None,
            text=text,
            image=image,
            weights={factor: level},
            streams={factor: tuple(level.flatten(0, 2).any(0).tolist())},
            references={},
        )
        return self.layer(self.x.flatten(0, 1), context, factor).unflatten(0, (CLIPS, FRAMES))

    def diffusers(self, text_weight, image_weight, text=None):
        """Their processor has a weight for the image alone: that of the text goes into V_t."""
        theirs = Attention(WIDTH, CONTEXT, heads=HEADS, dim_head=WIDTH // HEADS)
        ours = {name: tensor for name, tensor in self.layer.state_dict().items() if "_image" not in name}
        theirs.load_state_dict(ours | {"to_v.weight": text_weight * self.layer.to_v.weight}, strict=True)
        theirs.processor = image_processor(self.layer, image_weight)
        tokens = (
            tokens.repeat_interleave(FRAMES, 0)
            for tokens in (self.text if text is None else text, self.image)
        )
        text, image = tokens
        return theirs(self.x.flatten(0, 1), (text, [image])).unflatten(0, (CLIPS, FRAMES))


@pytest.fixture
def dual():
    return Dual()


@pytest.mark.parametrize("weights", [(1, 0), (1, 1), (1, 0.4), (0.3, 1.5), (0, 1)])
def test_dual_stream_is_ip_adapter(dual, weights):
    out = dual.run([weights])
    assert difference(out, dual.diffusers(*weights)) < 1e-5
    assert difference(out, dual.diffusers(weights[0] + 0.2, weights[1])) > 1e-2
    assert difference(out, dual.diffusers(weights[0], weights[1] + 0.2)) > 1e-2
    if weights[0]:
        assert difference(out, dual.diffusers(*weights, text=dual.text.flip(0))) > 1e-2


def test_weights_enter_before_the_output_projection(dual):
    """out(a, b) - bias is linear in a and b; weights after the projection would scale the bias too."""
    bias = dual.layer.to_out[0].bias
    both, text, image = (dual.run([weights]) - bias for weights in ((0.7, 1.6), (1, 0), (0, 1)))
    assert difference(both, 0.7 * text + 1.6 * image) < 1e-5
    assert difference(both + bias, 0.7 * (text + bias) + 1.6 * (image + bias)) > 1e-2


def test_weights_per_clip_and_per_frame(dual):
    clips = torch.tensor([[[0.3, 1.2]], [[1.0, 0.5]]])
    assert (
        difference(dual.run(clips), dual.run(clips.expand(-1, FRAMES, -1))) < 1e-6
    )  # equal ones are the constant
    ramp = torch.stack([torch.linspace(0, 1, FRAMES), torch.linspace(2, 0.5, FRAMES)], -1)[None]
    out = dual.run(ramp)
    for frame in range(FRAMES):
        assert difference(out[:, frame], dual.run(ramp[:, frame])[:, frame]) < 1e-5
    assert difference(out, dual.run(ramp.flip(1))) > 1e-2


def test_tokens_per_frame(dual):
    weights = [(0.8, 0.6)]
    shared = dual.run(weights)
    text = dual.text[:, None].expand(-1, FRAMES, -1, -1)
    image = dual.image[:, None].expand(-1, FRAMES, -1, -1)
    assert difference(shared, dual.run(weights, text=text)) < 1e-5
    assert difference(shared, dual.run(weights, image=image)) < 1e-5
    other = text.clone()
    other[:, 2] += 1
    changed = (shared - dual.run(weights, text=other, image=image)).abs().amax((0, 2, 3))
    assert changed[2] > 1e-2 and changed[[0, 1, 3, 4]].max() < 1e-5


def test_level_weights_act_at_their_level_only(dual):
    levels = {2: (0.5, 3.0), 4: (0, 1), 8: (1, 0)}
    plain = dual.run([(0.8, 0.6)])
    assert torch.equal(dual.run([(0.8, 0.6)], 1, levels), plain)
    assert difference(dual.run([(0.8, 0.6)], 2, levels), dual.run([(0.4, 1.8)])) < 1e-5
    for factor, weights in ((4, (0, 0.6)), (8, (0.8, 0))):  # and a zero skips the stream
        assert torch.equal(dual.run([(0.8, 0.6)], factor, levels), dual.run([weights]))
        dual.run([(0.8, 0.6)], factor, levels)
        assert dual.calls == 1
    assert difference(plain, dual.run([(0.8, 0.6)], 2, levels)) > 1e-2


def test_without_any_stream_the_bias_remains(dual):
    out = dual.run([(0, 0)], text=None, image=None)
    assert dual.calls == 0 and torch.equal(out, dual.layer.to_out[0].bias.expand_as(out))


# Reference frames


def test_24_frames_have_the_papers_pyramid():
    expected = {8: 3, 4: 6, 2: 12, 1: 24}
    assert {r: len(reference_frames(24, r)) for r in expected} == expected
    assert reference_frames(24, 8).tolist() == [4, 12, 20]
    assert reference_frames(24, 1).tolist() == list(range(24))


@pytest.mark.parametrize("segment_frames", [8, 4, 2, 1])
def test_one_reference_frame_in_each_segment(segment_frames):
    for frames in range(1, 201):
        n = math.ceil(frames / segment_frames)
        centre = reference_frames(frames, segment_frames)
        assert (
            centre.tolist()
            == centres(frames, segment_frames)
            == reference_frames(frames, segment_frames).tolist()
        )
        drawn = reference_frames(frames, segment_frames, torch.Generator().manual_seed(frames))
        again = reference_frames(frames, segment_frames, torch.Generator().manual_seed(frames))
        assert torch.equal(drawn, again)
        for chosen in (centre.tolist(), drawn.tolist()):
            assert len(chosen) == n
            assert all(j * frames // n <= frame < (j + 1) * frames // n for j, frame in enumerate(chosen))


def test_drawn_reference_frames_are_uniform_in_their_segment():
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [reference_frames(20, 8, generator) for _ in range(6000)]
    )  # segments of 6, 7 and 7 frames
    for j, segment in enumerate((range(0, 6), range(6, 13), range(13, 20))):
        shares = torch.bincount(draws[:, j], minlength=20) / len(draws)
        assert shares.nonzero().flatten().tolist() == list(segment)
        assert (
            difference(shares[segment.start : segment.stop], torch.tensor(1 / len(segment))) < 0.02
        )  # 4 deviations


# Conditioning


def test_conditioning_joins_per_clip_and_per_frame_fields():
    plain = Conditioning(randn(1, 7, CONTEXT), None, torch.tensor([[1.0, 0.0]]))
    frames = Conditioning(
        randn(2, FRAMES, 7, CONTEXT),
        randn(2, 4, CONTEXT),
        torch.tensor([[1.0, 0.5]]).expand(2, 2).contiguous(),
    )
    joined = cat([plain, frames])
    assert plain.frames is None and joined.frames == FRAMES and joined.clips == 3
    assert torch.equal(joined.text[0], plain.text[0].expand(FRAMES, -1, -1)) and torch.equal(
        joined.text[1:], frames.text
    )
    assert not joined.image[0].any() and torch.equal(joined.image[1:], frames.image)
    assert torch.equal(joined.weights, torch.cat([plain.weights, frames.weights]))
    assert joined.to(dtype=torch.bfloat16).weights.dtype == torch.float32


def test_conditioning_that_disagrees_is_refused():
    text, weights = randn(2, 7, CONTEXT), torch.ones(2, 2)
    for fields in (
        {"image": randn(3, 4, CONTEXT)},  # clips
        {"image": randn(4, CONTEXT)},  # dimensions
        {"weights": torch.ones(2, 3)},  # streams
        {"text": randn(2, 5, 7, CONTEXT), "weights": torch.ones(2, 4, 2)},  # frames
    ):
        with pytest.raises(ValueError, match="got"):
            Conditioning(**({"text": text, "image": None, "weights": weights} | fields))
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="image_weight must be a finite number"):
            check_weights(1.0, bad)

"""Attention over time in windows inside the layers, against loops over frames."""

import dataclasses
from pathlib import Path

import pytest
import reference
import torch
from reference import RELATIVE, SMALL, PlainUniVid, centres, difference, randn, randomize
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from univid import generate, load
from univid.blocks import SpatialTransformer
from univid.conditioning import Conditioning
from univid.pipeline import Clip, Sampling
from univid.presets import PAPER
from univid.steer import FrameWindows, Steering
from univid.unet import UNet

TIMESTEPS, TEXT, IMAGE = torch.tensor([3, 800]), randn(2, 7, 48, seed=1), randn(2, 6, 40, seed=2)
PROMPT = "a red circle moves left on a black background"
WINDOWS = [(4, 1), (4, 3), (5, 2), (3, 3)]  # of 9 frames; the last ones but (5, 2) and (4, 1) end unevenly


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def unet():
    """Two levels are enough for every kind of layer, and their factors are 1 and 2."""
    config = dataclasses.replace(
        SMALL,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(True, True),
        temporal=dataclasses.replace(SMALL.temporal, conv_kernels=(3, 5), segment_frames=(3, 2)),
    )
    return randomize(UNet(config))


def predict(unet, x, windows=None, **options):
    cond = Conditioning(TEXT, IMAGE if unet.config.image_stream else None, torch.tensor([[1.0, 0.7]] * 2))
    if not unet.config.image_stream:
        cond = Conditioning(TEXT, None, torch.tensor([[1.0, 0.0]] * 2))
    return unet(x, TIMESTEPS, cond, steering=Steering(windows=windows), **options)


# Loops, frame by frame


def firsts(frames, length, stride):
    found, first = [], 0
    while first + length < frames:
        found.append(first)
        first += stride
    return [*found, frames - length]


def averaged(frames, length, stride, answer):
    """answer(first, i): of the window that begins at `first`, for frame i."""
    out = []
    for i in range(frames):
        total, weights = 0, 0
        for first in firsts(frames, length, stride):
            if first <= i < first + length:
                weight = min(i - first + 1, first + length - i)
                total, weights = total + weight * answer(first, i), weights + weight
        out.append(total / weights)
    return torch.stack(out)


@pytest.fixture
def in_windows(monkeypatch):
    """Give the loops of reference.py windows."""
    attend, temporal, pst = reference.attend, reference.temporal_attention, reference.pst_attention

    def patch(length, stride, references):
        def attend_in_windows(q, k, v, heads):
            def answer(first, i):
                window = slice(first, first + length)
                return attend(q[i : i + 1], k[window], v[window], heads)[0]

            return averaged(len(q), length, stride, answer)

        def temporal_in_windows(x, layer, places=None):
            monkeypatch.setattr(reference, "attend", attend_in_windows)
            try:
                return temporal(x, layer, places)
            finally:
                monkeypatch.setattr(reference, "attend", attend)

        def pst_in_windows(x, indices, layer):
            if references == "clip":
                return pst(x, indices, layer)
            segment = round(x.shape[1] / len(indices))  # 3 or 2 of the 9 frames
            answers = {
                first: pst(x[:, first : first + length], centres(length, segment), layer)
                for first in firsts(x.shape[1], length, stride)
            }
            return averaged(
                x.shape[1], length, stride, lambda first, i: answers[first][:, i - first]
            ).transpose(0, 1)

        monkeypatch.setattr(reference, "temporal_attention", temporal_in_windows)
        monkeypatch.setattr(reference, "pst_attention", pst_in_windows)

    return patch


def plain(unet, x):
    config = unet.config
    references = {
        f: centres(x.shape[2], n) for f, n in zip((1, 2), config.temporal.segment_frames, strict=True)
    }
    return PlainUniVid(unet)(x, TIMESTEPS, TEXT, IMAGE, 0.7, references)


@pytest.mark.parametrize("references", ["window", "clip"])
@pytest.mark.parametrize(("length", "stride"), WINDOWS)
def test_the_whole_network_is_the_plain_one_in_windows(unet, in_windows, length, stride, references):
    x = randn(2, 4, 9, 4, 6)
    out = predict(unet, x, FrameWindows(length, stride, references))
    whole = predict(unet, x)
    assert difference(whole, plain(unet, x)) < 2e-5
    in_windows(length, stride, references)
    assert difference(out, plain(unet, x)) < 2e-5
    assert difference(out, whole) > 1e-2  # the loops tell windows from none
    other = "clip" if references == "window" else "window"
    assert difference(out, predict(unet, x, FrameWindows(length, stride, other))) > 1e-3
    assert difference(out, predict(unet, x, FrameWindows(length, length - 1, references))) > 1e-3 or (
        stride == length - 1
    )


def test_a_relatives_temporal_attention_is_the_loop():
    unet = randomize(UNet(RELATIVE))
    layer = next(m for m in unet.modules() if isinstance(m, SpatialTransformer)).temporal
    attn, x = layer.transformer_blocks[0].attn2, randn(3, 9, 32)
    out = attn(x, windows=FrameWindows(4, 3))
    for position in range(3):
        q, k, v = (x[position] @ to.weight.T for to in (attn.to_q, attn.to_k, attn.to_v))

        def answer(first, i, q=q, k=k, v=v):
            window = slice(first, first + 4)
            return reference.attend(q[i : i + 1], k[window], v[window], attn.heads)[0]

        assert difference(out[position], attn.to_out[0](averaged(9, 4, 3, answer))) < 1e-5
    clip = randn(2, 4, 9, 8, 8)
    whole, parts = predict(unet, clip), predict(unet, clip, FrameWindows(4, 3))
    assert difference(whole, parts) > 1e-2
    assert torch.equal(predict(unet, clip, FrameWindows(9, 2)), whole)


# Neutral


def test_a_window_as_long_as_the_clip_is_the_plain_model(unet):
    for dtype in (torch.float32, torch.bfloat16):
        net, x = unet.to(dtype), randn(2, 4, 5, 4, 6).to(dtype)
        cond = Conditioning(TEXT, IMAGE, torch.tensor([[1.0, 0.7]] * 2)).to(dtype=dtype)
        whole = net(x, TIMESTEPS, cond)
        for references in ("window", "clip"):
            steering = Steering(windows=FrameWindows(5, 2, references))
            assert torch.equal(net(x, TIMESTEPS, cond, steering=steering), whole)
        assert not torch.equal(net(x, TIMESTEPS, cond, steering=Steering(windows=FrameWindows(4, 2))), whole)
    unet.float()


# The windows themselves


@pytest.mark.parametrize(
    ("frames", "length", "stride"), [(9, 4, 1), (9, 4, 3), (36, 12, 5), (7, 7, 2), (8, 2, 2)]
)
def test_shares_are_pyramids_that_add_up_to_one(frames, length, stride):
    windows = FrameWindows(length, stride)
    starts = windows.starts(frames)
    assert starts == firsts(frames, length, stride)
    shares = windows.shares(frames)
    assert shares.shape == (len(starts), frames) and torch.allclose(shares.sum(0), torch.ones(frames))
    for frame in range(frames):
        weights = [max(0, min(frame - a + 1, a + length - frame)) for a in starts]
        assert torch.allclose(shares[:, frame], torch.tensor(weights) / sum(weights))


def test_two_half_overlapping_windows_cross_on_a_line():
    """Of 6 frames in windows of 4: (3, 1)/4 and so on, by hand."""
    expected = torch.tensor([[1, 1, 2 / 3, 1 / 3, 0, 0], [0, 0, 1 / 3, 2 / 3, 1, 1]])
    assert torch.allclose(FrameWindows(4, 2).shares(6), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_constant_answer_stays_it_in_its_type(dtype):
    out = FrameWindows(4, 3).averaged(lambda part: torch.full((2, 4, 3), 1.7, dtype=dtype), 9)
    assert out.shape == (2, 9, 3) and out.dtype == dtype
    assert torch.allclose(out, torch.full_like(out, 1.7), atol=1e-6 if dtype.itemsize > 2 else 1e-2)


def test_half_precision_is_near_single(unet):
    x = randn(2, 4, 9, 4, 6)
    expected = predict(unet, x, FrameWindows(4, 3))
    cond = Conditioning(TEXT, IMAGE, torch.tensor([[1.0, 0.7]] * 2)).to(dtype=torch.bfloat16)
    steering = Steering(windows=FrameWindows(4, 3))
    out = unet.bfloat16()(x.bfloat16(), TIMESTEPS, cond, steering=steering)
    unet.float()
    assert out.dtype == torch.bfloat16 and difference(out.float(), expected) < 0.1


def test_everything_is_on_the_network_s_device(unet):
    """A tensor elsewhere would be refused there."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        net = UNet(unet.config, device="cuda")
        x = torch.empty(2, 4, 9, 8, 8, device="cuda")
        cond = Conditioning(torch.empty(2, 7, 48), torch.empty(2, 6, 40), torch.ones(2, 2)).to("cuda")
        steps, steering = (
            torch.empty(2, dtype=torch.long, device="cuda"),
            Steering(windows=FrameWindows(4, 3)),
        )
        out = net(x, steps, cond, streams=(True, True), steering=steering)
        assert out.device.type == "cuda" and out.shape == x.shape


# Bad input


@pytest.mark.parametrize(
    ("length", "stride", "references", "words"),
    [
        (1, 1, "window", "at least 2 frames, got 1"),
        (4, 0, "window", "from 1 to their 4 frames, got 0"),
        (4, 5, "window", "from 1 to their 4 frames, got 5"),
        (4, 2, "all", "'window' or of the 'clip', got 'all'"),
    ],
)
def test_windows_that_are_none_are_refused(length, stride, references, words):
    with pytest.raises(ValueError, match=words):
        FrameWindows(length, stride, references)


@pytest.mark.parametrize("frames", [1, 4])
def test_a_clip_shorter_than_a_window_is_refused(unet, frames):
    with pytest.raises(ValueError, match=f"at least 5 frames.*got {frames}"):
        predict(unet, randn(2, 4, frames, 4, 6), FrameWindows(5, 2))


# The library


@pytest.fixture(scope="module")
def model(small_checkpoint):
    return load(small_checkpoint, dtype=torch.float32)


def test_they_reach_the_network(model):
    def make(**sampling):
        return generate(model, PROMPT, clip=Clip(frames=6), sampling=Sampling(**sampling))

    whole = make()
    assert torch.equal(make(steering=Steering(windows=FrameWindows(6, 2)), free_noise=True), whole)
    windows = Steering(windows=FrameWindows(3, 2))
    parts, free = make(steering=windows), make(steering=windows, free_noise=True)
    assert not torch.equal(parts, whole) and not torch.equal(free, parts)
    # a number of reference frames is a window's: all of its 3 at every level
    assert torch.equal(make(steering=windows, references={8: 3}), parts)
    assert not torch.equal(make(steering=windows, references={1: 3}), parts)
    with pytest.raises(ValueError, match=r"at least 7 frames.*got 6"):
        make(steering=Steering(windows=FrameWindows(7, 2)))
    with pytest.raises(ValueError, match="FreeNoise needs windows"):
        make(free_noise=True)


@pytest.mark.slow
def test_the_help_page_says_what_windows_cost():
    page = (Path(__file__).parents[1] / "nodes/web/docs/UniVidFreeNoise.md").read_text("utf-8")
    cases = {"without this node": None} | {f"`stride` {s}": FrameWindows(24, s) for s in (24, 12, 6, 3)}
    with torch.device("meta"):
        unet = UNet(PAPER.unet)
        cond = Conditioning(
            torch.empty(1, 77, 1024), torch.empty(1, 257, 1280), torch.ones(1, 2, device="cpu")
        )
        for words, windows in cases.items():
            counts = []
            for frames in (48, 96):
                with FlopCounterMode(display=False) as counter:
                    unet(
                        torch.empty(1, 4, frames, 40, 72),
                        torch.empty(1),
                        cond,
                        steering=Steering(windows=windows),
                    )
                counts.append(f"{counter.get_total_flops() / 1e12:.1f}")
            assert f"| {words} | {' | '.join(counts)} |" in page

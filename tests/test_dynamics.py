"""Dynamics and temporal guidance, against attention written as loops and the formulas by hand."""

import dataclasses
import math

import pytest
import torch
from reference import RELATIVE, SMALL, difference, randn, randomize

from univid import Sampling, generate, load
from univid.conditioning import Conditioning
from univid.diffusion import Denoiser, NoiseSchedule
from univid.guidance import Joint, Nested, Separate
from univid.layers import SelfAttention
from univid.presets import FAMILY, TINY
from univid.samplers import sigma_schedule
from univid.steer import Dynamics, Steering, dynamics
from univid.steer.run import Run, check_steering
from univid.unet import UNet

NARROW = dataclasses.replace(
    SMALL, num_res_blocks=1, channel_mult=(1, 1, 2, 2),
    temporal=dataclasses.replace(SMALL.temporal, position=TINY.unet.temporal.position),
)  # fmt: skip
FRAMES, TIMESTEPS = 5, torch.tensor([3, 800])
TEXT, IMAGE = randn(2, 7, 48, seed=1), randn(2, 6, 40, seed=2)
PROMPT = "a red circle moves left"


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def unet():
    return randomize(UNet(NARROW))


@pytest.fixture(scope="module")
def relative():
    return randomize(UNet(RELATIVE))


@pytest.fixture(scope="module")
def model(small_checkpoint):
    return load(small_checkpoint, dtype=torch.float32)


def conditions(text=TEXT, image=IMAGE, weights=((1.0, 0.6), (0.7, 1.0)), **fields):
    return Conditioning(text=text, image=image, weights=torch.tensor(weights), **fields)


def video(seed=0, clips=2):
    return randn(clips, 4, FRAMES, 8, 8, seed=seed)


def by_loops(q, k, v, heads, sigma):
    """Softmax over the frames of q k / sqrt(d) and its largest times the Gaussian of the distance."""
    out = torch.zeros_like(v)
    width = q.shape[-1] // heads
    for s in range(len(q)):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            for i in range(q.shape[1]):
                logits = [
                    (q[s, i, part] @ k[s, j, part]).item() / math.sqrt(width) for j in range(k.shape[1])
                ]
                top = max(logits)
                logits = [x + top * math.exp(-((i - j) ** 2) / (2 * sigma**2)) for j, x in enumerate(logits)]
                shares = [math.exp(x - max(logits)) for x in logits]
                out[s, i, part] = sum(p * v[s, j, part] for j, p in enumerate(shares)) / sum(shares)
    return out


@pytest.mark.parametrize("sigma", [0.5, 2.0])
@pytest.mark.parametrize("pairs", [1, dynamics.PAIRS])
def test_attention_is_the_formula(sigma, pairs, monkeypatch):
    monkeypatch.setattr(dynamics, "PAIRS", pairs)
    q, k, v = (randn(3, FRAMES, 8, seed=seed) for seed in range(3))
    near = Dynamics(sigma).nearness(FRAMES + 2)  # the frames of a window take a corner
    out = dynamics.attention(q, k, v, 2, near)
    assert difference(out, by_loops(q, k, v, 2, sigma)) < 1e-5
    assert difference(out, by_loops(q, k, v, 2, sigma + 0.3)) > 1e-3


def test_without_distance_it_is_plain_attention():
    """Logits that all get the same number give the same shares."""
    from univid.attention import attention

    q, k, v = (randn(3, FRAMES, 8, seed=seed) for seed in range(3))
    assert (
        difference(dynamics.attention(q, k, v, 2, Dynamics(1e6).nearness(FRAMES)), attention(q, k, v, 2))
        < 1e-5
    )
    assert (
        difference(dynamics.attention(q, k, v, 2, Dynamics(1.0).nearness(FRAMES)), attention(q, k, v, 2))
        > 0.1
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    """Products of 70,000 are more than float16 holds."""
    q, k, v = (randn(3, FRAMES, 8, seed=seed) * scale for seed, scale in enumerate((300, 300, 1)))
    near = Dynamics(1.0).nearness(FRAMES)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    out = dynamics.attention(q, k, v, 2, near)
    assert out.dtype == dtype
    assert difference(out.float(), dynamics.attention(q.float(), k.float(), v.float(), 2, near)) < 2e-2


def over_time(unet):
    """Self-attentions along time, by level."""
    return [
        (layer.factor, part)
        for layer in unet.modules()
        if hasattr(layer, "factor") and hasattr(layer, "norm") and hasattr(layer, "proj_out")
        for part in layer.modules()
        if isinstance(part, SelfAttention)
    ]


@pytest.mark.parametrize("name", ["unet", "relative"])
def test_it_acts_at_the_two_finest_levels(name, request):
    unet, image = request.getfixturevalue(name), IMAGE if name == "unet" else None
    weights = ((1.0, 0.6), (0.7, 1.0)) if image is not None else ((1.0, 0.0), (0.7, 0.0))
    cond, x = conditions(image=image, weights=weights), video()
    steered = unet(x, TIMESTEPS, cond, steering=Steering(dynamics=Dynamics(0.7)))
    layers, before = over_time(unet), {}
    assert {factor for factor, _ in layers} == {1, 2, 4, 8}

    def run(levels):
        for factor, layer in layers:
            if factor in levels:
                before[layer] = layer.attention
                layer.attention = lambda q, k, v, heads: by_batches(q, k, v, heads)
        try:
            return unet(x, TIMESTEPS, cond)
        finally:
            for layer, function in before.items():
                layer.attention = function

    def by_batches(q, k, v, heads):  # the formula once more, in another way: a mask of PyTorch's own kernel
        place = torch.arange(FRAMES).float()
        near = torch.exp(-((place[None] - place[:, None]) ** 2) / (2 * 0.7**2))
        split = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v)]
        scores = torch.einsum("shid,shjd->shij", *split[:2]) / split[0].shape[-1] ** 0.5
        mask = scores.max(-1, keepdim=True).values * near
        out = torch.nn.functional.scaled_dot_product_attention(*split, attn_mask=mask)
        return out.transpose(1, 2).flatten(2)

    assert difference(steered, run((1, 2))) < 1e-4
    assert difference(steered, run((1, 2, 4))) > 1e-3
    assert difference(steered, unet(x, TIMESTEPS, cond)) > 1e-2


def test_it_acts_in_the_first_share_of_the_progress(model):
    denoiser = model.denoiser()
    run = Run(denoiser, Steering(dynamics=Dynamics(1.0, share=0.5)))
    sigmas = sigma_schedule("sgm_uniform", denoiser.schedule, 8, 1.0)[:-1]
    acting = [run.at(sigma)[0].network.args[0].dynamics is not None for sigma in sigmas]
    assert acting == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    "steering",
    [Steering(), Steering(dynamics=Dynamics(1.0, share=0.0)), Steering(temporal_guidance=0.0)],
    ids=str,
)
def test_neutral_settings_are_the_plain_model(model, steering):
    plain = generate(model, PROMPT, sampling=Sampling(steps=2))
    assert torch.equal(plain, generate(model, PROMPT, sampling=Sampling(steps=2, steering=steering)))


@pytest.mark.parametrize(
    "steering",
    [Steering(dynamics=Dynamics(0.6, share=1.0)), Steering(temporal_guidance=1.0)],
    ids=["dynamics", "guidance"],
)
def test_generate_takes_them(model, steering):
    plain, other = (
        generate(model, PROMPT, sampling=Sampling(steps=2, steering=s)) for s in (Steering(), steering)
    )
    assert not torch.equal(plain, other)  # what it does to the network is above


# Temporal guidance


@pytest.mark.parametrize("name", ["unet", "relative"])
@pytest.mark.parametrize("per_frame", [False, True])
def test_alone_every_frame_is_a_clip_of_its_own(name, per_frame, request):
    unet = request.getfixturevalue(name)
    text, image, weights = TEXT, IMAGE, torch.tensor([[1.0, 0.6], [0.7, 1.0]])
    if per_frame:
        text, image = (randn(2, FRAMES, n, d, seed=n) for n, d in ((7, 48), (6, 40)))
        weights = torch.rand(2, FRAMES, 2, generator=torch.Generator().manual_seed(0))
    if name == "relative":
        image, weights = None, weights * torch.tensor([1.0, 0.0])

    def of(tensor, frame):
        return tensor[:, frame : frame + 1] if per_frame and tensor is not None else tensor

    x = video()
    alone = unet(x, TIMESTEPS, Conditioning(text, image, weights), alone=True)
    for frame in range(FRAMES):
        cond = Conditioning(of(text, frame), of(image, frame), of(weights, frame))
        assert (
            difference(alone[:, :, frame : frame + 1], unet(x[:, :, frame : frame + 1], TIMESTEPS, cond))
            < 1e-4
        )
    assert difference(alone, unet(x, TIMESTEPS, Conditioning(text, image, weights))) > 1e-2


@pytest.mark.parametrize("guider", [Joint(3.0, 0.5), Separate(3.0, 2.0), Nested(3.0, 2.0)], ids=str)
def test_temporal_guidance_is_the_formula(unet, guider):
    schedule = NoiseSchedule(FAMILY.schedule)
    denoiser = Denoiser(unet, schedule, "eps")
    cond = conditions(weights=((1.0, 0.6), (0.0, 1.0)))  # one clip without text
    uncond = Conditioning(text=randn(2, 7, 48, seed=9), image=None, weights=torch.tensor([[1.0, 0.0]] * 2))
    x, sigma = 5 * video(), torch.tensor(4.0)
    now, temporal = Run(denoiser, Steering(temporal_guidance=0.8)).at(sigma)
    out = guider(now, x, sigma, cond, uncond, temporal)
    guided, full = guider(denoiser, x, sigma, cond, uncond), denoiser(x, sigma, cond)
    frames = [denoiser(x[:, :, f : f + 1], sigma, cond) for f in range(FRAMES)]
    expected = guided + 0.8 * (full - torch.cat(frames, 2))
    size = expected.abs().max()
    assert difference(out, expected) < 1e-4 * size
    assert difference(out, guided) > 1e-2 * size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(unet, dtype):
    low = UNet(NARROW)
    low.load_state_dict(unet.state_dict())
    low.to(dtype)
    cond = conditions()
    for how in ({"steering": Steering(dynamics=Dynamics(0.7))}, {"alone": True}):
        full = unet(video(), TIMESTEPS, cond, **how)
        out = low(video().to(dtype), TIMESTEPS, cond.to(dtype=dtype), **how)
        assert out.dtype == dtype
        assert difference(out.float(), full) < (0.05 if dtype == torch.float16 else 0.3)


# Bad input


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_a_sigma_that_is_no_distance_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma of dynamics must be a finite number of frames above 0, got"):
        Dynamics(sigma)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_beyond_the_whole_is_refused(share):
    with pytest.raises(ValueError, match="share of dynamics must be between 0 and 1, got"):
        Dynamics(1.0, share)


@pytest.mark.parametrize("scale", [-1.0, math.inf, math.nan])
def test_temporal_guidance_below_0_is_refused(scale):
    with pytest.raises(ValueError, match="temporal guidance must be a finite number of at least 0, got"):
        Steering(temporal_guidance=scale)


def test_dynamics_need_attention_over_time():
    still = dataclasses.replace(NARROW, temporal=dataclasses.replace(NARROW.temporal, attention=False))
    check_steering(Steering(dynamics=Dynamics(1.0)), NARROW)
    with pytest.raises(ValueError, match="this model has no attention over time"):
        check_steering(Steering(dynamics=Dynamics(1.0)), still)

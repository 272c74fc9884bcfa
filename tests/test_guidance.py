"""Guidance against plain formulas that call the denoiser once a branch."""

import dataclasses

import pytest
import torch

from univid.conditioning import Conditioning
from univid.diffusion import Denoiser, NoiseSchedule
from univid.guidance import GUIDERS, Joint, Nested, Separate
from univid.presets import SD21_SCHEDULE

SCHEDULE = NoiseSchedule(SD21_SCHEDULE)
FRAMES = 3
X = torch.randn(2, 4, FRAMES, 5, 6, generator=torch.Generator().manual_seed(0)) * 3
SIGMA = SCHEDULE.sigmas[torch.tensor([600, 300])]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


class RandomNetwork:
    """A dual stream in miniature: text and image change the video by their weights, clip by clip."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.text, self.image = torch.randn(2, 8, 4, generator=generator)
        self.batches = []

    def __call__(self, x_t, timesteps, cond):
        self.batches.append(len(x_t))
        levels = torch.tensor(cond.level_weights.get(1, (1.0, 1.0)))
        stream = self.tokens(cond.text, self.text, 0, cond, levels)
        if cond.image is not None:
            stream = stream + self.tokens(cond.image, self.image, 1, cond, levels)
        stream = stream.permute(0, 2, 1)[..., None, None]  # [b c t 1 1]
        return torch.tanh(x_t + stream) + 0.3 * x_t * stream + timesteps.reshape(-1, 1, 1, 1, 1) / 1000

    @staticmethod
    def tokens(tokens, matrix, index, cond, levels):
        weights = cond.weights if cond.weights.dim() == 3 else cond.weights[:, None].expand(-1, FRAMES, -1)
        tokens = tokens if tokens.dim() == 4 else tokens[:, None]  # [b t n d]
        return (tokens @ matrix).tanh().mean(2) * weights[..., index, None] * levels[index]


@pytest.fixture
def network():
    return RandomNetwork()


@pytest.fixture
def denoiser(network):
    return Denoiser(network, SCHEDULE, "v")


def conditions(weights=((1.0, 0.7), (0.8, 1.3)), image=True, **options):
    generator = torch.Generator().manual_seed(2)
    text, empty = torch.randn(2, 2, 5, 8, generator=generator)
    tokens = torch.randn(2, 7, 8, generator=generator) if image else None
    cond = Conditioning(text, tokens, torch.tensor(weights), **options)
    return cond, Conditioning(empty, None, torch.tensor([[1.0, 0.0]] * 2))


def with_image(cond, text, weights):
    return Conditioning(text, cond.image, weights, cond.level_weights)


def branches(denoiser, cond, uncond, x=X, sigma=SIGMA):
    """Every branch by a call of its own, for conditions with both weights above zero."""
    text_only, image_only = cond.weights.clone(), cond.weights.clone()
    text_only[..., 1], image_only[..., 0] = 0, 1
    uncond = dataclasses.replace(uncond, level_weights=cond.level_weights)
    e0 = denoiser(x, sigma, uncond)
    e_t = denoiser(x, sigma, with_image(cond, cond.text, text_only))
    e_i = denoiser(x, sigma, with_image(cond, uncond.text, image_only))
    return e0, e_t, e_i, denoiser(x, sigma, cond)


def per_frame(weights):
    return torch.tensor(weights).reshape(2, 1, 2) * torch.linspace(0.5, 1.5, FRAMES).reshape(1, -1, 1)


VARIANTS = {
    "per clip": {},
    "per frame": {"weights": per_frame([[1.0, 0.7], [0.8, 1.3]]).tolist()},
    "per level": {"level_weights": {1: (0.5, 2.0)}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_guiders_are_their_formulas_in_one_call(variant, network, denoiser):
    cond, uncond = conditions(**VARIANTS[variant])
    e0, e_t, e_i, e_ti = branches(denoiser, cond, uncond)
    cases = [
        (Joint(7.5), e0 + 7.5 * (e_ti - e0), 2),
        (Separate(5.0, 2.0), e0 + 5 * (e_t - e0) + 2 * (e_i - e0), 3),
        (Nested(5.0, 2.0), e0 + 2 * (e_i - e0) + 5 * (e_ti - e_i), 3),
    ]
    for guider, expected, count in cases:
        network.batches.clear()
        guided = guider(denoiser, X, SIGMA, cond, uncond)
        assert network.batches == [2 * count]
        torch.testing.assert_close(guided, expected, **CLOSE)
        assert not torch.allclose(guided, e_ti, atol=0.1)
    # Other weights give another video.
    other = cond.scaled(1, 0.5)
    assert not torch.allclose(Joint(7.5)(denoiser, X, SIGMA, other, uncond), cases[0][1], atol=0.1)


@pytest.mark.parametrize(
    "guider, branch",
    [
        (Joint(1.0), 3),
        (Nested(1.0, 1.0), 3),
        (Nested(1.0, 1.0, rescale=0.7), 3),
        (Joint(0.0), 0),
        (Separate(0.0, 0.0, rescale=0.5), 0),
        (Separate(1.0, 0.0), 1),
        (Separate(0.0, 1.0), 2),
        (Nested(0.0, 1.0), 2),
    ],
)
def test_neutral_guidance_is_one_branch_bit_for_bit(guider, branch, network, denoiser):
    cond, uncond = conditions(level_weights={1: (0.5, 2.0)})
    expected = branches(denoiser, cond, uncond)[branch]
    network.batches.clear()
    assert torch.equal(guider(denoiser, X, SIGMA, cond, uncond), expected)
    assert network.batches == [2]


@pytest.mark.parametrize(
    "guider, count",
    [
        (Separate(3.0, 0.0), 2),
        (Separate(0.3, 0.7), 2),  # the coefficient of e0 vanishes
        (Nested(2.0, 2.0), 2),
        (Nested(0.0, 3.0), 2),
        (Nested(3.0, 1.0), 2),  # 1 - 1 e0
    ],
)
def test_branches_without_effect_are_skipped(guider, count, network, denoiser):
    cond, uncond = conditions()
    e0, e_t, e_i, e_ti = branches(denoiser, cond, uncond)
    if isinstance(guider, Separate):
        expected = e0 + guider.text * (e_t - e0) + guider.image * (e_i - e0)
    else:
        expected = e0 + guider.image * (e_i - e0) + guider.text * (e_ti - e_i)
    network.batches.clear()
    torch.testing.assert_close(guider(denoiser, X, SIGMA, cond, uncond), expected, **CLOSE)
    assert network.batches == [2 * count]


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("guider", [Joint(4.0), Separate(4.0, 2.0), Nested(4.0, 2.0)])
def test_without_image_weight_all_guiders_are_text_guidance(guider, image, network, denoiser):
    cond, uncond = conditions(weights=[[1.0, 0.0], [0.6, 0.0]], image=image)
    e0, e_t = denoiser(X, SIGMA, uncond), denoiser(X, SIGMA, cond)
    network.batches.clear()
    torch.testing.assert_close(guider(denoiser, X, SIGMA, cond, uncond), e0 + 4 * (e_t - e0), **CLOSE)
    assert network.batches == [4]


@pytest.mark.parametrize("guider", [Joint(2.0), Separate(4.0, 2.0), Nested(4.0, 2.0)])
def test_without_text_weight_all_guiders_are_image_guidance(guider, network, denoiser):
    cond, uncond = conditions(weights=[[0.0, 1.0], [0.0, 0.6]])
    e0, e_i = denoiser(X, SIGMA, uncond), denoiser(X, SIGMA, cond)
    network.batches.clear()
    torch.testing.assert_close(guider(denoiser, X, SIGMA, cond, uncond), e0 + 2 * (e_i - e0), **CLOSE)
    assert network.batches == [4]


def clip(value, i):
    names = ("text", "image", "weights")
    parts = {name: getattr(value, name) for name in names}
    return dataclasses.replace(value, **{n: t if t is None else t[i : i + 1] for n, t in parts.items()})


@pytest.mark.parametrize("guider", [Joint(4.0, 0.3), Separate(4.0, 2.0, 0.3), Nested(4.0, 2.0, 0.3)])
@pytest.mark.parametrize("first", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_clip_of_a_batch_is_the_clip_alone(guider, first, denoiser):
    cond, uncond = conditions(weights=[first, (0.9, 0.8)])
    batch = guider(denoiser, X, SIGMA, cond, uncond)
    for i in range(2):
        alone = guider(denoiser, X[i : i + 1], SIGMA[i : i + 1], clip(cond, i), clip(uncond, i))
        torch.testing.assert_close(batch[i : i + 1], alone, **CLOSE)


def test_per_frame_text_and_weights_mix_with_plain_unconditional(denoiser):
    cond, uncond = conditions(weights=[[[0.0, 1.0]] * FRAMES, [[0.9, 0.8]] * FRAMES])
    frames = dataclasses.replace(cond, text=cond.text[:, None].expand(-1, FRAMES, -1, -1).clone())
    guider = Separate(4.0, 2.0)
    expected = guider(denoiser, X, SIGMA, cond, uncond)
    torch.testing.assert_close(guider(denoiser, X, SIGMA, frames, uncond), expected, **CLOSE)


def test_equal_per_frame_weights_are_the_constant(denoiser):
    cond, uncond = conditions()
    constant = cond.with_weights(cond.weights[:, None].expand(-1, FRAMES, -1))
    for guider in (Joint(4.0), Separate(4.0, 2.0), Nested(4.0, 2.0)):
        expected = guider(denoiser, X, SIGMA, cond, uncond)
        torch.testing.assert_close(guider(denoiser, X, SIGMA, constant, uncond), expected, **CLOSE)


def test_scalar_sigma(denoiser):
    cond, uncond = conditions()
    scalar = Joint(4.0, 0.5)(denoiser, X, SIGMA[0], cond, uncond)
    assert torch.equal(scalar, Joint(4.0, 0.5)(denoiser, X, SIGMA[:1].expand(2), cond, uncond))


# Rescale


def lin_et_al(v_cond, v_uncond, scale, phi):
    """Section 3.4 of 2305.08891 for one clip, in v."""
    v_cfg = v_uncond + scale * (v_cond - v_uncond)
    v_rescaled = v_cfg * v_cond.std() / v_cfg.std()
    return phi * v_rescaled + (1 - phi) * v_cfg


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale_is_lin_et_al_in_v(phi, network, denoiser):
    cond, uncond = conditions()
    guided = Joint(7.5, phi)(denoiser, X, SIGMA, cond, uncond)
    root = (SIGMA**2 + 1).sqrt()
    for i in range(2):
        x_t, timestep = X[i : i + 1] / root[i], SCHEDULE.timestep(SIGMA[i : i + 1])
        v_cond, v_uncond = (network(x_t, timestep, clip(c, i)) for c in (cond, uncond))
        v = lin_et_al(v_cond, v_uncond, 7.5, phi)
        x0 = x_t / root[i] - v * SIGMA[i] / root[i]
        torch.testing.assert_close(guided[i : i + 1], x0, **CLOSE)
        if phi == 1:
            assert v.std().item() == pytest.approx(v_cond.std().item(), rel=1e-4)
    assert torch.equal(guided, Joint(7.5)(denoiser, X, SIGMA, cond, uncond)) == (phi == 0)


def test_rescale_takes_the_most_conditioned_branch(denoiser):
    cond, uncond = conditions()
    e0, e_t, e_i, e_ti = branches(denoiser, cond, uncond)

    def v_std(x0):
        sigma = SIGMA.reshape(-1, 1, 1, 1, 1)
        return ((X - x0 * (sigma**2 + 1)) / sigma / (sigma**2 + 1).sqrt()).std((1, 2, 3, 4))

    references = {Joint(4.0, 1.0): e_ti, Nested(4.0, 2.0, 1.0): e_ti, Separate(4.0, 2.0, 1.0): e_t}
    references[Separate(0.0, 4.0, 1.0)] = e_i
    for guider, reference in references.items():
        guided = guider(denoiser, X, SIGMA, cond, uncond)
        torch.testing.assert_close(v_std(guided), v_std(reference), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", GUIDERS)
def test_bad_scales_are_refused(name, value):
    guider = GUIDERS[name]
    for field in dataclasses.fields(guider):
        arguments = {f.name: 1.0 for f in dataclasses.fields(guider)} | {field.name: value}
        with pytest.raises(ValueError, match=f"{field.name} must be"):
            guider(**arguments)
    with pytest.raises(ValueError, match="between 0 and 1, got 1.5"):
        Joint(3.0, 1.5)


@pytest.mark.parametrize("has_text", [True, False])
@pytest.mark.parametrize("has_image", [True, False])
@pytest.mark.parametrize("guider", [Joint(3.0), Separate(3.0, 2.0), Nested(3.0, 2.0), Separate(0.0, 2.0)])
def test_the_directions_lead_where_the_plan_does(guider, has_text, has_image):
    """e0 + sum of scale (to - base) is the planned sum, and no direction leads nowhere."""
    answers = {name: torch.randn(3, generator=torch.Generator().manual_seed(i)) for i, name in
               enumerate(("e0", "T", "I", "TI"))}  # fmt: skip
    directions = guider.directions(has_text, has_image)
    walked = answers["e0"] + sum(d.scale * (answers[d.to] - answers[d.base]) for d in directions)
    planned = sum(c * answers[name] for name, c in guider.plan(has_text, has_image).items())
    assert torch.allclose(walked, planned, atol=1e-5)
    assert all(d.to != d.base and d.scale for d in directions)
    named = {name for d in directions for name in (d.to, d.base)}
    assert named <= {"e0", *("T" * has_text, "I" * has_image, "T" * has_text + "I" * has_image)}

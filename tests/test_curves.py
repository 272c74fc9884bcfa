"""Curves: their grammar, their values, and the modality weights made of them."""

import math

import pytest
import torch

from univid.curves import (
    EASINGS,
    POINTS,
    Curve,
    Weight,
    at_progress,
    from_list,
    modality_weights,
    parse,
    progress,
    resample,
)
from univid.diffusion import NoiseSchedule
from univid.presets import TINY
from univid.samplers import SAMPLERS, SIGMA_SCHEDULES, sigma_schedule


@pytest.mark.parametrize(
    "text, curve",
    [
        ("", Curve()),
        (" 0.8 ", Curve((0.8,))),
        ("1..0", Curve((1.0, 0.0))),
        ("1 .. 0  ease_in_out", Curve((1.0, 0.0), "ease_in_out")),
        ("0...5", Curve((0.0, 0.5))),
        ("0..1..0 step", Curve((0.0, 1.0, 0.0), "step")),
        ("1, 0.5,0", Curve((1.0, 0.5, 0.0), listed=True)),
        ("1 0.5\n0", Curve((1.0, 0.5, 0.0), listed=True)),
    ],
)
def test_what_a_text_means(text, curve):
    assert parse(text) == curve


@pytest.mark.parametrize(
    "text, words",
    [
        ("nan", "finite number of at least 0, got nan"),
        ("1..inf", "finite number of at least 0, got inf"),
        ("1, -0.5", "at least 0, got -0.5"),
        ("a lot", "no curve; write a number"),
        ("1..0 bouncy", "easings are linear"),
        ("1..", "no curve"),
        ("1,, 2", "no curve"),
        ("0.5 step", "belongs to a range"),
        ("1, 0 ease_in", "belongs to a range"),
    ],
)
def test_a_bad_text_is_refused_in_one_sentence(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, -1.0], ["1"], [True]])
def test_a_bad_list_is_refused(values):
    with pytest.raises(ValueError):
        from_list(values)


@pytest.mark.parametrize("easing", EASINGS)
def test_an_easing_goes_from_start_to_end_and_never_back(easing):
    values = parse(f"0.2..0.9 {easing}").sample(33)
    assert values[0] == 0.2 and values[-1] == 0.9
    assert (values.diff() >= 0).all()
    assert parse(f"0.3..0.3 {easing}").sample(7).tolist() == [0.3] * 7


def test_known_values():
    assert parse("0..1").sample(5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert parse("0..1 ease_in").sample(3).tolist() == [0, 0.25, 1]
    assert parse("0..1 ease_out").sample(3).tolist() == [0, 0.75, 1]
    assert parse("0..1 ease_in_out").sample(5).tolist() == [0, 0.15625, 0.5, 0.84375, 1]
    assert parse("0..1 step").sample(5).tolist() == [0, 0, 1, 1, 1]
    assert parse("0..1..0").sample(5).tolist() == [0, 0.5, 1, 0.5, 0]
    assert parse("0.7..0").sample(1).tolist() == [0.7]


@pytest.mark.parametrize("n", range(1, 201, 7))
def test_a_list_comes_back_exactly(n):
    values = torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).tolist()
    assert from_list(values).sample(n).tolist() == values


def test_constants_give_exactly_the_numbers():
    weights = modality_weights(Weight(0.3), Weight(1.7), frames=24)
    assert weights.dtype == torch.float32 and weights.shape == (1, 1, 2)
    assert weights.equal(torch.tensor([[[0.3, 1.7]]]))
    assert modality_weights(Weight(2, parse("0.5")), Weight(1, parse("1..1"), parse("1, 1"))).tolist() == [
        [[1, 1]]
    ]


def test_a_weight_is_the_product_of_its_curves():
    text = Weight(2.0, parse("1..0"), parse("0..1"))
    weights = modality_weights(text, Weight(0.5), frames=5)
    assert weights.shape == (5, POINTS, 2)
    expected = 2 * torch.outer(torch.linspace(1, 0, 5), torch.linspace(0, 1, POINTS))
    torch.testing.assert_close(weights[..., 0], expected)
    assert (weights[..., 1] == 0.5).all()


def test_dimensions_are_1_where_nothing_changes():
    over_frames = modality_weights(Weight(1, parse("1..0")), Weight(), frames=8)
    over_steps = modality_weights(Weight(), Weight(1, Curve(), parse("1..0")), frames=8)
    assert over_frames.shape == (8, 1, 2) and over_steps.shape == (1, POINTS, 2)
    assert modality_weights(Weight(1, parse("1..0")), Weight(), frames=1).tolist() == [[[1, 1]]]


def test_a_list_has_one_value_a_frame():
    listed = Weight(1.0, from_list([1.0, 0.5, 0.0]))
    assert modality_weights(listed, Weight())[:, 0, 0].tolist() == [1, 0.5, 0]  # and says how many frames
    assert modality_weights(Weight(1.0, from_list([0.5])), Weight(), frames=9).shape == (1, 1, 2)
    with pytest.raises(ValueError, match=r"one a frame \(4\), got 3"):
        modality_weights(listed, Weight(), frames=4)
    with pytest.raises(ValueError, match="image weights .* got 2"):
        modality_weights(listed, Weight(1.0, parse("1, 1")))
    with pytest.raises(ValueError, match="number is not known; set frames"):
        modality_weights(Weight(1.0, parse("1..0")), Weight())


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1e39])
def test_a_bad_weight_is_refused(value):
    with pytest.raises(ValueError, match="finite|too large"):
        modality_weights(Weight(value), Weight())


def test_weights_at_a_progress():
    ramp = modality_weights(Weight(1, Curve(), parse("0..1")), Weight(0.3))
    for p in (0.0, 0.123, 0.5, 0.999, 1.0):
        text, image = at_progress(ramp, torch.tensor(p))[0]
        assert text == pytest.approx(p, abs=1e-6)
        assert image == torch.tensor(0.3)
    rows = at_progress(ramp.expand(3, -1, -1), torch.tensor([0.0, 0.25, 1.0]))  # each row at its own
    torch.testing.assert_close(rows[:, 0], torch.tensor([0.0, 0.25, 1.0]))
    constant = modality_weights(Weight(0.3), Weight(0.7))
    for kept in (constant, constant.bfloat16()):
        assert at_progress(kept, torch.tensor(0.4)).equal(kept[:, 0].float())
    narrow = at_progress(ramp.bfloat16(), torch.tensor(0.9))  # the place itself is not rounded to 8 bits
    assert narrow[0, 0] == pytest.approx(0.9, abs=4e-3)


def test_resampling_gives_every_run_the_same_shape():
    constant, ramp = (
        modality_weights(Weight(0.3), Weight()),
        modality_weights(Weight(), Weight(1, Curve(), parse("1..0"))),
    )
    assert resample(ramp) is not None and resample(ramp).equal(ramp)
    assert resample(constant).shape == (1, POINTS, 2) and (resample(constant) == constant).all()
    torch.testing.assert_close(resample(ramp, 5)[0, :, 1], torch.linspace(1, 0, 5))


SCHEDULE = NoiseSchedule(TINY.schedule).until(900)


def place(sigma, schedule=SCHEDULE):
    return progress(schedule.timestep(sigma), schedule.last)


def test_progress_goes_by_the_noise_level():
    timesteps = torch.tensor([900, 675, 450, 0])
    assert place(SCHEDULE.sigmas[timesteps]).tolist() == [0.0, 0.25, 0.5, 1.0]
    assert place(torch.tensor([4000.0, 1e-4])).tolist() == [0.0, 1.0]  # beyond the ends
    for steps in (5, 50):  # whatever the steps are
        sigmas = sigma_schedule("karras", SCHEDULE, steps)
        assert (place(sigmas[:-1]).diff() >= 0).all() and place(sigmas[0]) == 0


def clip_of(sigmas, x, ramp, sampler="euler"):
    """A closed-form network that follows the picture's weight at every noise level."""

    def denoise(x, sigma):
        weight = at_progress(ramp, place(sigma))[0, 1]
        return weight * torch.tanh(x) + (1 - weight) * torch.sin(3 * x)

    return SAMPLERS[sampler](denoise, x, sigmas)


@pytest.mark.parametrize("name", SIGMA_SCHEDULES)
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_run_in_two_stages_is_one_run(name, sampler):
    ramp = modality_weights(Weight(), Weight(1, Curve(), parse("1..0 ease_in")))
    sigmas = sigma_schedule(name, SCHEDULE, 10)
    x = sigmas[0] * torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    whole = clip_of(sigmas, x, ramp, sampler)
    # Heun's last step is Euler's; the first stage of a run ends above 0, where it is not the last.
    stages = clip_of(sigmas[5:], clip_of(sigmas[:6], x, ramp, sampler), ramp, sampler)
    assert torch.equal(whole, stages)
    constant = modality_weights(Weight(), Weight(0.5))
    assert (clip_of(sigmas, x, constant, sampler) - whole).abs().max() > 1e-2


def test_with_denoise_below_1_a_curve_starts_where_the_noise_does():
    whole = sigma_schedule("sgm_uniform", SCHEDULE, 10)
    late = sigma_schedule("sgm_uniform", SCHEDULE, 4, denoise=0.4)
    assert torch.equal(late, whole[-5:]) and place(late[0]) == pytest.approx(0.6, abs=1e-3)

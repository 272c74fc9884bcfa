"""The training loop: weights, untouched groups, accumulation, non-finite steps, the run's folder."""

import dataclasses
import json

import pytest
import torch
from toys import (
    OPTIM,
    RECIPE,
    Regression,
    TwoModalities,
    newest_state,
    run,
)

from training.config import LogsConfig, OptimConfig
from training.report import draw, read, smooth
from training.rng import generator
from training.saved import load

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_it_learns_and_leaves_a_complete_folder(whole):
    rows = read(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert sum(row["loss"] for row in rows[-5:]) < 0.9 * sum(row["loss"] for row in rows[:5])
    assert rows[39]["valid/error"] < rows[9]["valid/error"] and "valid/error" not in rows[38]
    assert {"lr", "grad_norm", "sample/loss", "sample/error"} < rows[0].keys()
    names = {path.name for path in whole.iterdir()}
    states = {"step_00000035", "step_00000040", "final.pt"}
    assert names == states | {"config.json", "metrics.jsonl", ".lock"}
    final = load(whole / "final.pt")
    assert final["step"] == 40 and final["recipe"] == RECIPE.to_dict() and "optimizer" not in final


def test_the_loss_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    draw(tmp_path)
    assert not list(tmp_path.iterdir())
    rows = [{"step": step, "loss": 1 / step, "image/loss": 2 / step} for step in range(1, 50)]
    rows[9] |= {"loss": None, "valid/psnr": 20.0}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw(tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert smooth([3.0] * 500) == pytest.approx([3.0] * 500) and smooth([1.0, 5.0]) == [1.0, 5.0]


def test_learning_rate_and_ema_are_functions_of_the_step(whole):
    rates = [row["lr"] for row in read(whole / "metrics.jsonl")]
    assert rates[:5] == pytest.approx([6e-3, 12e-3, 18e-3, 24e-3, 30e-3])
    assert rates[5:] == sorted(rates[5:], reverse=True) and 0 < rates[-1] < 1e-4 < rates[-5]
    linear = dataclasses.replace(OPTIM, decay="linear")
    assert linear.learning_rate(22, 40) == pytest.approx(3e-2 * (1 - 17 / 35))
    assert dataclasses.replace(OPTIM, decay="constant").learning_rate(39, 40) == 3e-2
    assert OPTIM.ema_decay_at(0) == 0.1 and OPTIM.ema_decay_at(10**6) == 0.9


def test_weights_equal_a_loop_written_out(whole):
    """An independent loop: torch's AdamW without groups of ours, EMA by its definition."""
    task = Regression()
    parameters = list(task.module.parameters())
    groups = [
        {"params": parameters[:2], "weight_decay": 0.01},
        {"params": parameters[2:], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, foreach=False)
    ema = [p.detach().clone() for p in parameters]
    task.module.eval()  # dropout drawn from the global generator cannot be had from outside
    recipe = dataclasses.replace(RECIPE, name="no dropout")
    for step in range(recipe.steps):
        ((_, _, x),) = task.micro_batches(step)
        optimizer.zero_grad()
        task.loss(x)[0].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        rate = OPTIM.learning_rate(step, recipe.steps)
        groups[0]["lr"], groups[1]["lr"] = 0.5 * rate, rate
        for group, settings in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = settings["lr"]
        optimizer.step()
        decay = min(0.9, (1 + step) / (10 + step))
        ema = [decay * e + (1 - decay) * p.detach() for e, p in zip(ema, parameters, strict=True)]

    looped = Regression()
    looped.module[2].p = 0.0
    final = run(whole.parent / "no_dropout", recipe, looped)
    torch.testing.assert_close(list(final["model"].values()), [p.detach() for p in parameters])
    torch.testing.assert_close(list(final["ema"].values()), ema)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(load(whole / "final.pt")["model"], final["model"])


def test_tensorboard_has_what_metrics_has(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = dataclasses.replace(RECIPE, steps=3, logs=LogsConfig(tensorboard=True))
    run(tmp_path, recipe)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for row in read(tmp_path / "metrics.jsonl"):
        (event,) = [event for event in events.Scalars("loss") if event.step == row["step"]]
        assert event.value == pytest.approx(row["loss"])


@pytest.mark.parametrize("weights", [{"image": 1.0}, {"image": 1.0, "video": 0.0}])
def test_a_part_without_gradient_stays_bit_identical(tmp_path, weights):
    recipe = dataclasses.replace(RECIPE, optim=dataclasses.replace(OPTIM, weight_decay=0.5))
    start = {k: v.clone() for k, v in TwoModalities(recipe, weights).module.state_dict().items()}
    run(tmp_path, recipe, TwoModalities(recipe, weights))
    saved = newest_state(tmp_path)
    for key, value in start.items():
        for part in ("model", "ema"):
            assert torch.equal(saved[part][key], value) == key.startswith("temporal")
    assert set(saved["optimizer"]) == {
        "spatial.weight",
        "spatial.bias",
    }  # the temporal part's moments were never made


def test_a_part_whose_gradient_stops_keeps_its_optimizer_state_and_ema(tmp_path):
    weights = {"image": 0.5, "video": 2.0}
    at_ten = dataclasses.replace(RECIPE, steps=10, optim=dataclasses.replace(OPTIM, decay="constant"))
    run(tmp_path, at_ten, TwoModalities(at_ten, weights, video_until=10))
    early = newest_state(tmp_path)
    rows = read(tmp_path / "metrics.jsonl")
    for row in rows:
        assert row["loss"] == pytest.approx(0.5 * row["image/loss"] + 2 * row["video/loss"], rel=1e-5)
    at_forty = dataclasses.replace(at_ten, steps=40)
    run(tmp_path, at_forty, TwoModalities(at_forty, weights, video_until=10))
    late = newest_state(tmp_path)
    for part in ("model", "ema"):
        for key, value in early[part].items():
            assert torch.equal(late[part][key], value) == key.startswith("temporal")
    early, late = early["optimizer"], late["optimizer"]
    for name, moments in early.items():
        for key, value in moments.items():
            assert torch.equal(late[name][key], value) == name.startswith("temporal")
    assert late["spatial.bias"]["step"] == 40 and late["temporal.bias"]["step"] == 10


def test_accumulation_equals_the_larger_batch(tmp_path):
    finals = []
    for parts in (1, 4):
        task = Regression(parts=parts)
        task.module[2].p = 0.0
        finals.append(run(tmp_path / str(parts), task=task))
    torch.testing.assert_close(finals[0]["model"], finals[1]["model"])
    torch.testing.assert_close(finals[0]["ema"], finals[1]["ema"])
    rows = [read(tmp_path / parts / "metrics.jsonl") for parts in "14"]
    for one, four in zip(*rows, strict=True):
        assert one == pytest.approx(four, rel=1e-4)


def test_a_non_finite_step_is_skipped_and_counted(tmp_path):
    task = Regression(broken=(12, 30))
    final = run(tmp_path, task=task)
    rows = read(tmp_path / "metrics.jsonl")
    assert {row["step"]: row["skipped"] for row in rows if "skipped" in row} == {13: 1, 31: 2}
    assert rows[12]["loss"] is None and final["skipped"] == 2 and final["skipped_in_a_row"] == 0
    assert all(tensor.isfinite().all() for part in ("model", "ema") for tensor in final[part].values())
    assert newest_state(tmp_path)["optimizer"]["0.weight"]["step"] == 38


class OneOfTwo(Regression):
    """At step 12 either the loss or its gradient is not a number, and the other one is."""

    def __init__(self, part):
        super().__init__()
        self.part, self.now = part, False

    def micro_batches(self, step):
        self.now = step == 12
        return super().micro_batches(step)

    def loss(self, x):
        loss, extra = super().loss(x)
        if self.now and self.part == "loss":
            loss = loss + torch.nan
        elif self.now:
            loss = loss + (0 * self.module[0].weight.sum()).sqrt()  # 0, and its slope is 0 times infinity
        return loss, extra


@pytest.mark.parametrize("part", ["loss", "grad_norm"])
def test_a_step_is_skipped_for_its_loss_or_its_gradient(tmp_path, part):
    final = run(tmp_path, task=OneOfTwo(part))
    rows = read(tmp_path / "metrics.jsonl")
    assert {row["step"]: row["skipped"] for row in rows if "skipped" in row} == {13: 1}
    assert [name for name in ("loss", "grad_norm") if rows[12][name] is None] == [part]
    assert all(tensor.isfinite().all() for tensor in final["ema"].values())


def test_non_finite_steps_in_a_row_stop_the_run(tmp_path):
    recipe = dataclasses.replace(RECIPE, max_skipped=3)
    task = {"broken": (15, 16, 17, 18)}
    with pytest.raises(FloatingPointError, match="in 3 steps in a row, up to step 18; .*max_skipped"):
        run(tmp_path, recipe, Regression(recipe, **task))
    assert newest_state(tmp_path)["step"] == 14
    more = dataclasses.replace(recipe, max_skipped=9)  # as the sentence says
    assert run(tmp_path, more, Regression(more, **task))["skipped"] == 4


def test_autocast_computes_in_bfloat16_and_keeps_float32_weights(tmp_path):
    recipe = dataclasses.replace(RECIPE, dtype="bfloat16")
    seen = []

    class Watching(Regression):
        def loss(self, x):
            seen.append(self.module(x).dtype)
            return super().loss(x)

    final = run(tmp_path, recipe, Watching(recipe))
    assert set(seen) == {torch.bfloat16}
    assert all(tensor.dtype == torch.float32 for tensor in final["model"].values())


def test_generators_are_functions_of_their_key():
    def draw(*key):
        return torch.rand(4, generator=generator(*key)).tolist()

    torch.rand(3)
    assert draw(1, "noise", 5) == draw(1, "noise", 5)
    others = [draw(2, "noise", 5), draw(1, "timestep", 5), draw(1, "noise", 6), draw(11, "noise", 5)]
    assert all(draw(1, "noise", 5) != other for other in others)
    assert (
        draw(1, "noise", 0) == pytest.approx(draw(1, "noise", 0))
        and generator(0, "a", 0).device.type == "cpu"
    )


def test_bad_settings_are_one_sentence():
    with pytest.raises(ValueError, match="decay must be one of"):
        OptimConfig(lr=1e-3, decay="step")
    with pytest.raises(ValueError, match="lr and clip_norm must be above 0"):
        OptimConfig(lr=float("nan"))
    with pytest.raises(ValueError, match="must be at least 1"):
        dataclasses.replace(RECIPE, steps=0)

"""The built-in model in few steps: what is trained, how it is scored, and that the command does both."""

import dataclasses
import json

import pytest
import torch

from training.__main__ import main
from training.tiny import turbo
from training.tiny.turbo import EQUAL, FULL, SCORED, TURBO, UNTAUGHT
from univid import checkpoints
from univid.checkpoints.lora import read_lora

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


def figures(**values):
    return {name: {figure: {"value": value} for figure, value in values.items()} for name in SCORED}


def test_four_steps_are_held_against_all():
    full = figures(text_all=0.9, text_motion=1.0, steadiness=0.8)
    near = figures(text_all=0.86, text_motion=0.96, steadiness=0.9)
    far = figures(text_all=0.8, text_motion=0.96, steadiness=0.9)
    checks = [turbo._checks({FULL: full, TURBO[4]: few}) for few in (near, far)]
    assert [len(found) for found in checks] == [6, 6]
    assert [sum(check["met"] for check in found) for found in checks] == [6, 4]


def test_few_steps_are_how_a_distilled_checkpoint_is_sampled():
    from training.stages.networks import trained_profile

    options = dataclasses.replace(turbo.recipe(checkpoints.built_in_path().parent).options, lora=None)
    model = checkpoints.load("built-in", parts=())
    assert turbo.few_steps(model.profile, 4) == trained_profile(options, model)


def test_the_command_trains_scores_and_copies(tmp_path, monkeypatch, capsys):
    draw, recipe = turbo.draw, turbo.recipe
    monkeypatch.setattr(turbo, "draw", lambda root: draw(root, count=10))
    monkeypatch.setattr(
        turbo, "recipe", lambda *asked, **more: dataclasses.replace(recipe(*asked, **more), steps=2)
    )
    copy = tmp_path / "copy.safetensors"
    main(["--root", str(tmp_path), "turbo", "--clips", "1", "--out", str(copy)])
    result = json.loads((tmp_path / "turbo.json").read_text())
    assert list(result["rows"]) == [FULL, EQUAL, UNTAUGHT, *TURBO.values()]
    shown = capsys.readouterr().out
    assert "Goals met: " in shown and all(f"| {title} |" in shown for title in result["rows"])

    assert copy.stat().st_size <= 2_000_000
    assert all(layer.up.shape[1] == turbo.RANK for layer in read_lora(copy).layers.values())
    files = sorted((tmp_path / turbo.NAME).glob("[0-9].safetensors"))
    models = [checkpoints.load(path, dtype=torch.float32) for path in files]
    assert [model.profile.steps for model in models] == [10, 2, 4, 4, 2, 1]
    assert [model.profile.sampler for model in models] == ["dpmpp_2m"] * 2 + ["lcm"] * 4
    plain, taught = models[0].unet.state_dict(), models[3].unet.state_dict()
    assert any(not torch.equal(weight, plain[name]) for name, weight in taught.items())
    assert all(torch.equal(weight, plain[name]) for name, weight in models[2].unet.state_dict().items())


def test_no_clips_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one clip"):
        turbo.evaluate(tmp_path, 0, tmp_path, tmp_path / "turbo.json", None)

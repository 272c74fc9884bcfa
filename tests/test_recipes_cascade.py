"""The cascade's recipes: what they train and plan at full size, and that each runs at the smallest."""

import dataclasses
import json

import pytest
import torch
from denoise_runs import gradients, relative

from training import cli
from training.config import EngineConfig
from training.data.config import SourceConfig
from training.export import saved_recipe
from training.plan import Cluster, Workload, plan, report
from training.plan.recipe import config_of, workload_of
from training.recipes_cascade import RECIPES
from training.stages.denoise import DenoiseTask
from training.stages.parts import parameters_of
from univid import checkpoints
from univid.config import BiasedNoiseProfile, StartProfile
from univid.presets import FAMILY, PAPER, TINY

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS = {  # of the U-Net: input channels, numbers, kind, whether PSTAttn is there
    "univid_animate": (8, (), "univid", True),
    "univid_known": (9, ("noise",), "univid", True),
    "univid_upscale": (4, (), "univid", False),
    "show1_expert": (4, (), "family", False),
}
STARTS = {
    "univid_animate": StartProfile(None, 1.0, BiasedNoiseProfile(600, 990)),
    "univid_known": StartProfile(935, 1.0, None),  # as the base
    "univid_upscale": StartProfile(None, 1.0, BiasedNoiseProfile(0, 700)),
    "show1_expert": StartProfile(935, 0.961, None),  # which is timestep 899
}


def test_all_are_here():
    assert RECIPES.keys() == CONFIGS.keys() <= cli.RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_and_has_settings(name, tmp_path):
    recipe = RECIPES[name]()
    (tmp_path / "config.json").write_text(json.dumps(recipe.to_dict()))
    assert saved_recipe(tmp_path) == recipe
    words = ["plan", name, "--options.parts", "spatial", "--options.data.degradations.preset", "strong"]
    changed = cli.recipe_of(*cli.parse(words))
    assert changed.options.parts == "spatial" and changed.options.data.degradations.preset == "strong"


@pytest.mark.parametrize("name", RECIPES)
def test_a_plan_counts_the_network_that_is_trained(name):
    work = workload_of(RECIPES[name]())
    config = work.model.unet
    found = (config.in_channels, config.numbers, config.temporal.kind, bool(config.temporal.segment_frames))
    assert found == CONFIGS[name] and work.dataset == {"clip": 6_000_000}
    assert work.shows == {"univid_upscale": ("copy",), "show1_expert": ()}.get(name, ("picture",))
    plain = dataclasses.replace(RECIPES[name]().options, stage="t2v", joined=None)
    assert config_of(plain).unet == (FAMILY if name == "show1_expert" else PAPER).unet


def test_poor_copies_take_cores_by_hand():
    made = [
        plan(
            Workload(
                "small", TINY, lambda unet: unet.requires_grad_(True), steps=1, batch={"video": 1},
                frames=(2, 6), buckets=((64, 64),), shows=shows, dataset={"clip": 1},
            ),
            EngineConfig(),
            Cluster(),
        )
        for shows in ((), ("copy",))
    ]  # fmt: skip
    plain, copied = (one.core_seconds("video") for one in made)
    assert plain == 0.09 and copied == pytest.approx(0.09 + 0.22 * 4 * 64 * 64 / 1e6)
    assert "0.22 s for a poor copy" in report(made[1]) and "poor copy" not in report(made[0])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name, small_checkpoint, media, tmp_path):
    base = str(small_checkpoint)
    if name == "show1_expert":
        base = relative(
            small_checkpoint, tmp_path / "base.safetensors", ((), "off", "none"), image_stream=None
        )
    recipe = RECIPES[name]()
    data = dataclasses.replace(
        recipe.options.data, clips=SourceConfig((str(media / "clips"),)), buckets=((64, 64),), min_frames=2,
        max_frames=4, workers=0,
    )  # fmt: skip
    options = dataclasses.replace(recipe.options, data=data, base=base, frozen_dtype="float32")
    recipe = dataclasses.replace(
        recipe, options=options, batch={"video": 2}, engine=EngineConfig(), dtype="float32"
    )
    task = DenoiseTask(recipe, tmp_path)
    found = {n: gradient for n, gradient in gradients(task).items() if gradient is not None}
    assert found and all(gradient.isfinite().all() for gradient in found.values())
    assert any(gradient.any() for gradient in found.values())
    temporal, whole = (parameters_of(task.module, part) for part in ("temporal", "all"))
    if name == "show1_expert":
        assert found.keys() == temporal
    elif name == "univid_upscale":
        assert found.keys() == {n for n in whole if "image" not in n}
    else:
        assert found.keys() == whole > temporal
    path = tmp_path / "result.safetensors"
    task.export(task.module.state_dict(), 1, path)
    model = checkpoints.load(path)
    assert model.profile.start == STARTS[name]
    assert model.config.unet.in_channels == CONFIGS[name][0]
    assert torch.equal(model.unet.state_dict()["out.2.bias"].float(), task.module.out[2].bias.half().float())

"""Training the built-in model on an accelerator, pretended: the recipes for one, at their full batches."""

import dataclasses

import pytest
from accelerator import DEVICE
from pretended_training import training_accelerator, watch_steps

from training import loop
from training.config import LogsConfig
from training.tiny import features, unet
from training.tiny.adopt import adopt
from training.tiny.commands import recipe
from training.tiny.tasks import build

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
READ = "a value was read back"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The shipped model's parts as finished runs."""
    root = tmp_path_factory.mktemp("runs")
    adopt("built-in", root)
    return root


@pytest.fixture
def made_there(monkeypatch):
    """Features as they come from the device: a file would hold none of what is pretended."""

    def prepare(folder, vae, vision, *, seed, clips, moments, device):
        return features._compute(vae.to(device), vision.to(device), seed, range(clips), moments, device)

    monkeypatch.setattr(unet.features, "prepare", prepare)


@pytest.mark.parametrize("name", ["tiny_vae", "tiny_towers", "tiny_vision", "tiny_lengths"])
def test_a_recipe_runs_there_and_waits_once_a_step(root, tmp_path, monkeypatch, made_there, name):
    chosen = recipe(name, DEVICE)
    assert chosen.dtype == "bfloat16"
    changes = {"tiny_vision": {"start": "tiny_vision"}, "tiny_lengths": {"clips": 200}}
    chosen = dataclasses.replace(
        chosen,
        steps=1,
        logs=LogsConfig(),
        options=dataclasses.replace(chosen.options, **changes.get(name, {})),
    )
    with training_accelerator() as seen:
        task = build(chosen, root, DEVICE)
        waits = watch_steps(monkeypatch, seen)
        loop.train(chosen, task, tmp_path / name, device=DEVICE, progress=False)
    assert waits == [[READ]]
    assert all(parameter.device == DEVICE for parameter in task.module.parameters())
    assert any(parameter.grad is not None for parameter in task.module.parameters())

"""What the log says of memory before a run, and what the host can free on a device."""

import logging
from types import SimpleNamespace

import pytest
import torch
from host_tests.both import FRAMES, LATENT, conditionings, guider, run
from host_tests.random_model import write

GB = 10**9


@pytest.fixture(scope="module")
def model(pack, tmp_path_factory):
    from univid_pack.nodes.host.model import load_model

    return load_model(write(tmp_path_factory.mktemp("checkpoint")), "fp32")


@pytest.fixture
def machine(pack, monkeypatch):
    """A machine with this much free memory."""
    from univid_pack.nodes.host import sampling

    def having(size):
        monkeypatch.setattr(sampling, "available_memory", lambda: size)

    return having


@pytest.fixture
def lines(model, caplog):
    """What is said before a run of latents of this size."""
    from univid_pack.nodes.host.guider import UniVidGuider
    from univid_pack.nodes.host.sampling import preflight

    def of(frames, side=8, guidance="joint", chosen=model):
        caplog.clear()
        host_guider = UniVidGuider(chosen, guider(guidance))
        host_guider.set_conds(*conditionings())
        with caplog.at_level(logging.INFO):
            preflight(chosen, torch.zeros(frames, 4, side, side), host_guider)
        return [record.getMessage() for record in caplog.records if "UniVid" in record.getMessage()]

    return of


def test_a_run_that_fits_is_one_line(model, machine, caplog):
    machine(2 * GB)
    with caplog.at_level(logging.INFO), torch.inference_mode():
        run(model, steps=1)
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("UniVid: ")]
    needed = model.model.memory_required([2 * FRAMES, *LATENT["samples"].shape[1:]])
    assert line == (
        f"UniVid: {FRAMES} frames of 64 x 64, 2 branches a step, float32, about {needed / 1e9:.2f} GB for "
        "activations, 2.00 GB free"
    )


def test_what_does_not_fit_is_said_with_what_to_do(model, machine, lines):
    alone, three = (model.model.memory_required([n * 100, 4, 64, 64]) for n in (1, 3))
    machine(alone)  # the host takes branches one by one where memory is short
    assert three > 2 * alone and len(lines(100, 64, "nested")) == 1
    machine(alone - 1)
    _, warning = lines(100, 64, "nested")
    assert warning == (
        f"UniVid: a step needs about {alone / 1e9:.1f} GB of memory, and {alone / 1e9:.1f} GB are free; make "
        "fewer or smaller frames, use context windows, or load the model as bf16"
    )
    machine(10**6)
    step, clip = lines(100, 64)[1:]
    assert clip.startswith("UniVid: the finished clip needs about") and clip.endswith("smaller frames")


def test_context_windows_are_what_counts(model, machine, lines):
    from comfy.context_windows import (
        ContextFuseMethods,
        ContextSchedules,
        IndexListContextHandler,
        get_matching_context_schedule,
        get_matching_fuse_method,
    )

    windowed = model.clone()
    windowed.model_options["context_handler"] = IndexListContextHandler(
        get_matching_context_schedule(ContextSchedules.STATIC_STANDARD),
        get_matching_fuse_method(ContextFuseMethods.PYRAMID),
        context_length=10, context_overlap=2, dim=0,
    )  # fmt: skip
    machine(model.model.memory_required([10, 4, 64, 64]) + 1)
    assert len(lines(100, 64)) > 1
    assert not [line for line in lines(100, 64, chosen=windowed) if "a step needs" in line]


def test_what_lies_on_a_device_can_be_moved_out(pack, monkeypatch):
    import comfy.model_management as management
    from univid_pack.nodes.host.sampling import room

    device, other = torch.device("cuda", 0), torch.device("cuda", 1)
    loaded = [
        SimpleNamespace(device=where, model_loaded_memory=lambda size=size: size)
        for where, size in ((device, 3), (other, 50), (device, 4))
    ]
    monkeypatch.setattr(management, "current_loaded_models", loaded)
    monkeypatch.setattr(management, "get_free_memory", lambda device: 100)
    assert room(device) == 107
    assert room(torch.device("cpu")) > 10**8

"""The network translated by torch.compile, block by block: the same, once a size, and without a break."""

import dataclasses
import functools
import shutil

import pytest
import torch
from reference import difference, randn, randomize
from torch._dynamo.utils import counters

from univid.conditioning import Conditioning
from univid.presets import FAMILY, TINY
from univid.unet import UNet

# One level: a translation costs seconds, and what another width adds is another translation.
FLAT = {"channel_mult": (1,), "attention_levels": (True,), "num_res_blocks": 1}
UNIVID = dataclasses.replace(
    TINY.unet, **FLAT,
    temporal=dataclasses.replace(TINY.unet.temporal, conv_kernels=(3,), segment_frames=(2,)),
)  # fmt: skip
RELATIVE = dataclasses.replace(
    FAMILY.unet, **FLAT, model_channels=32, head_channels=16, norm_groups=8, context_dim=64,
    temporal=dataclasses.replace(FAMILY.unet.temporal, conv_kernels=(3,), input_heads=2),
)  # fmt: skip


@pytest.fixture(autouse=True)
def fresh():
    """No translation of another test; the limit of their number as it was."""
    config = torch._dynamo.config
    torch._dynamo.reset()
    counters.clear()
    with (
        config.patch(recompile_limit=config.recompile_limit, fail_on_recompile_limit_hit=True),
        torch.no_grad(),
    ):
        yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch):
    """By a backend that translates nothing: seconds where a real one takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def inputs(config, clips=2, frames=4, size=8, seed=0, weights=((1.0, 0.7), (0.3, 1.0)), levels=None):
    image = None if config.image_stream is None else randn(clips, 5, config.image_stream.width, seed=seed + 1)
    weights = torch.tensor(weights) * torch.tensor([1.0, float(image is not None)])
    cond = Conditioning(randn(clips, 7, config.context_dim, seed=seed + 2), image, weights, levels or {})
    return randn(clips, 4, frames, size, size, seed=seed), torch.tensor([3, 800]), cond


@pytest.mark.parametrize(
    "config", [UNIVID, pytest.param(RELATIVE, marks=pytest.mark.slow)], ids=["univid", "relative"]
)
def test_blocks_are_translated_once_a_length(traced, config):
    network, compiled = randomize(UNet(config)).eval(), UNet(config).eval()
    compiled.load_state_dict(network.state_dict())
    compiled.compile_blocks()

    def graphs(**changes):
        given = inputs(config, **changes)
        assert difference(compiled(*given), network(*given)) < 1e-5
        return counters["stats"]["unique_graphs"]

    first = graphs()
    assert 4 < first <= len(network.blocks()) + 1  # blocks of one shape share theirs
    assert graphs(seed=5) == first  # other prompts, pictures and noise
    assert graphs(weights=((0.2, 0.4), (1.5, 0.1))) == first
    assert graphs(levels={1: (0.5, 2.0)}) == first
    assert graphs(levels={1: (0.25, 3.0)}) == first
    longer = graphs(frames=3)
    assert longer > first
    assert graphs() == graphs(frames=3) == longer  # the length before is still there
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_translated_code_gives_the_same():
    """By the real backend, whose sums have another order."""
    network, compiled = randomize(UNet(UNIVID)).eval(), UNet(UNIVID).eval()
    compiled.load_state_dict(network.state_dict())
    compiled.compile_blocks()
    given = inputs(UNIVID)
    assert difference(compiled(*given), network(*given)) < 1e-4
    assert counters["inductor"]


def test_a_machine_without_a_compiler_is_told(run, monkeypatch):
    def fails(graph, example_inputs):
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=fails))
    status, _, error = run("generate", "--prompt", "a red circle", "--out", "a.mp4", "--compile")
    assert status == 2 and "leave --compile out" in error and "no compiler found" in error

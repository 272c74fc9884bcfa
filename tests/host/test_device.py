"""The MODEL on an accelerator, pretended, and translated by torch.compile through the host's own wrapper."""

import functools
import sys
from pathlib import Path

import pytest
import torch
from host_tests.both import FRAMES, IMAGE, TEXT, conditionings, difference, run
from host_tests.hosts import find_hosts
from host_tests.random_model import write

sys.path.append(str(Path(__file__).parents[1]))
from accelerator import DEVICE, Synchronisation, accelerator  # noqa: E402


@pytest.fixture
def model(pack, tmp_path):
    from univid_pack.nodes.host.model import load_model

    return load_model(write(tmp_path, num_res_blocks=1), "fp32")


def call(network, weights, options, size=(1, 1), **more):
    """Both branches of a guided call, as the host makes it of conditionings, tokens shared by all frames.

    size: height and width of the maps.
    """
    from univid_pack.nodes.host import conditioning as keys
    from univid_pack.univid.conditioning import streams_on

    told = keys.Told(shared=(True, True), on=streams_on(weights)), keys.Told((True, True), (True, False))
    return network(
        torch.randn(2 * FRAMES, 4, 8, 8, device=DEVICE),
        torch.full((2 * FRAMES,), 500.0, device=DEVICE),
        context=here(TEXT),
        transformer_options={"cond_or_uncond": [0, 1], **options},
        univid_image=here(IMAGE),
        univid_weights=here(weights.expand(1, 64, 2)),
        univid_maps=here(torch.ones(1, 2, *size)),
        univid_told=told,
        univid_places=here(torch.rand(1, 1)),
        **more,
    )


def here(tensor):
    """[1|n ...] -> [(b t) ...], on the device."""
    return tensor.expand(2 * FRAMES, *tensor.shape[1:]).to(DEVICE, non_blocking=True)


@pytest.mark.parametrize("null_image", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (8, 8)])
def test_a_forward_waits_for_nothing(model, null_image, size):
    from univid_pack.nodes.host.model import REFERENCES
    from univid_pack.univid.attention import attention

    # A kernel that a node has chosen: the host's own first asks the driver what memory is free.
    kernel = {"optimized_attention_override": lambda own, q, k, v, heads, **_: attention(q, k, v, heads)}
    with accelerator() as acc, torch.no_grad():
        network, weights = model.model.diffusion_model.to(DEVICE), torch.tensor([[[0.8, 0.6]]])
        more = {"univid_null_image": here(IMAGE)} if null_image else {}
        with acc.without_waiting():
            out = call(network, weights, {REFERENCES: {1: 2, 4: 99}} | kernel, size, **more)
        assert out.device == DEVICE and out.shape == (2 * FRAMES, 4, 8, 8)


def test_guidance_reads_the_noise_level_only_where_weights_change(pack):
    from univid_pack.nodes.host.guider import _given

    def progress():
        raise Synchronisation

    (positive,), (negative,) = conditionings((0.8, 0.0))
    assert _given([positive[1]], progress) == (True, False)
    curve = torch.tensor([[[0.8, 0.6], [0.8, 0.0], [0.8, 0.0]]])
    (positive,), _ = conditionings(curve)
    with pytest.raises(Synchronisation):
        _given([positive[1]], progress)
    assert _given([positive[1]], lambda: torch.tensor([0.1])) == (True, True)
    assert _given([positive[1]], lambda: torch.tensor([0.9])) == (True, False)


def test_the_hosts_compile_gives_the_same(host, model):
    """Block by block, by a backend that translates nothing; other weights and tokens need no translation."""
    if host != find_hosts()[0]:
        pytest.skip("a minute that the newest host alone takes")
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from torch._dynamo.utils import counters

    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    torch._dynamo.reset()
    counters.clear()
    assert difference(run(compiled, steps=2)[0], run(model, steps=2)[0]) < 1e-5
    graphs = counters["stats"]["unique_graphs"]
    other = functools.partial(run, conds=conditionings((0.5, 0.9), text=TEXT + 1), steps=2)
    assert difference(other(compiled)[0], other(model)[0]) < 1e-5
    assert graphs > 20 and counters["stats"]["unique_graphs"] == graphs
    assert not model.model.diffusion_model.compiled  # the MODEL before the node is as it was

"""PST Options in the host, against the library on the same random weights."""

import dataclasses
from functools import partial

import pytest
import torch
from host_tests.both import FRAMES, difference, expected, run

pytestmark = pytest.mark.usefixtures("inference")


def with_options(model, *levels):
    from univid_pack.nodes.options import UniVidPSTOptions

    return UniVidPSTOptions.execute(model, *levels).result[0]


@pytest.mark.parametrize(
    ("levels", "references"),
    [
        ((-1, 0, 0, 0), {1: []}),
        ((-1, -1, -1, -1), {1: [], 2: [], 4: [], 8: []}),
        ((1, -1, 512, 0), {1: [FRAMES // 2], 2: [], 4: range(FRAMES)}),
    ],
    ids=str,
)
def test_levels_are_the_library_s_reference_frames(model, library, levels, references):
    chosen = run(with_options(model, *levels))[0]
    told = dataclasses.replace(library, unet=partial(library.unet, reference_frames=references))
    assert difference(chosen, expected(told)) < 1e-4
    assert difference(chosen, expected(library)) > 1e-3


def test_zeros_are_as_trained(model):
    """As in workflows from before levels could be off."""
    assert torch.equal(run(with_options(model, 0, 0, 0, 0))[0], run(model)[0])

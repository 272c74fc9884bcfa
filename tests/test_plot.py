"""Line plots: what must be seen on them."""

import math

import numpy as np
import pytest
from PIL import ImageColor

from univid.curves import Curve, Weight, modality_weights, parse
from univid.plot import COLOURS, line_plot, weights_plot


def painted(picture, colour, area=slice(None)):
    """(rows, columns) of the pixels below the legend in about this colour."""
    difference = np.abs(picture.astype(int) - ImageColor.getrgb(colour)).max(-1)
    rows, columns = np.nonzero(difference[50:, area] < 24)
    return rows + 50, columns


def test_size_and_type():
    picture = line_plot({"a": [0, 1, 2]}, "title", "frame", "weight", size=(400, 200))
    assert picture.shape == (200, 400, 3) and picture.dtype == np.uint8


def test_a_line_rises_with_its_values():
    rows, columns = painted(line_plot({"a": [0, 1, 2, 3]}, "", "x", "y"), COLOURS[0])
    assert np.corrcoef(rows, columns)[0, 1] < -0.99  # rows count downwards
    assert columns.min() < 60 and columns.max() > 470


def test_equal_lines_are_both_seen():
    picture = line_plot({"a": [1, 2], "b": [1, 2]}, "", "x", "y")
    assert all(len(painted(picture, colour)[0]) for colour in COLOURS[:2])


def test_a_value_that_is_not_finite_leaves_a_gap():
    columns = painted(line_plot({"a": [1, 1, math.nan, 1, 1]}, "", "x", "y"), COLOURS[0])[1]
    assert np.diff(np.unique(columns)).max() > 50


@pytest.mark.parametrize("values", [[0], [0, 0], [math.nan], [1e-7, 2e-7], [1e6, 3e6], [-3, 2], [5] * 200])
def test_any_values_can_be_drawn(values):
    assert line_plot({"a": values}, "", "x", "y").shape == (256, 512, 3)


@pytest.mark.parametrize("series", [{}, {"a": []}])
def test_nothing_to_draw_leaves_the_axes(series):
    picture = line_plot(series, "", "x", "y")
    assert len(np.unique(picture)) > 2 and not any(len(painted(picture, colour)[0]) for colour in COLOURS)


@pytest.mark.parametrize(
    "over_frames, over_steps, width",
    [("", "", 512), ("1..0", "", 512), ("", "1..0", 512), ("1..0", "0..1", 1024)],
)
def test_weights_get_a_plot_for_each_axis_along_which_they_change(over_frames, over_steps, width):
    text = Weight(1.0, parse(over_frames), parse(over_steps))
    weights = modality_weights(text, Weight(0.5, Curve()), frames=6)
    assert weights_plot(weights).shape == (256, width, 3)

"""Sheets that are looked at small."""

import numpy as np
import pytest
import torch
from PIL import Image

from univid.sheet import PAPER, sweep_sheet


@pytest.mark.parametrize("rows, columns, size", [(2, 2, 64), (3, 3, 64), (3, 5, 64), (2, 3, 320)])
def test_large_labels_are_read_where_a_sweep_is_300_pixels_wide(rows, columns, size):
    clip = torch.zeros(1, 3, 4, size, size)
    page = sweep_sheet(
        [[clip] * columns] * rows,
        title="",
        row_labels=["text 0.5"] * rows,
        column_labels=["picture 0.5"] * columns,
        large_labels=True,
    )
    small = page.resize((300, round(300 * page.height / page.width)), Image.Resampling.LANCZOS)
    paper = np.array(Image.new("RGB", (1, 1), PAPER))[0, 0].astype(int)
    ink = (np.abs(np.array(small).astype(int) - paper).sum(-1) > 60).any(1)  # lines of pixels with a mark
    cells = np.flatnonzero(np.array(small).sum((1, 2)) < 300 * 3 * 255 * 0.6)
    label = ink[: cells[0]].sum()  # the line of column labels stands above the first cell
    assert label >= 6, f"the labels are {label} pixels high"

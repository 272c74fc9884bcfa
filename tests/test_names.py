"""Rename tables: which tensor of a source becomes which of ours, and nothing goes missing unseen."""

import pytest
import torch

from univid.checkpoints import names


def test_a_table_fails_loudly():
    table = names.Table({"a.": "b.", "a.c.": "d.", "s": ("x", "y"), "p": "q.T"}, (r"idle\..*",))
    targets = ["a.w", "a.c.w", "s", "p", "new"]
    found = names.resolve(table, targets, {"b.w", "d.w", "x", "y", "q", "idle.z"})
    assert found == {"a.w": "b.w", "a.c.w": "d.w", "s": ("x", "y"), "p": "q.T"}
    with pytest.raises(ValueError, match="other"):
        names.resolve(table, targets, {"b.w", "other"})
    read = {"x": torch.ones(2, 3), "y": torch.zeros(1, 3), "q": torch.rand(4, 5)}.__getitem__
    assert names.fetch(("x", "y"), (3, 3), read).sum() == 6
    assert torch.equal(names.fetch("q.T", (5, 4), read), read("q").T)
    assert names.fetch("q", (4, 5, 1, 1), read).shape == (4, 5, 1, 1)
    with pytest.raises(ValueError, match="shape"):
        names.fetch("q", (5, 4), read)

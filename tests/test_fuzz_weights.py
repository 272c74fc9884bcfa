"""The fuzzer of fuzz_weights.py for a short time; `python -m tests.fuzz_weights` goes on for hours."""

import pytest
from fuzz_weights import KINDS, fuzz


@pytest.mark.slow
def test_broken_files_are_opened_or_refused_in_a_sentence(tmp_path):
    counts, faults = fuzz(tmp_path, seed=0, seconds=20)
    assert not faults, "\n".join(faults)
    for kind in KINDS:
        assert counts[kind, "refused"], kind
    assert sum(counts[kind, "opened"] for kind in KINDS) > 20

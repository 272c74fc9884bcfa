"""What a user looks up in the interface: the help of a node, and nodes by other words than their names."""

import pytest
from host_tests import frozen
from host_tests.browser.driver import looks_of

pytestmark = pytest.mark.slow
ALIASES = {  # what one types -> the node that should come, and that some other node is named so
    "ksampler": ("PST Sampler", True),
    "text to video": ("Load UniVid", True),
    "lambda": ("Set Modality Weights", False),
    "xy plot": ("Modality Sweep", False),
    "prompt travel": ("Encode Dual Prompt", False),
    "univid": ("Load UniVid", False),
}


def test_every_help_page_fits_its_panel(browser, known, host):
    look = looks_of(host)[-1]
    nodes = list(frozen.ours(known))
    (answer,) = browser(look, [{"do": "help", "nodes": nodes}])
    assert set(answer) == set(nodes) and len(nodes) == 19
    wide = {node: page["wide"] for node, page in answer.items() if page["wide"]}
    assert not wide
    assert all(page["panel"] > 200 for page in answer.values())


def test_the_node_search_finds_nodes_by_their_aliases(browser, host):
    """It ranks by names alone: an alias comes behind every node whose name is like what one types."""
    (answer,) = browser(looks_of(host)[-1], [{"do": "search", "queries": list(ALIASES)}])
    for query, (node, named_so) in ALIASES.items():
        assert node in answer[query], (query, answer[query])
        if not named_so:
            assert answer[query].index(node) <= 1, (query, answer[query])

"""The count as a Markdown table, and as JSON with every vote in it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from univid.messages import shown

from .count import CONFIDENCE, Figures, Interval, left_share
from .key import Key
from .votes import Vote

HEAD = "| {} | votes | pairs | people | G / S / B | better | same | worse | (G-B)/(G+S+B) | agreement |"
NOTE = (
    "In percent with {:.0f} % intervals: of shares Wilson's where every pair has one vote, else, and of the "
    "rate, by pairs drawn anew with all their votes; they are about other prompts before the same people. "
    "Agreement: of two people on one pair. Of {} votes for one of two videos, {} were for the left one."
)
ENOUGH = 20  # pairs: 94 to 98 of 100 intervals held the truth in a trial; 90 with 10 pairs, 85 with 5
FEW = f" Below {ENOUGH} pairs the drawn intervals are too narrow."


def table(key: Key, votes: Sequence[Vote], figures: Mapping[str, Figures]) -> str:
    """A row a question, and below how to read it."""
    a, b = (shown(name, 40).replace("|", "\\|") for name in key.names)
    rows = [HEAD.format(f"{a} against {b}"), "| --- |" + " ---: |" * 9]
    rows += [_row(question, found) for question, found in figures.items()]
    left, decided = left_share(votes)
    few = FEW if min(found.pairs for found in figures.values()) < ENOUGH else ""
    return "\n".join([*rows, "", NOTE.format(100 * CONFIDENCE, decided, left) + few])


def _row(question: str, found: Figures) -> str:
    shares = [_percent(*both) for both in zip(found.shares, found.intervals, strict=True)]
    cells = [
        question,
        found.votes,
        found.pairs,
        found.people,
        " / ".join(map(str, found.counts)),
        *shares,
        _percent(found.rate, found.rate_interval),
        "-" if found.agree is None else f"{100 * found.agree:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _percent(value: float, interval: Interval) -> str:
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def to_json(key: Key, votes: Sequence[Vote], figures: Mapping[str, Figures]) -> dict:
    """All votes of all people by the names in the folders, and the figures."""
    found = {
        name: asdict(one) | {"votes": one.votes, "shares": one.shares, "rate": one.rate}
        for name, one in figures.items()
    }
    left, decided = left_share(votes)
    return {
        "page": key.page,
        "a": key.names[0],
        "b": key.names[1],
        "confidence": CONFIDENCE,
        "figures": found,
        "left": {"chosen": left, "of": decided},
        "votes": [asdict(vote) for vote in votes],
    }

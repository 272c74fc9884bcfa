"""Good, same, bad: how often people prefer A's video, B's or neither, with intervals.

The winning rate (G - B) / (G + S + B) is UniVG's (2401.09084, table 2). Where every pair has one vote, a
share has Wilson's interval. Several people's votes on one pair are no independent ones: there, and for the
rate, pairs are drawn anew with all their votes (bootstrap, percentiles), so the interval is about other
prompts before the same people. Where no pair differs from another, which leaves nothing to draw, it is
Wilson's with pairs counted instead of votes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap

from .questions import QUESTIONS, SAME
from .votes import BETTER, WORSE, Vote

ANSWERS = (BETTER, SAME, WORSE)
CONFIDENCE = 0.95
RESAMPLES = 9999

Interval = tuple[float, float]


@dataclass(frozen=True)
class Figures:
    """One question. counts, shares and intervals in the order of ANSWERS; shares and rate are of 1.

    rate: UniVG's winning rate, -1 to 1. agree: the share of two people's votes on the same pair that are
    equal, None = no pair was seen by two.
    """

    pairs: int
    people: int
    counts: tuple[int, int, int]
    intervals: tuple[Interval, Interval, Interval]
    rate_interval: Interval
    agree: float | None

    @property
    def votes(self) -> int:
        """How many."""
        return sum(self.counts)

    @property
    def shares(self) -> tuple[float, ...]:
        """G, S and B of all votes."""
        return tuple(count / self.votes for count in self.counts)

    @property
    def rate(self) -> float:
        """(G - B) / (G + S + B)."""
        return (self.counts[0] - self.counts[2]) / self.votes


def count(votes: Sequence[Vote]) -> dict[str, Figures]:
    """The figures of each question that has votes."""
    by_question = {name: [vote for vote in votes if vote.question == name] for name in QUESTIONS}
    return {name: _figures(chosen) for name, chosen in by_question.items() if chosen}


def left_share(votes: Sequence[Vote]) -> tuple[int, int]:
    """(votes for the left video, votes for either): about half of them, where sides mean nothing."""
    decided = [vote for vote in votes if vote.answer != SAME]
    return sum((vote.left == "a") == (vote.answer == BETTER) for vote in decided), len(decided)


def _figures(votes: Sequence[Vote]) -> Figures:
    """votes: of one question."""
    names = list(dict.fromkeys(vote.pair for vote in votes))
    people = {vote.person for vote in votes}
    table = np.zeros((len(names), len(ANSWERS)), int)  # votes by pair and answer
    for vote in votes:
        table[names.index(vote.pair), ANSWERS.index(vote.answer)] += 1
    intervals = tuple(_share_interval(column, table.sum(1)) for column in table.T)
    return Figures(
        pairs=len(names),
        people=len(people),
        counts=tuple(table.sum(0).tolist()),
        intervals=intervals,
        rate_interval=_rate_interval(table, intervals),
        agree=_agreement(table),
    )


def _share_interval(chosen: np.ndarray, votes: np.ndarray) -> Interval:
    """chosen: of how many `votes` of each pair this was the answer."""
    if votes.max() == 1:
        return _wilson(int(chosen.sum()), len(votes))
    drawn = _drawn(chosen, votes)
    return drawn or _wilson(round(len(votes) * chosen.sum() / votes.sum()), len(votes))


def _rate_interval(table: np.ndarray, intervals: Sequence[Interval]) -> Interval:
    drawn = _drawn(table[:, 0] - table[:, 2], table.sum(1))
    good, _, bad = intervals
    return drawn or (max(-1.0, good[0] - bad[1]), min(1.0, good[1] - bad[0]))


def _wilson(chosen: int, of: int) -> Interval:
    low, high = binomtest(chosen, of).proportion_ci(CONFIDENCE, "wilson")
    return float(low), float(high)


def _drawn(points: np.ndarray, votes: np.ndarray) -> Interval | None:
    """The interval of all points by all votes when pairs are drawn anew; None = no pair differs."""
    means = points / votes
    if np.allclose(means, means[0]):
        return None
    found = bootstrap(
        (points, votes),
        lambda points, votes, axis: points.sum(axis) / votes.sum(axis),
        n_resamples=RESAMPLES,
        batch=100,
        paired=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _agreement(table: np.ndarray) -> float | None:
    votes = table.sum(1)
    couples = (votes * (votes - 1)).sum()
    return float((table * (table - 1)).sum() / couples) if couples else None

"""The votes that people saved on a page, checked, merged and told by whose video they are for."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from univid.files.regular import read_json
from univid.messages import shown

from .key import Key
from .questions import SAME

FORMAT, VERSION = "univid-blind-votes", 1
BETTER, WORSE = "better", "worse"  # A's video than B's; SAME: neither


@dataclass(frozen=True)
class Vote:
    """What a person thinks of A's video beside B's. pair: its name. left: "a" or "b", which stood there."""

    pair: str
    question: str
    person: str
    answer: str
    left: str


@dataclass(frozen=True)
class Ballot:
    """A file of votes, as it is. votes: {pair, question, choice, left} each, by the page's names."""

    path: Path
    page: str
    person: str
    votes: tuple[dict, ...]


def read_ballot(path: Path) -> Ballot:
    """A file that a page saved.

    Raises:
        ValueError: it cannot be read, was cut off or is no such file.
    """
    found = read_json(path)
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise ValueError(f"{shown(path)} holds no votes; give files that were saved on the page.")
    person, votes = found.get("person"), found.get("votes")
    if not isinstance(person, str) or not person.strip() or not isinstance(votes, list):
        raise ValueError(f"{shown(path)} does not say whose votes it holds; save it on the page again.")
    return Ballot(Path(path), str(found.get("page")), " ".join(person.split()), tuple(votes))


def merge(ballots: Sequence[Ballot], key: Key) -> list[Vote]:
    """All votes, by the pairs' names, whose order is the key's.

    Raises:
        ValueError: votes of another page, several files of one person, votes that the page cannot give, or
            none at all.
    """
    seen: dict[str, Path] = {}
    for ballot in ballots:
        if ballot.page != key.page:
            raise ValueError(
                f"{shown(ballot.path)} holds votes of another page ({shown(ballot.page, 40)}) than the key "
                f"({key.page}); count each page by itself."
            )
        other = seen.setdefault(ballot.person.casefold(), ballot.path)
        if other is not ballot.path:
            raise ValueError(
                f"{shown(other, 80)} and {shown(ballot.path, 80)} are both by {shown(ballot.person, 40)}; "
                "give the newer one, or change a name in one if they are two people."
            )
    votes = [vote for ballot in ballots for vote in _told(ballot, key)]
    if not votes:
        raise ValueError("there is no vote in these files; save them on the page after answering.")
    order = {pair.name: number for number, pair in enumerate(key.pairs)}
    return sorted(votes, key=lambda vote: order[vote.pair])


def _told(ballot: Ballot, key: Key) -> list[Vote]:
    """One person's votes, told by A and B."""
    votes, given, pairs = [], set(), dict(enumerate(key.pairs, 1))
    for vote in ballot.votes:
        try:
            number, question, choice, left = (vote[name] for name in ("pair", "question", "choice", "left"))
            pair = pairs[number]
            side = {pair.a: "a", pair.b: "b"}
            answer = {pair.a: BETTER, SAME: SAME, pair.b: WORSE}[choice]
            votes.append(Vote(pair.name, question, ballot.person, answer, side[left]))
        except (KeyError, TypeError) as error:
            raise _damaged(ballot, f"a vote that its page cannot give: {json.dumps(vote)}") from error
        if question not in key.questions or (number, question) in given:
            raise _damaged(ballot, f"a question twice or one that its page does not ask: {question}")
        given.add((number, question))
    return votes


def _damaged(ballot: Ballot, what: str) -> ValueError:
    return ValueError(f"{shown(ballot.path)} has {shown(what)}; save it on the page again.")

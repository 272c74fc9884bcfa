"""What people vote becomes good, same and bad, with intervals: against counts by hand, scipy and numpy."""

import json

import numpy as np
import pytest
from scipy.stats import norm

from training.__main__ import main
from training.metrics.blind.count import count, left_share
from training.metrics.blind.key import Key, KeyPair
from training.metrics.blind.votes import BETTER, SAME, WORSE, Vote

ANSWERS = (BETTER, SAME, WORSE)
FLIPPED = {"a": "b", "b": "a", SAME: SAME}


def cast(answers, question="overall", person="anna"):
    """Votes of a person on pairs 0, 1, ...; an answer is its place in ANSWERS."""
    return [Vote(f"p{pair}", question, person, ANSWERS[a], "a") for pair, a in enumerate(answers)]


def tabled(table, question="overall"):
    """Votes of several people: table [people, pairs]."""
    return [vote for row, answers in enumerate(table) for vote in cast(answers, question, f"person {row}")]


def wilson(k, n):
    """By its formula, at 95 %."""
    z, p = norm.ppf(0.975), k / n
    middle, reach = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)


def test_one_persons_votes():
    found = count(cast([0] * 12 + [1] * 5 + [2] * 3))["overall"]
    assert (found.votes, found.pairs, found.people, found.counts) == (20, 20, 1, (12, 5, 3))
    assert found.shares == (0.6, 0.25, 0.15) and found.rate == 9 / 20 and found.agree is None
    for k, interval in zip(found.counts, found.intervals, strict=True):
        assert interval == pytest.approx(wilson(k, 20), abs=1e-12)
    # the rate is a mean of 1, 0 and -1
    points = np.repeat([1, 0, -1], [12, 5, 3])
    reach = norm.ppf(0.975) * points.std() / np.sqrt(20)
    assert found.rate_interval == pytest.approx((0.45 - reach, 0.45 + reach), abs=0.05)


def test_several_peoples_votes_stay_with_their_pair():
    """Three people who always agree know no more than one: the interval is that of pairs, not of votes."""
    answers = np.random.default_rng(0).choice(3, 60, p=[0.5, 0.3, 0.2])
    one, three = (count(tabled([answers] * n))["overall"] for n in (1, 3))
    assert three.votes == 180 and three.shares == one.shares and three.agree == 1
    for single, several, k in zip(one.intervals, three.intervals, one.counts, strict=True):
        assert several == pytest.approx(single, abs=0.03)
        naive = wilson(3 * k, 180)
        assert several[1] - several[0] > 1.5 * (naive[1] - naive[0])


def test_the_drawn_interval_is_that_of_a_bootstrap_by_hand():
    rng = np.random.default_rng(1)
    table = rng.choice(3, (4, 25), p=[0.6, 0.2, 0.2])
    votes = [vote for vote in tabled(table) if rng.random() < 0.7]  # not all have seen all
    found = count(votes)["overall"]
    names = sorted({vote.pair for vote in votes})
    by_pair = [[ANSWERS.index(vote.answer) for vote in votes if vote.pair == name] for name in names]
    shares, rates = [], []
    for _ in range(4000):
        drawn = np.concatenate([by_pair[i] for i in rng.integers(len(names), size=len(names))])
        shares.append(np.bincount(drawn, minlength=3) / len(drawn))
        rates.append(shares[-1][0] - shares[-1][2])
    for column, interval in zip(np.transpose(shares), found.intervals, strict=True):
        assert interval == pytest.approx(np.percentile(column, [2.5, 97.5]), abs=0.02)
    assert found.rate_interval == pytest.approx(np.percentile(rates, [2.5, 97.5]), abs=0.03)
    same = [c == d for answers in by_pair for i, c in enumerate(answers) for d in answers[:i]]
    assert found.agree == pytest.approx(np.mean(same))


def test_the_interval_covers_what_is_true():
    """Pairs that differ: some 95 % of the intervals hold the true share; Wilson's of all votes do not."""
    rng = np.random.default_rng(2)
    held = naive = 0
    for _ in range(100):
        likes = rng.beta(1, 1, 40)  # of a pair, to be called better
        found = count(tabled((rng.random((5, 40)) > likes) * 2))["overall"]
        low, high = found.intervals[0]
        held += low <= 0.5 <= high
        low, high = wilson(found.counts[0], 200)
        naive += low <= 0.5 <= high
    assert held >= 88 and naive <= 85, (held, naive)


@pytest.mark.parametrize("people", [1, 3])
@pytest.mark.parametrize("pairs", [1, 8])
def test_agreement_is_no_certainty(people, pairs):
    """Where all pairs are alike nothing can be drawn: Wilson's interval of as many pairs."""
    low, high = wilson(pairs, pairs)[0], wilson(0, pairs)[1]
    for answer, rate in ((0, (2 * low - 1, 1)), (1, (-high, high)), (2, (-1, 1 - 2 * low))):
        found = count(tabled([[answer] * pairs] * people))["overall"]
        for place, interval in enumerate(found.intervals):
            expected = (low, 1) if place == answer else (0, high)
            assert interval == pytest.approx(expected, abs=1e-9)
        assert found.rate_interval == pytest.approx(rate, abs=1e-9)


def test_flipped_sides_flip_the_result():
    table = np.random.default_rng(3).choice(3, (3, 30), p=[0.6, 0.3, 0.1])
    found, flipped = (count(tabled(each))["overall"] for each in (table, 2 - table))
    assert found.rate > 0.2 and flipped.rate == -found.rate and flipped.counts == found.counts[::-1]
    low, high = found.rate_interval
    assert low > 0 and flipped.rate_interval == pytest.approx((-high, -low), abs=0.02)


def test_questions_are_counted_by_themselves():
    votes = cast([0, 0], "motion") + cast([2], "text")
    assert {name: found.counts for name, found in count(votes).items()} == {
        "motion": (2, 0, 0), "text": (0, 0, 1)
    }  # fmt: skip
    votes = [Vote("p", "text", "x", answer, left) for answer in ANSWERS for left in "aab"]
    assert left_share(votes) == (3, 6)


# By the command


@pytest.fixture
def counted(tmp_path, monkeypatch, capsys):
    """A page's key of three pairs, and a way to count files of votes."""
    monkeypatch.chdir(tmp_path)
    pairs = tuple(KeyPair(f"clip {n}", f"a{n}", f"b{n}") for n in (1, 2, 3))
    key = Key("page one", ("ours", "the|irs"), 5, ("overall", "motion"), pairs)
    (tmp_path / "p-key.json").write_text(key.to_json())

    def ballot(name, person, choices, changed=None):
        votes = [
            {"pair": number, "question": "overall", "choice": choice, "left": f"b{number}"}
            for number, choice in enumerate(choices, 1)
        ]
        content = {"format": "univid-blind-votes", "version": 1, "page": "page one", "person": person}
        (tmp_path / name).write_text(json.dumps(content | {"votes": votes} | (changed or {})))
        return name

    def call(*words):
        capsys.readouterr()
        main(["blind", "--count", *map(str, words)])
        return capsys.readouterr().out

    call.ballot, call.key, call.folder = ballot, key, tmp_path
    return call


def test_votes_of_several_people_are_merged(counted):
    one = counted.ballot("1.json", "Anna", ["a1", "same", "b3"])
    two = counted.ballot("2.json", "Bo", ["a1", "a2", "a3"])
    text = counted(one, two, "--out", "all.json")
    row = next(line for line in text.splitlines() if line.startswith("| overall"))
    by_hand = "| overall | 6 | 3 | 2 | 4 / 1 / 1 | 66.7 [50.0, 100.0] | 16.7 [0.0, 50.0] | 16.7 [0.0, 50.0] |"
    assert row == f"{by_hand} 50.0 [0.0, 100.0] | 33 |"
    assert "ours against the\\|irs" in text and "with 95 % intervals" in text and "Below 20 pairs" in text
    assert "Of 5 votes for one of two videos, 1 were for the left one" in text
    merged = json.loads((counted.folder / "all.json").read_text())
    assert merged["figures"]["overall"]["counts"] == [4, 1, 1] and merged["left"] == {"chosen": 1, "of": 5}
    assert merged["votes"][0] == {
        "pair": "clip 1", "question": "overall", "person": "Anna", "answer": "better", "left": "b"
    }  # fmt: skip
    with pytest.raises(ValueError, match="all.json exists already"):
        counted(one, "--out", "all.json")


def test_a_key_whose_sides_are_exchanged_gives_the_opposite(counted):
    name = counted.ballot("1.json", "Anna", ["a1", "a2", "b3"])
    assert "2 / 0 / 1" in counted(name)
    pairs = tuple(KeyPair(pair.name, pair.b, pair.a) for pair in counted.key.pairs)
    exchanged = Key("page one", ("x", "y"), 5, ("overall",), pairs)
    (counted.folder / "other.json").write_text(exchanged.to_json())
    assert "1 / 0 / 2" in counted(name, "--key", "other.json")


TWICE = [{"pair": 1, "question": "overall", "choice": "a1", "left": "a1"}] * 2
BAD = {
    "another page": ({"page": "page two"}, "votes of another page (page two) than the key (page one)"),
    "nobody": ({"person": " "}, "does not say whose votes"),
    "no votes": ({"format": "x"}, "holds no votes"),
    "empty": ({"votes": []}, "there is no vote in these files"),
    "no list": ({"votes": 3}, "does not say whose"),
    "unknown video": ({"votes": [TWICE[0] | {"choice": "c1"}]}, "a vote that its page cannot give"),
    "unknown pair": ({"votes": [TWICE[0] | {"pair": 9}]}, "a vote that its page cannot give"),
    "no vote": ({"votes": ["a1"]}, "a vote that its page cannot give"),
    "unhashable": ({"votes": [TWICE[0] | {"pair": [1]}]}, "a vote that its page cannot give"),
    "unknown question": ({"votes": [TWICE[0] | {"question": "size"}]}, "that its page does not ask: size"),
    "twice": ({"votes": TWICE}, "a question twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_votes(counted, case):
    changed, reason = BAD[case]
    name = counted.ballot("1.json", "Anna", ["a1"], changed)
    with pytest.raises(ValueError) as error:
        counted(name, "--key", "p-key.json")
    assert reason in str(error.value) and "1.json" in str(error.value) or case == "empty"


def test_cut_files_and_people_who_vote_twice(counted):
    one, again = (counted.ballot(f"{n}.json", person, ["a1"]) for n, person in ((1, "Anna"), (2, " anna")))
    with pytest.raises(ValueError, match="1.json and 2.json are both by anna; give the newer one"):
        counted(one, again)
    whole = (counted.folder / one).read_text()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        (counted.folder / one).write_text(whole[:length])
        with pytest.raises(ValueError, match="1.json is no JSON that can be read"):
            counted(one)
    (counted.folder / one).write_text("[]")
    with pytest.raises(ValueError, match="holds no JSON object"):
        counted(one)
    with pytest.raises(ValueError, match="nothing.json cannot be read"):
        counted("nothing.json")


def test_keys_that_are_none(counted):
    name = counted.ballot("1.json", "Anna", ["a1"], {"page": "page two"})
    with pytest.raises(ValueError, match="no key of page page two lies here"):
        counted(name)
    damaged = counted.key.to_json().replace('"a"', '"c"')
    for text, reason in (("{}", "is no key of a page"), (damaged, "is a damaged key")):
        (counted.folder / "k.json").write_text(text)
        with pytest.raises(ValueError, match=reason):
            counted(name, "--key", "k.json")

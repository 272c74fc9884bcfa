"""The page as people meet it, from disk in a real browser: playing, voting by keyboard, saving, counting."""

import json
import shutil

import numpy as np
import pytest
from browsing import visit
from scipy.stats import chisquare
from test_blind_page import manifest

from training.__main__ import main
from training.metrics.blind.key import read_key
from univid.video import write_frames

PAIRS = 6
PHONE = {"viewport": {"width": 390, "height": 844}, "isMobile": True, "hasTouch": True, "colorScheme": "dark"}
PLANS = """[...Array(600).keys()].map((number) => plan(`person ${number}`)
    .filter((step) => step.question === 'overall')
    .map(({ pair, sides }) => [pair.pair, Number(sides[0] !== pair.videos[0])]))"""
LAPTOP = {"viewport": {"width": 1366, "height": 768}}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of six pairs with two questions each; A's clips are larger, longer and of another rate."""
    folder = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    for name, frames, size, fps in (("ours", 16, (72, 128), 16), ("theirs", 6, (36, 64), 8)):
        for index in range(PAIRS):
            pixels = rng.integers(0, 255, (frames, 1, 1, 3), np.uint8)
            write_frames(np.broadcast_to(pixels, (frames, *size, 3)), folder / name / f"{index}.mp4", fps)
        rows = [{"file": f"{index}.mp4", "prompt": f"prompt {index} <b>"} for index in range(PAIRS)]
        manifest(folder / name, rows)
    words = ["blind", folder / "ours", folder / "theirs", "--out", folder / "page", "--seed", 5]
    main([*map(str, words), "--questions", "overall", "text"])
    return folder / "page"


@pytest.fixture(scope="module")
def seen(page, tmp_path_factory):
    """What came of the visits of three people; and the folder with what they saved."""
    folder = tmp_path_factory.mktemp("saved")
    key = read_key(page.with_name("page-key.json"))
    ours = [pair.a for pair in key.pairs]
    anna = [
        ("look", None), ("type", "Anna"), ("press", "Enter"), ("look", None), ("watch", None),
        ("vote", {"prefer": ours, "most": 5}), ("look", None), ("close", None), ("look", None),
        ("press", "Backspace"), ("look", None), ("press", "Enter"),
        ("vote", {"prefer": ours}), ("look", None), ("save", "s"),
    ]  # fmt: skip
    bo = [
        ("type", "Bo  Li"), ("press", "Enter"), ("press", "ArrowDown"), ("look", None),
        ("press", "Backspace"), ("look", None), ("press", "ArrowLeft"),
        ("vote", {"prefer": "ArrowLeft"}), ("save", "Control+s"),
        ("press", "Tab"), ("press", "Tab"), ("press", "Tab"), ("press", "Enter"), ("look", None),
        ("evaluate", PLANS),
    ]  # fmt: skip
    cy = [
        ("type", "Cy"), ("tap", "#who button"), ("watch", None), ("look", None),
        *[("tap", "[data-answer=same]")] * 3, ("tap", ".save"), ("tap", "#on"), ("look", None),
    ]  # fmt: skip
    people = [(LAPTOP, anna), (LAPTOP, bo), (PHONE, cy)]
    visits = visit(page / "index.html", folder, [{"options": o, "acts": acts} for o, acts in people])
    return visits, folder, key


def test_nothing_is_asked_of_a_network_and_nothing_fails(seen):
    for one in seen[0]:
        assert one["asked"] == [] and one["complaints"] == []


def test_it_says_what_is_to_come_and_plays_both_equally_large(seen):
    start, first, shown = (seen[0][0]["answers"][place] for place in (0, 3, 4))
    assert start["screen"] == "start" and f"{PAIRS} pairs of videos, {2 * PAIRS} questions" in start["text"]
    assert f"In {PAIRS} pairs the two videos differ in size, length and frame rate" in start["text"]
    assert first["screen"] == "vote" and "prompt" in first["text"] and "<b>" in first["text"]
    assert "Pair 1/6" in first["text"] and "Left is better" in first["text"]
    assert shown[0]["width"] == shown[1]["width"] > 400 and shown[0]["height"] == shown[1]["height"]
    assert sorted(video["own"] for video in shown) == [[64, 36], [128, 72]]
    assert sorted(video["time"] for video in shown) == pytest.approx([0.75, 1], abs=0.01)
    assert not first["wide"] and first["pixels"][0] <= first["pixels"][1], "it does not fit a laptop"


def test_votes_outlive_the_window_and_may_be_changed(seen):
    given, before, _, after, _, back = seen[0][0]["answers"][5:11]
    assert given == 5 and before["text"] == after["text"] and before["names"] == after["names"]
    assert "Pair 3/6" in after["text"] and "question 2/2" in after["text"] and after["chosen"] == []
    assert "question 1/2" in back["text"] and back["chosen"] != [], "an answer that was given is shown"
    answered, again = seen[0][1]["answers"][3], seen[0][1]["answers"][5]
    assert answered["chosen"] == [] and again["chosen"] == ["same"]


def test_what_is_saved_is_counted(seen, page, capsys):
    """Anna always prefers A's, wherever it stands; Bo always the left one, whose it may be."""
    visits, folder, key = seen
    assert visits[0]["answers"][-3:-1] == [2 * PAIRS - 5, visits[0]["answers"][-2]]
    assert "All 12 answers given" in visits[0]["answers"][-2]["text"]
    anna, bo = visits[0]["answers"][-1], visits[1]["answers"][8]
    assert (anna, bo) == (f"votes-{key.page[:6]}-anna.json", f"votes-{key.page[:6]}-bo-li.json")
    saved = {name: json.loads((folder / name).read_text())["votes"] for name in (anna, bo)}
    ours = [pair.a for pair in key.pairs]
    assert all(vote["left"] == vote["choice"] for vote in saved[bo])
    left = sum(vote["left"] in ours for vote in saved[bo]) // 2
    for name, counts in ((anna, "6 / 0 / 0"), (bo, f"{left} / 0 / {PAIRS - left}")):
        capsys.readouterr()
        main(["blind", "--count", str(folder / name), "--key", str(page.with_name("page-key.json"))])
        table = capsys.readouterr().out
        for question in ("overall", "text"):
            assert f"| {question} | 6 | 6 | 1 | {counts} |" in table


def test_everybody_has_an_order_and_sides_of_their_own(seen):
    """Over 600 people each pair is first equally often, and each of its videos stands left half as often."""
    plans = np.array(seen[0][1]["answers"][-1])  # [people, pairs, 2]: the pair, and 1 where it is turned
    assert plans.shape == (600, PAIRS, 2)
    assert (np.sort(plans[..., 0]) == np.arange(1, PAIRS + 1)).all()
    assert chisquare(np.bincount(plans[:, 0, 0])[1:]).pvalue > 1e-4
    for pair in range(1, PAIRS + 1):
        assert 240 <= plans[..., 1][plans[..., 0] == pair].sum() <= 360
    assert len({plan.tobytes() for plan in plans}) > 590


def test_buttons_are_reached_by_tab_and_by_touch(seen):
    assert seen[0][1]["answers"][-2]["screen"] == "start", "the third button at the end is for another person"
    shown, first, later = (seen[0][2]["answers"][place] for place in (2, 3, -1))
    assert shown[0]["width"] == shown[1]["width"] > 300 and "Upper is better" in first["text"]
    assert not first["wide"] and first["pixels"][0] <= first["pixels"][1], "it does not fit a phone"
    assert "Pair 3/6" in later["text"] and "question 1/2" in later["text"]


def test_a_video_that_is_missing_is_said_and_not_voted_on(page, tmp_path):
    shutil.copytree(page, tmp_path / "cut")
    for path in (tmp_path / "cut/media").glob("*.mp4"):
        path.unlink()
    acts = [("type", "Di"), ("press", "Enter"), ("wait", 300), ("press", "ArrowLeft"), ("look", None)]
    (one,) = visit(tmp_path / "cut/index.html", tmp_path, [{"acts": acts}])
    last = one["answers"][-1]
    assert last["broken"] == 2 and "Pair 1/6" in last["text"] and "cannot be shown" in last["text"]

"""The scorer of known frames: the truth passes, what needs no model does not, and a seam is seen."""

import numpy as np
import torch
from experts import knowing

from training.tiny import known_scores as scores
from training.tiny.machine import Machine
from univid import checkpoints


def total(video, made, scene):
    hits = scores.in_between(made, video, scene)
    return {word: np.mean([hit[word] for hit in hits]) for word in hits[0]}


def test_the_truth_is_right_and_simple_ways_are_not():
    found = {name: [] for name in ("truth", "blend", "repeat")}
    for index in range(12):
        video, scene = scores.truth(index, 13)
        keys = video[:: scores.FACTOR]
        found["truth"].append(total(video, video, scene))
        found["blend"].append(total(video, scores.blended(keys), scene))
        found["repeat"].append(total(video, np.repeat(keys, scores.FACTOR, axis=0)[:13], scene))
    mean = {
        name: {word: np.mean([row[word] for row in rows]) for word in rows[0]} for name, rows in found.items()
    }
    assert mean["truth"] == {"place": 1, "colour and shape": 1}
    assert mean["blend"]["colour and shape"] < 0.9 and mean["repeat"]["place"] < 0.5


def test_blending_is_linear():
    keys = np.zeros((2, 1, 1, 3), np.uint8)
    keys[1] = 200
    assert scores.blended(keys)[:, 0, 0, 0].tolist() == [0, 50, 100, 150, 200]


def test_a_jump_at_a_seam_is_seen():
    video, _ = scores.truth(3, scores.MOMENTS)
    right = scores.at_seams(video)
    assert right["inside"] == right["at seams"] == 1
    jumped = video.copy()
    jumped[24:] = np.roll(video[24:], 12, axis=1)
    seen = scores.at_seams(jumped)
    assert seen["at seams"] < 1 and seen["change at seams"] > 1.5 * seen["change inside"]
    elsewhere = video.copy()
    elsewhere[30:] = np.roll(video[30:], 12, axis=1)
    seen = scores.at_seams(elsewhere)
    assert seen["change at seams"] < seen["change inside"]


def test_random_weights_score_nothing(small_checkpoint, tmp_path):
    path = tmp_path / "known.safetensors"
    checkpoints.save(path, knowing(checkpoints.load(small_checkpoint, dtype=torch.float32)))
    result = scores.evaluate(str(path), 1, Machine(), tmp_path / "known.json")
    assert result["in between"]["model"]["place"]["value"] < 0.5
    assert [check["what"] for check in result["checks"]] == [what for what, _, _ in scores.GOALS]
    assert not result["checks"][0]["met"]
    text = scores.report(result)
    assert (
        "Missed: in between: place" in text
        and "the VAE's truth" in text
        and "going on, steady at seams" in text
    )
    assert (tmp_path / "known.json").stat().st_size > 500

"""The evaluation: what it asks, counts and writes; with generators that must pass and ones that must fail."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from training.tiny import evaluate as module
from training.tiny import shapes, table
from training.tiny.evaluate import (
    CONTENT,
    PROTOCOL,
    ROWS,
    T2V,
    Condition,
    conditions,
    evaluate,
    make_clips,
    marks,
)  # fmt: skip
from training.tiny.machine import Machine, forget_models
from training.tiny.scorer import agreement, read
from univid import generate, load
from univid.checkpoints import save
from univid.presets import PROFILES

PROFILE = PROFILES["tiny"]
README = f"# Title\r\n\r\ntext\n{table.BEGIN}\nold\n{table.END}\nmore {{text}}\n"


@pytest.fixture(scope="module")
def full_size(small_checkpoint, tmp_path_factory):
    """The small random checkpoint, which asks for clips as long and as large as the tiny one's."""
    model = load(small_checkpoint)
    model.profile = PROFILE
    path = tmp_path_factory.mktemp("full") / "full.safetensors"
    save(path, model)
    return path


def perfect(model, row, asked, seed):
    """True clips of what was asked, the very ones that the pictures are frames of. Untrained: noise."""
    if row.control == "untrained":
        return np.random.default_rng(seed).integers(0, 256, (len(asked), 12, 64, 64, 3), np.uint8)
    frames = row.frames or PROFILE.frames
    clips = []
    for index, one in enumerate(asked, start=seed - row.seed):
        rng = np.random.default_rng([row.seed, index])
        scene = one.text
        if one.shown and row.weights[1] > row.weights[0] / 2:
            scene = one.shown
        clips.append(shapes.draw(scene, rng, frames, PROFILE.height))
    return np.stack(clips)


def run(checkpoint, folder, monkeypatch=None, generator=None, **options):
    if generator:
        monkeypatch.setattr(module, "make_clips", generator)
    readme = folder / "README.md"
    readme.write_bytes(README.encode())
    result = evaluate(checkpoint, out=folder / "figures.json", readme=readme, **options)
    return result, readme.read_bytes().decode()


def missed(result):
    return [check["what"] for check in result["checks"] if not check["met"]]


def test_share_is_wilsons_interval():
    for hits, n in ((0, 7), (1, 4), (190, 200), (200, 200)):
        figure = table.share([True] * hits + [False] * (n - hits))
        low, high = binomtest(hits, n).proportion_ci(method="wilson")
        assert (figure["value"], figure["low"], figure["high"]) == pytest.approx(
            (hits / n, low, high), abs=1e-6
        )


def test_mean_covers_the_truth():
    rng = np.random.default_rng(0)
    figures = [table.mean(rng.beta(8, 2, 100)) for _ in range(400)]
    covered = np.mean([figure["low"] <= 0.8 <= figure["high"] for figure in figures])
    assert 0.92 < covered < 0.98
    assert table.mean([1.0, 1.0]) == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_protocol():
    assert PROTOCOL["clips"] >= 200
    scored = [r for r in ROWS.values() if r.group not in ("steering", "lengths") and r.control is None]
    assert len({row.seed for row in scored}) == len(scored)
    longer = [row for row in ROWS.values() if row.group == "lengths"]
    assert {row.frames for row in longer} == {24, 32, 48}
    for row in longer:
        same = ("given", "scenes", "weights", "seed")
        assert all(getattr(row, field) == getattr(ROWS[row.like], field) for field in same)
    steering = [row for row in ROWS.values() if row.group == "steering"]
    assert [row.weights for row in steering][::4] == [[1, 0], [0, 1]] and len(
        {row.seed for row in steering}
    ) == 1
    for row in ROWS.values():
        assert {*row.at_least, *row.at_most} <= table.COLUMNS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_conditions_are_fixed_and_as_the_row_says(name):
    row = ROWS[name]
    asked, again = conditions(row, range(60), PROFILE), conditions(row, range(30, 60), PROFILE)
    for one, other in zip(asked[30:], again, strict=True):
        assert (one.text, one.shown) == (other.text, other.shown)
        assert one.picture is None or (one.picture == other.picture).all()
    for one in asked:
        assert (one.text is None) == (row.given == "picture") and (one.shown is None) == (row.given == "text")
        scenes = [scene for scene in (one.text, one.shown) if scene]
        assert all(shapes.is_held_out(scene) == (row.scenes == "held_out") for scene in scenes)
        if row.given == "both":
            assert one.text == one.shown
        if row.given == "conflict":
            assert all(getattr(one.text, word) != getattr(one.shown, word) for word in CONTENT)
    if row.given != "text":
        right = [agreement(read(one.picture[None]), one.shown) for one in asked]
        assert all(mark[word] for mark in right for word in CONTENT)
    assert len({one.text or one.shown for one in asked}) >= min(60, 42)  # spread over the scenes


def test_perfect_clips_meet_every_goal(full_size, tmp_path, monkeypatch):
    result, readme = run(full_size, tmp_path, monkeypatch, perfect, clips=24, ablation={"all": full_size})
    assert missed(result) == []
    for name, row in ROWS.items():
        figures = result["rows"][name]["figures"]
        assert figures["found"]["value"] == (row.control != "untrained")
        for figure in row.at_least:
            assert figures[figure]["value"] == 1, (name, figure)
        if row.control:
            assert figures["text_all"]["value"] <= 0.05
    assert result["rows"]["I2V"]["figures"]["near"]["value"] == 1
    assert result["ablation"]["all"]["steadiness"]["value"] == 1
    assert result["ablation"]["all"]["text_motion_32"]["value"] == 1
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads(json.dumps(result))
    first = result["rows"][T2V]["clips"][0]
    assert first["text"] == first["seen"] == conditions(ROWS[T2V], range(1), PROFILE)[0].text.caption
    assert "Goals met: 34 of 34." in readme and "| T2V, seen | 100.0 [86.2, 100.0] |" in readme


def test_only_what_is_between_the_markers_changes(full_size, tmp_path, monkeypatch):
    _, readme = run(full_size, tmp_path, monkeypatch, perfect, clips=2)
    before, after = README.split("old\n")
    assert readme.startswith(before) and readme.endswith(after) and "old\n" not in readme
    rows = [line for line in readme.splitlines() if line.startswith("|")]
    assert len(rows) == len(ROWS) + 2 * 4 and "fp32 on cpu" in readme
    evaluate(full_size, out=tmp_path / "figures.json", readme=tmp_path / "README.md", clips=2)
    assert (tmp_path / "README.md").read_bytes().decode() == readme


def test_still_clips_miss_motion_alone(full_size, tmp_path, monkeypatch):
    def still(*arguments):
        clips = perfect(*arguments)
        return np.repeat(clips[:, :1], clips.shape[1], axis=1)

    result, readme = run(full_size, tmp_path, monkeypatch, still, clips=24)
    figures = result["rows"][T2V]["figures"]
    assert figures["text_content"]["value"] == 1 and figures["text_motion"]["value"] == 0
    assert result["rows"]["I2V"]["figures"]["moves"]["value"] == 0
    assert missed(result) == [
        "T2V, seen: motion of the text", "T2V, seen: all four", "T2V, held out: all four", "I2V: moves",
        "I2V: position", "(T+I)2V: picture and motion",
    ]  # fmt: skip
    assert "Missed: T2V, seen: motion of the text 0.0 (goal >= 95);" in readme


def test_flashes_are_seen_at_the_lengths_that_have_them(full_size, tmp_path, monkeypatch):
    def flashing(model, row, asked, seed):
        clips = perfect(model, row, asked, seed)
        if row.name == "I2V, 24 frames":
            clips[:, 7] = 255 - clips[:, 7]
        return clips

    result, readme = run(full_size, tmp_path, monkeypatch, flashing, clips=12)
    assert missed(result) == ["I2V, 24 frames: consistency", "I2V, 24 frames: change between neighbours"]
    plain, flash = (result["rows"][name]["figures"]["change"] for name in ("I2V", "I2V, 24 frames"))
    assert 1 < plain["low"] <= plain["value"] <= plain["high"] < 20 < flash["low"]
    assert f"{flash['value']:.1f}" in readme


def test_change_is_the_largest_of_a_clip():
    clip = np.zeros((4, 32, 32, 3), np.uint8)
    clip[2, :16] = 100  # and back: half the pixels by 100
    assert read(clip).change == pytest.approx(50) and read(clip[:1]).change == 0


def test_flicker_is_of_all_patches_and_for_clips_of_three_frames():
    clip = np.zeros((4, 32, 32, 3), np.uint8)
    clip[1::2, :16] = 100  # half the patches by 100
    assert read(clip).flicker == pytest.approx(50)
    short = read(clip[:2])
    assert np.isnan(short.flicker) and "flicker" not in marks(Condition(None, None, None), short)
    drawn = module.drawn_flicker(ROWS[T2V], 6, PROFILE)
    clips = perfect(None, ROWS[T2V], conditions(ROWS[T2V], range(6), PROFILE), ROWS[T2V].seed)
    by_hand = [read(clip).flicker for clip in clips]
    assert drawn == pytest.approx(np.median(by_hand)) and 0.1 < drawn < 1.5


def test_the_table_leaves_out_what_was_not_measured(full_size, tmp_path, monkeypatch):
    """Evaluations of earlier versions have no flicker."""
    result, whole = run(full_size, tmp_path, monkeypatch, perfect, clips=2)
    assert f"drawn have {result['drawn_flicker']:.2f}." in whole
    assert result["rows"]["control: untrained U-Net"]["figures"]["flicker"]["value"] > 5
    del result["drawn_flicker"]
    for row in result["rows"].values():
        del row["figures"]["flicker"]
    older = table.markdown(result)
    assert "flicker" in whole and "flicker" not in older.lower()
    seen = next(line for line in older.splitlines() if line.startswith("| T2V, seen |"))
    assert seen.count("|") == 2 + 7 and older.count("motion of the text") == whole.count("motion of the text")


def test_median_covers_the_truth():
    rng = np.random.default_rng(0)
    figures = [table.median(rng.exponential(1, 100)) for _ in range(400)]
    assert 0.9 < np.mean([figure["low"] <= np.log(2) <= figure["high"] for figure in figures]) < 0.99
    assert table.median([3.0]) == {"value": 3.0, "low": 3.0, "high": 3.0}


def test_steering_backwards_is_seen(full_size, tmp_path, monkeypatch):
    def backwards(model, row, asked, seed):
        return perfect(model, dataclasses.replace(row, weights=row.weights[::-1]), asked, seed)

    result, _ = run(full_size, tmp_path, monkeypatch, backwards, clips=8)
    steering = [what for what in missed(result) if what.startswith(("text", "steering"))]
    assert len(steering) == 4
    slopes = [check["value"] for check in result["checks"] if check["what"].startswith("steering")]
    assert slopes == [1, 1]


def test_a_generator_that_ignores_its_conditions_fails(full_size, tmp_path, monkeypatch):
    def deaf(model, row, asked, seed):
        return perfect(model, row, asked[:1], row.seed).repeat(len(asked), axis=0)

    result, _ = run(full_size, tmp_path, monkeypatch, deaf, clips=24)
    for name in (T2V, "T2V, held out", "(T+I)2V"):
        assert any(what.startswith(name) for what in missed(result))


def test_clips_come_from_generate(small_checkpoint, monkeypatch):
    model = load(small_checkpoint, dtype=torch.float32)
    calls = []

    def spy(model, prompt, image, **options):
        calls.append((prompt, image, options))
        return generate(model, prompt, image, **options)

    monkeypatch.setattr(module, "generate", spy)
    for name in (T2V, "I2V", "text 1, picture 0.5"):
        row = ROWS[name]
        asked = conditions(row, range(4), model.profile)
        clips = make_clips(model, row, asked, row.seed)
        assert clips.shape == (4, 3, 32, 32, 3) and clips.dtype == np.uint8
        prompts, pictures, options = calls.pop()
        assert prompts == ["" if row.given == "picture" else one.text.caption for one in asked]
        assert (pictures is None) == (row.given == "text")
        if pictures is not None:
            shown = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
            assert (shown == np.stack([one.picture for one in asked])).all()
        text_weight, image_weight = row.weights
        assert options == {"text_weight": text_weight, "image_weight": image_weight, "seed": row.seed}

        picture = None if pictures is None else pictures[2:3]  # a clip of a batch = the clip alone
        options["seed"] += 2
        alone = generate(model, prompts[2], picture, **options)
        assert (shapes.to_video(torch.from_numpy(clips[2:3])) - alone).abs().max() < 0.01
        assert (shapes.to_video(torch.from_numpy(clips[1:2])) - alone).abs().max() > 0.02


def test_random_weights_end_to_end(small_checkpoint, tmp_path):
    result, readme = run(small_checkpoint, tmp_path, clips=4, ablation={"full": small_checkpoint})
    again, same = run(small_checkpoint, tmp_path, clips=4, ablation={"full": small_checkpoint})
    assert result == again and readme == same
    short, long = (result["rows"][name]["figures"] for name in (T2V, "T2V, 32 frames"))
    assert result["ablation"]["full"] == short | {f"{name}_32": figure for name, figure in long.items()}
    for row in result["rows"].values():
        for name, figure in row["figures"].items():
            most = 255 if name in table.LEVELS else 1
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= most
    assert missed(result) and "Missed" in readme
    half, caption = run(small_checkpoint, tmp_path, clips=1, machine=Machine(dtype="bf16"))
    assert half["rows"].keys() == result["rows"].keys() and "bf16 on cpu" in caption


def test_untrained_is_another_network(small_checkpoint):
    forget_models()
    machine, path = Machine(), str(small_checkpoint)
    trained, untrained = (machine.model(path, seed).unet.state_dict() for seed in (None, 1))
    assert all(not torch.equal(trained[key], untrained[key]) for key in trained)
    assert machine.model(path).unet.state_dict().keys() == trained.keys()


@pytest.mark.slow
def test_workers_change_nothing(small_checkpoint, tmp_path, monkeypatch):
    rows = {name: row for name, row in ROWS.items() if not row.frames or name == module.T2V_LONG}
    monkeypatch.setattr(module, "ROWS", rows)  # long clips take long
    alone, _ = run(small_checkpoint, tmp_path, clips=22)
    spread, _ = run(small_checkpoint, tmp_path, clips=22, machine=Machine(workers=2))
    assert alone == spread


def test_mistakes_are_told_before_any_clip_is_made(small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "make_clips", None)
    for text in ("no markers", table.END + table.BEGIN, README + table.BEGIN):
        readme = tmp_path / "README.md"
        readme.write_bytes(text.encode())
        with pytest.raises(ValueError, match="add the two lines"):
            evaluate(small_checkpoint, out=tmp_path / "out.json", readme=readme)
        assert readme.read_bytes().decode() == text
    for options, words in (
        ({"clips": 0}, "at least 1"),
        ({"ablation": {"full": tmp_path / "none.safetensors"}}, "none.safetensors"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(small_checkpoint, out=tmp_path / "out.json", **options)
    assert not (tmp_path / "out.json").exists()
    for options, words in (({"dtype": "int8"}, "dtype"), ({"workers": 0}, "at least 1")):
        with pytest.raises(ValueError, match=words):
            Machine(**options)


def test_gallery(small_checkpoint, tmp_path):
    from PIL import Image

    from training.tiny.gallery import write_gallery

    for path in write_gallery(small_checkpoint, tmp_path / "pictures"):
        with Image.open(path) as picture:
            assert picture.format == "PNG" and picture.width > 400

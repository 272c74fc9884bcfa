"""Videos of a list of prompts: the right ones, each once, however many make them and however often."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from processes import torchrun

from training.__main__ import main
from training.folder import held
from training.metrics import manifest
from univid import __main__ as univid
from univid.video import read_video, to_uint8

PICTURE = "a picture.png"
ROWS = [
    "a red circle moves left",
    {"prompt": "It grows: 圆!", "image": PICTURE, "text_weight": 0.5, "image_weight": 2},
    {"image": PICTURE, "guidance": "separate", "text_guidance": 2, "image_guidance": 4},
    "a red circle moves left",
]
FILES = [
    "a_red_circle_moves_left-7.mp4",
    "it_grows-8.mp4",
    "a_picture-9.mp4",
    "a_red_circle_moves_left-10.mp4",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_checkpoint):
    """With a list, its picture and a checkpoint."""
    made = tmp_path_factory.mktemp("sample")
    Image.effect_noise((40, 24), 80).convert("RGB").save(made / PICTURE)
    (made / "list.json").write_text(json.dumps(ROWS))
    shutil.copy(small_checkpoint, made / "small.safetensors")
    return made


@pytest.fixture(scope="module")
def words(folder):
    return [
        "sample",
        "--checkpoint",
        folder / "small.safetensors",
        "--seed",
        7,
        "--prompts",
        folder / "list.json",
    ]


@pytest.fixture(scope="module")
def whole(folder, words, one_thread):
    """All of the list, made in one go."""
    run(*words, "--out", folder / "whole")
    return folder / "whole"


@pytest.fixture
def begun(whole, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(whole, tmp_path / "begun")


def run(*words):
    main(list(map(str, words)))


def frames(path):
    if path.is_dir():
        return np.stack([np.asarray(Image.open(file)) for file in sorted(path.glob("frame_*.png"))])
    return to_uint8(read_video(path)[0])


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.mp4")}


def contents(folder):
    """Of all files but locks; where the picture is from here is another question."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".lock")}
    return found | {manifest.NAME: rows(folder)}


def rows(folder):
    return [{name: value for name, value in row.items() if name != "image"} for row in manifest.read(folder)]


def test_a_video_for_each_row_with_a_manifest_beside_it(whole):
    made = manifest.read(whole)
    assert [row["file"] for row in made] == FILES
    assert sorted(path.name for path in whole.glob("*.mp4")) == sorted(FILES)
    assert [(row["index"], row["seed"], row["sample"]) for row in made] == [(i, 7 + i, 0) for i in range(4)]
    assert [row["prompt"] for row in made] == [ROWS[0], ROWS[1]["prompt"], "", ROWS[3]]
    assert all((row["frames"], row["fps"], row["size"]) == (3, 8.0, [32, 32]) for row in made)
    assert all(frames(whole / row["file"]).shape == (3, 32, 32, 3) for row in made)
    assert [
        set(row) & {"image", "text_weight", "image_weight", "guidance"} for row in (made[0], made[3])
    ] == [set()] * 2
    assert (made[1]["image"], made[1]["text_weight"], made[1]["image_weight"]) == (f"../{PICTURE}", 0.5, 2)
    assert (made[2]["guidance"], made[2]["image_guidance"], made[2]["image_weight"]) == ("separate", 4, 1.0)
    said = json.loads((whole / manifest.SETTINGS).read_text())
    assert said["checkpoint"]["name"] == "small.safetensors" and len(said["checkpoint"]["sha256"]) == 64
    assert said["settings"]["steps"] == 2 and said["clips"] == said["prompts"]["rows"] == 4


def test_each_video_is_what_generate_makes_and_can_make_again(folder, whole, tmp_path):
    """The rows' weights and guidance count: without them it is another video."""
    asked = {
        0: (["--prompt", ROWS[0], "--seed", 7], []),
        1: (["--prompt", ROWS[1]["prompt"], "--seed", 8, "--image", folder / PICTURE],
            ["--text-weight", 0.5, "--image-weight", 2]),
        2: (["--seed", 9, "--image", folder / PICTURE],
            ["--guidance", "separate", "--text-guidance", 2, "--image-guidance", 4]),
    }  # fmt: skip
    for index, (words, weights) in asked.items():
        base = ["generate", "--checkpoint", folder / "small.safetensors", *words]
        for name, given in (("same", weights), ("other", [])):
            out = tmp_path / f"{name}{index}.mp4"
            assert univid.main(list(map(str, [*base, *given, "--out", out]))) == 0
            alike = np.array_equal(frames(out), frames(whole / FILES[index]))
            assert alike == (name == "same" or not weights)
    sources = ["--checkpoint", folder / "small.safetensors", "--image", folder / PICTURE]
    again = ["repeat", whole / FILES[1], *sources, "--out", tmp_path / "again.mp4"]
    assert univid.main(list(map(str, again))) == 0
    assert np.array_equal(frames(tmp_path / "again.mp4"), frames(whole / FILES[1]))


def test_rows_alike_differ_by_their_seeds(whole):
    assert not np.array_equal(frames(whole / FILES[0]), frames(whole / FILES[3]))


def test_what_is_whole_is_not_made_again(words, whole, begun, capsys):
    before = times(begun)
    (begun / FILES[1]).unlink()
    cut = begun / FILES[2]
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (begun / FILES[3]).write_bytes(b"")
    (begun / manifest.NAME).unlink()
    (begun / ".partial_1234").write_bytes(b"of a killed run")
    run(*words, "--out", begun)
    assert "4 videos of 4 prompts, 3 of them now" in capsys.readouterr().out
    after = times(begun)
    assert after[FILES[0]] == before[FILES[0]] and after[FILES[2]] > before[FILES[2]]
    assert contents(begun) == contents(whole)
    run(*words, "--out", begun)
    assert "all of them before" in capsys.readouterr().out and times(begun) == after


def test_more_may_be_asked_for_and_not_fewer(words, whole, begun):
    before = times(begun)
    run(*words, "--samples", 2, "--out", begun)
    made = rows(begun)
    assert [(row["index"], row["sample"], row["seed"]) for row in made] == [
        (i, i // 4, 7 + i) for i in range(8)
    ]
    assert made[:4] == rows(whole) and times(begun).items() >= before.items()
    assert len({frames(begun / row["file"]).tobytes() for row in made}) == 8
    with pytest.raises(ValueError, match="a folder of 8 videos, got 6 asked for"):
        run(*words, "--clips", 6, "--out", begun)
    run(*words, "--clips", 9, "--out", begun)
    assert [row["index"] for row in manifest.read(begun) if row["prompt"] == ROWS[0]] == [0, 3, 4, 7, 8]


REFUSED = {
    "steps": (["--steps", 1], "settings.steps"),
    "guidance": (["--guidance-scale", 9], "settings.guidance_scale"),
    "a weight": (["--image-weight", 0.3], "settings.image_weight"),
    "a seed": (["--seed", 8], "settings.seed"),
    "frames per second": (["--fps", 9], "settings.fps"),
    "names": (["--format", "png"], "format"),
    "words to avoid": (["--negative", "blur"], "settings.negative"),
}


@pytest.mark.parametrize("changed, named", REFUSED.values(), ids=REFUSED)
def test_a_changed_setting_is_refused(changed, named, words, begun):
    before = contents(begun)
    with pytest.raises(
        ValueError, match=rf"videos of other settings \(.*{re.escape(named)}.*\); take another"
    ):
        run(*words, *changed, "--out", begun)
    assert contents(begun) == before


def test_another_checkpoint_list_or_picture_is_refused(folder, words, begun, tmp_path):
    before = contents(begun)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (PICTURE, "list.json", "small.safetensors"):
        shutil.copy(folder / name, copy / name)
    moved = [str(word).replace(str(folder), str(copy)) for word in words]
    run(*moved, "--out", begun)  # a copy of all is the same
    with pytest.raises(ValueError, match=r"other settings \(checkpoint.sha256, settings"):
        run(*words, "--checkpoint", "built-in", "--frames", 3, "--out", begun)
    (copy / "list.json").write_text(json.dumps([*ROWS[:3], "a blue circle moves left"]))
    with pytest.raises(ValueError, match=r"other settings \(prompts.sha256\)"):
        run(*moved, "--out", begun)
    (copy / "list.json").write_text(json.dumps(ROWS))
    Image.new("RGB", (40, 24)).save(copy / PICTURE)
    with pytest.raises(ValueError, match=r"other settings \(prompts.sha256\)"):
        run(*moved, "--out", begun)
    assert {name: data for name, data in contents(begun).items() if name.endswith("mp4")} == {
        name: data for name, data in before.items() if name.endswith("mp4")
    }


def test_nothing_of_a_user_is_lost(words, begun, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="already holds other files; name a new folder"):
        run(*words, "--out", other)
    assert [path.name for path in other.iterdir()] == ["notes.txt"]
    Image.new("RGB", (8, 8)).save(begun / FILES[0], format="GIF")
    with pytest.raises(ValueError, match="in the way, as it is none of this run's"):
        run(*words, "--out", begun)
    shutil.copy(begun / FILES[3], begun / FILES[0])
    with pytest.raises(ValueError, match=r"made with other settings \(settings.seed\); move it"):
        run(*words, "--out", begun)
    (begun / FILES[0]).unlink()
    with held(begun / ".lock"), pytest.raises(ValueError, match="another run is at work"):
        run(*words, "--out", begun)


def test_pictures_of_each_frame_lose_nothing(words, whole, tmp_path):
    """They differ from the encoded video's by what encoding loses."""
    out = tmp_path / "frames"
    run(*words, "--clips", 2, "--format", "png", "--out", out)
    names = [row["file"] for row in manifest.read(out)]
    assert names == [name.removesuffix(".mp4") for name in FILES[:2]]
    pictures = frames(out / names[0])
    loss = np.abs(pictures.astype(int) - frames(whole / FILES[0])).mean()
    assert 0 < loss < np.abs(pictures.astype(int) - frames(whole / FILES[3])).mean() / 2
    (out / names[0] / "frame_0002.png").unlink()
    run(*words, "--clips", 2, "--format", "png", "--out", out)
    assert np.array_equal(frames(out / names[0]), pictures)


def test_vbenchs_names_on_request(words, folder, tmp_path):
    (tmp_path / "list.txt").write_text("A cat, running.\na dog\n")
    named = [*words[:-1], tmp_path / "list.txt", "--names", "vbench"]
    run(*named, "--samples", 2, "--out", tmp_path / "out")
    names = ["A cat, running.-0.mp4", "a dog-0.mp4", "A cat, running.-1.mp4", "a dog-1.mp4"]
    assert [row["file"] for row in manifest.read(tmp_path / "out")] == names
    assert all((tmp_path / "out" / name).is_file() for name in names)
    for text, message in {
        "a\nb\na\n": "rows 1 and 3 have one prompt",
        "his/her\n": "no file can be called 'his/her-0'",
        f"{'long ' * 60}\n": "no file can be called",
    }.items():
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            run(*named, "--out", tmp_path / "other")
    with pytest.raises(ValueError, match="VBench reads videos alone"):
        run(*named, "--format", "png", "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()


IDLE = {
    "no picture": (["a"], ["--image-weight", 1], "--image-weight needs pictures"),
    "no videos": (["a"], ["--clips", 0], "expected 1 to 1,000,000 videos, got 0"),
    "less": (["a"], ["--samples", -1], "expected 1 to 1,000,000 videos, got -1"),
    "a seed": (["a"], ["--seed", -1], "seed must be"),
    "a weight": (["a", {"prompt": "b", "text_weight": -1}], [], "row 2: text_weight must be"),
    "a guidance": (["a", {"prompt": "b", "guidance": "strong"}], [], "row 2: guidance must be"),
    "two guidances": (
        [{"prompt": "b", "text_guidance": 2}],
        [],
        "row 1: --text-guidance does nothing with joint",
    ),
    "a scale": ([{"prompt": "b", "guidance_scale": -2}], [], "row 1: guidance scale must be"),
    "frames per second": (["a"], ["--fps", 0], "fps must be from 0.01"),
    "a size": (["a"], ["--width", 33], "width must be a positive multiple of 8"),
}


@pytest.mark.parametrize("rows, given, message", IDLE.values(), ids=IDLE)
def test_what_cannot_be_made_is_refused_before_anything_is(rows, given, message, words, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        run(*words[:-1], tmp_path / "list.json", *given, "--out", tmp_path / "out")
    assert not list(tmp_path.glob("out/*.mp4"))


@pytest.mark.parametrize("damage", ["{", "[]", '{"clips": "many"}', "{}"])
def test_a_damaged_record_of_the_folder_is_refused(damage, words, begun):
    (begun / manifest.SETTINGS).write_text(damage)
    with pytest.raises(ValueError, match=r"sample.json|other settings"):
        run(*words, "--out", begun)
    assert (begun / manifest.SETTINGS).read_text() == damage


def test_a_record_without_a_number_of_videos_is_refused(words, begun):
    path = begun / manifest.SETTINGS
    path.write_text(path.read_text().replace('"clips": 4', '"clips": "four"'))
    with pytest.raises(ValueError, match="sample.json is damaged; put it back"):
        run(*words, "--out", begun)


@pytest.mark.slow
def test_two_processes_make_what_one_does_also_after_one_was_lost(words, whole, tmp_path):
    out = tmp_path / "two"
    torchrun("-m", "training", *words, "--out", out)
    assert contents(out) == contents(whole)
    before = times(out)
    for name in FILES[1::2]:  # those of the second process
        (out / name).unlink()
    (out / manifest.NAME).unlink()
    torchrun("-m", "training", *words, "--out", out)
    assert contents(out) == contents(whole)
    assert all(times(out)[name] == before[name] for name in FILES[::2])

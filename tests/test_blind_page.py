"""The page on which people compare: what it pairs, what it shows of videos, and what it does not tell."""

import json
import re
import shutil

import av
import numpy as np
import pytest
from PIL import Image

from training.__main__ import main
from training.metrics.blind.key import read_key
from univid.video import read_video, to_uint8, write_frames

NOTE = '{"univid_receipt": 1, "checkpoint": "ours.safetensors"}'


def clip(seed, frames=4, height=16, width=24):
    """Frames of one shade each, so that an encoder leaves them as they are."""
    shades = np.random.default_rng(seed).integers(40, 200, (frames, 1, 1, 3))
    return np.broadcast_to(shades, (frames, height, width, 3)).astype(np.uint8)


def shade(frames):
    return frames.reshape(len(frames), -1, 3).mean(1).round()


@pytest.fixture
def blind(tmp_path, monkeypatch, capsys):
    """Make a page of folders; what was printed. Two folders are there: of three and of four clips."""
    monkeypatch.chdir(tmp_path)
    for folder, number in (("ours", 3), ("theirs", 4)):
        for index in range(number):
            seed = index + 10 * (folder == "ours")
            path = tmp_path / folder / f"clip{index}.mp4"
            write_frames(clip(seed), path, 8, NOTE if folder == "ours" else None)

    def call(*words):
        capsys.readouterr()
        main(["blind", *map(str, words)])
        return capsys.readouterr().out

    call.folder = tmp_path
    return call


def data(page):
    """What a page knows."""
    text = (page / "index.html").read_text("utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def manifest(folder, rows):
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_the_key_tells_which_video_is_whose_and_the_page_does_not(blind):
    text = blind("ours", "theirs", "--out", "page", "--questions", "motion", "overall")
    page, key = blind.folder / "page", read_key(blind.folder / "page-key.json")
    assert "3 pairs, asked for overall, motion" in text
    assert key.names == ("ours", "theirs") and sorted(pair.name for pair in key.pairs) == [
        "clip0", "clip1", "clip2"
    ]  # fmt: skip
    for pair in key.pairs:
        for token, seed in ((pair.a, int(pair.name[4:]) + 10), (pair.b, int(pair.name[4:]))):
            frames = to_uint8(read_video(page / "media" / f"{token}.mp4")[0])
            np.testing.assert_allclose(shade(frames), shade(clip(seed)), atol=3)
    told = data(page)
    assert told["page"] == key.page and len(told["pairs"]) == 3
    assert [row["videos"] for row in told["pairs"]] == [sorted((pair.a, pair.b)) for pair in key.pairs]
    files = sorted(path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file())
    tokens = sorted(token for pair in key.pairs for token in (pair.a, pair.b))
    assert files == ["index.html", *(f"media/{token}.mp4" for token in tokens)]
    for path in page.rglob("*"):
        if path.is_file():
            assert not re.search(b"ours|theirs|clip[0-9]|univid_receipt|safetensors", path.read_bytes()), path
    assert not re.search(r"https?://", (page / "index.html").read_text("utf-8"))


def test_neither_names_nor_their_order_nor_that_of_writing_tells(blind):
    """Over many pages A's video is the first by name in half of the pairs; the files are written by name."""
    pairs = []
    for seed in range(8):
        blind("ours", "theirs", "--out", f"page{seed}", "--seed", seed, "--questions", "overall")
        keyed = read_key(blind.folder / f"page{seed}-key.json").pairs
        pairs += keyed
        written = sorted(
            (blind.folder / f"page{seed}/media").iterdir(), key=lambda path: path.stat().st_mtime_ns
        )
        for pair in keyed:
            names = [path.stem for path in written if path.stem in (pair.a, pair.b)]
            assert names == sorted(names)
    first = sum(pair.a < pair.b for pair in pairs)
    assert 5 <= first <= 19, first  # of 24; by chance alone less is 1 in 100
    assert len({tuple(pair.name for pair in pairs[i : i + 3]) for i in range(0, 24, 3)}) > 2


def test_a_seed_gives_the_same_page_and_none_another_one_each_time(blind):
    seeds = (("a", 7), ("b", 7), ("c", 8))
    for name, seed in seeds:
        blind("ours", "theirs", "--out", name, "--seed", seed)
    for name in "de":
        blind("ours", "theirs", "--out", name)
    pages = {name: (blind.folder / name / "index.html").read_bytes() for name in "abcde"}
    assert pages["a"] == pages["b"] and len(set(pages.values())) == 4
    write_frames(clip(77), blind.folder / "ours/clip0.mp4", 8)
    blind("ours", "theirs", "--out", "f", "--seed", 7)
    assert data(blind.folder / "f")["page"] != data(blind.folder / "a")["page"]


def test_every_kind_of_video_becomes_one_that_browsers_play(blind):
    frames = clip(3, frames=6, height=15, width=21)
    ours, theirs = blind.folder / "kinds", blind.folder / "kinds2"
    for name, suffix in (("one", ".gif"), ("two", ".webm"), ("three", ".mp4"), ("four", "")):
        write_frames(frames, ours / f"{name}{suffix}", 8)
    np.save(ours / "five.npy", frames)
    shutil.copytree(ours, theirs)
    with pytest.raises(ValueError, match="does not say its frames per second; give --fps"):
        blind(ours, theirs, "--out", "page")
    assert not (blind.folder / "page").exists() and not (blind.folder / "page-key.json").exists()
    blind(ours, theirs, "--out", "page", "--fps", 8)
    made = list((blind.folder / "page/media").iterdir())
    assert len(made) == 10
    for path in made:
        with av.open(str(path)) as file:
            (stream,) = file.streams
            context = stream.codec_context
            assert (context.name, context.pix_fmt, context.width, context.height) == (
                "h264",
                "yuv420p",
                22,
                16,
            )
            assert "comment" not in {name.lower() for name in file.metadata}
            assert float(stream.average_rate) == 8
            shades = [frame.to_ndarray(format="rgb24")[:15, :21] for frame in file.decode(stream)]
        np.testing.assert_allclose(shade(np.stack(shades)), shade(frames), atol=4)


def test_what_differs_in_a_pair_is_said_before(blind):
    write_frames(clip(1, height=32, width=32), blind.folder / "ours/clip0.mp4", 8)
    write_frames(clip(1, frames=8), blind.folder / "ours/clip1.mp4", 8)
    write_frames(clip(1, frames=8), blind.folder / "ours/clip2.mp4", 16)
    text = blind("ours", "theirs", "--out", "page")
    assert "differ: 1 in size, 1 in length, 1 in frame rate; both are shown equally large" in text
    told = {tuple(row["differ"]): row["ratio"] for row in data(blind.folder / "page")["pairs"]}
    assert told == {
        ("size",): pytest.approx((1.5 * 1) ** 0.5), ("length",): 1.5, ("frame rate",): 1.5
    }  # fmt: skip


def test_prompts_pair_what_names_do_not(blind):
    """The same names for other prompts: by prompt, the first with the first."""
    prompts = {"ours": ["x", "y", "x"], "theirs": ["y", "x", "z", "x"]}
    for folder, texts in prompts.items():
        rows = [{"file": f"clip{i}.mp4", "prompt": text} for i, text in enumerate(texts)]
        manifest(blind.folder / folder, rows)
    assert "overall, quality, motion, text" in blind("ours", "theirs", "--out", "page")
    key = read_key(blind.folder / "page-key.json")
    expected = {"clip0": 1, "clip1": 0, "clip2": 3}
    for pair, row in zip(key.pairs, data(blind.folder / "page")["pairs"], strict=True):
        frames = to_uint8(read_video(blind.folder / f"page/media/{pair.b}.mp4")[0])
        np.testing.assert_allclose(shade(frames), shade(clip(expected[pair.name])), atol=3)
        assert row["prompt"] == {"clip1": "y"}.get(pair.name, "x")
    (blind.folder / "list.txt").write_text("y\n\nnever asked\n")
    assert "1 pair, asked" in blind("ours", "theirs", "--out", "y", "--prompts", "list.txt")
    manifest(blind.folder / "ours", [{"file": "clip1.mp4", "prompt": "knitting"}])
    manifest(blind.folder / "theirs", [{"file": "clip0.mp4", "prompt": "knitting"}])
    assert "2 pairs, asked" in blind("ours", "theirs", "--out", "ucf", "--prompts", "ucf101")


@pytest.mark.parametrize(
    "content",
    [
        {"clip0": "a cat", "clip1": "a dog"},
        [{"prompt": "a cat", "image": "x"}, "a dog"],
        "a cat\na dog\n",
    ],
)
def test_prompts_for_videos_that_do_not_say_theirs(blind, content):
    """By name, or where the videos are called as VBench calls them."""
    path = blind.folder / ("p.txt" if isinstance(content, str) else "p.json")
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    if not isinstance(content, dict):
        for folder in ("ours", "theirs"):
            for number, prompt in enumerate(("a cat-0", "a dog-3")):
                (blind.folder / folder / f"clip{number}.mp4").rename(blind.folder / folder / f"{prompt}.mp4")
    blind("ours", "theirs", "--out", "page", "--prompts", path)
    told = data(blind.folder / "page")["pairs"]
    assert sorted(row["prompt"] for row in told) == ["a cat", "a dog"]
    assert all("text" in row["questions"] for row in told)


def test_a_picture_is_asked_about_where_there_is_one(blind):
    Image.fromarray(clip(5)[0]).save(blind.folder / "ours/given.png", comment="of ours")
    manifest(blind.folder / "ours", [{"file": "clip1.mp4", "prompt": "x", "image": "given.png"}])
    assert "overall, quality, motion, text, picture;" in blind("ours", "theirs", "--out", "page")
    rows = data(blind.folder / "page")["pairs"]
    with_picture = [row for row in rows if row["picture"]]
    assert len(with_picture) == 1 and with_picture[0]["questions"][-1] == "picture"
    assert with_picture[0]["prompt"] == "x"
    assert all(row["questions"] == ["overall", "quality", "motion"] for row in rows if not row["picture"])
    shown = Image.open(blind.folder / "page/media" / with_picture[0]["picture"])
    np.testing.assert_array_equal(np.asarray(shown), clip(5)[0])
    (blind.folder / "ours/given.png").unlink()
    with pytest.raises(ValueError, match="given.png of clip1 is missing"):
        blind("ours", "theirs", "--out", "other")
    (blind.folder / "ours/given.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="given.png cannot be read as a picture"):
        blind("ours", "theirs", "--out", "other")
    assert not (blind.folder / "other").exists() and not (blind.folder / "other-key.json").exists()


def test_some_of_the_pairs(blind):
    chosen = []
    for seed in range(6):
        assert "1 pair, asked" in blind("ours", "theirs", "--out", f"p{seed}", "--pairs", 1, "--seed", seed)
        chosen.append(read_key(blind.folder / f"p{seed}-key.json").pairs[0].name)
    assert len(set(chosen)) > 1
    with pytest.raises(ValueError, match="--pairs must be from 1 to the 3 pairs that there are, got 4"):
        blind("ours", "theirs", "--out", "page", "--pairs", 4)


def test_what_a_prompt_holds_runs_nothing(blind):
    prompt = "</script><script>alert(1)</script><!-- {{ 7 * 7 }} \"'&\u2028"
    (blind.folder / "p.json").write_text(json.dumps({"clip0": prompt}))
    blind("ours", "theirs", "--out", "page", "--prompts", "p.json")
    text = (blind.folder / "page/index.html").read_text("utf-8")
    assert data(blind.folder / "page")["pairs"][0]["prompt"] == prompt
    assert text.count("<script") == text.count("</script>") == 2 and "alert(1)</script" not in text


def refused(blind, reason, *words):
    before = sorted(blind.folder.rglob("*"))
    with pytest.raises(ValueError, match=reason) as error:
        blind(*words)
    assert sorted(blind.folder.rglob("*")) == before
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_what_cannot_be_made_is_said_in_one_sentence(blind):
    folder = blind.folder
    write_frames(clip(1), folder / "stranger/other.mp4", 8)
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full/mine.txt").write_text("mine")
    (folder / "taken-key.json").write_text("mine")
    for words, reason in {
        ("ours", "stranger"): "no video of ours has the name or the prompt of one in stranger",
        ("ours", "ours"): "expected two folders to compare, got ours twice",
        ("ours", "empty"): "empty holds no video",
        ("ours", "nothing"): "expected a folder of videos, got nothing",
        ("ours",): "expected two folders and --out PAGE",
        ("ours", "theirs", "--out", "full"): "the folder full already holds files",
        ("ours", "theirs", "--out", "taken"): "taken-key.json is the key of another page",
        ("ours", "theirs", "--out", "page.html"): "name it without .html",
        ("ours", "theirs", "--questions", "text"): "the question text needs a prompt",
        ("ours", "theirs", "--questions", "picture"): "the question picture needs a picture",
        ("ours", "theirs", "--fps", "0"): "--fps must be from 0.01 to 1000, got 0.0",
        ("ours", "theirs", "--fps", "inf"): "--fps must be from 0.01 to 1000, got inf",
        ("ours", "theirs", "--count", "votes.json"): "got both",
    }.items():
        refused(blind, reason, *words, *([] if "--out" in words else ["--out", "page"]))
    for text, reason in (
        ("[]", "expected prompts in p.json, got none"),
        ("{", "p.json is no JSON that can be read"),
        ("3", "expected a list of prompts in p.json, got a number"),
        ('{"a": 1}', "expected a list of prompts in p.json, got an object"),
    ):
        (folder / "p.json").write_text(text)
        refused(blind, reason, "ours", "theirs", "--out", "page", "--prompts", "p.json")
    (folder / "p.txt").write_text("never asked")
    refused(blind, "no pair has one of the prompts", "ours", "theirs", "--out", "page", "--prompts", "p.txt")
    (folder / "theirs/clip2.mp4").write_bytes((folder / "theirs/clip2.mp4").read_bytes()[:400])
    refused(blind, "clip2.mp4 cannot be read as a video", "ours", "theirs", "--out", "page")

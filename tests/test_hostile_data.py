"""Training's data as cameras, old tools and strangers leave it: found in any case, bounded, never trusted."""

import json
import logging
import os
import shutil
import tarfile

import pytest
from fuzz_data import fuzz
from shards import CLIPS, jpeg, make_folder, opener, pictures, read_all, write_tar

from training.data import folders, members, sources
from training.data.config import DataConfig, SourceConfig
from training.data.samples import BadSample
from univid.files.hashes import cache_folder


@pytest.fixture
def opened(tmp_path):
    return opener(tmp_path / "cache")


def put(folder, **files):
    """Files by name, _ for the dot of a suffix."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        data = data.encode() if isinstance(data, str) else data
        (folder / name.replace("_", ".")).write_bytes(data)
    return folder


# Names


@pytest.mark.parametrize(
    "names", ["A0.JPG A0.TXT", "A0.JPG A0.txt", "A0.jpg A0.Txt", "A0.JPG a0.txt", "a.jpg A.TXT"]
)
@pytest.mark.parametrize("caption", ["txt", "TXT", "json:title"])
def test_captions_are_found_in_any_case(tmp_path, opened, names, caption):
    medium, words = names.split()
    folder = put(tmp_path / "own", **{medium.replace(".", "_"): jpeg(64, 64)})
    if caption == "json:title":
        words = words.replace("txt", "json").replace("TXT", "JSON").replace("Txt", "Json")
    (folder / words).write_text("words" if caption != "json:title" else '{"title": "words"}')
    assert [raw.caption for raw in read_all(opened(folder, caption=caption))] == ["words"]
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(folder / medium, f"a.{medium.split('.')[1]}")
        tar.add(folder / words, f"a.{words.split('.')[1]}")
    assert [raw.caption for raw in read_all(opened(path, caption=caption))] == ["words"]


def test_a_caption_of_one_clip_is_not_that_of_another_case(tmp_path, opened):
    folder = put(tmp_path / "own", a_jpg=jpeg(64, 64), A_JPG=jpeg(64, 64), a_txt="small")
    source = opened(folder)
    found = {}
    for index in range(2):
        try:
            found[source.read(1, 0, index).media.name] = "small"
        except BadSample as error:
            assert "A.JPG: no caption" in str(error)
    assert found == {"a.jpg": "small"}
    put(folder, A_TXT="large")
    assert {raw.media.name: raw.caption for raw in read_all(opened(folder))} == {
        "a.jpg": "small",
        "A.JPG": "large",
    }


def test_lists_and_tars_may_be_written_large(tmp_path, opened):
    folder = put(tmp_path / "own", a_jpg=jpeg(64, 64))
    (folder / "METADATA.JSONL").write_text('{"file": "a.jpg", "caption": "words"}')
    assert read_all(opened(folder))[0].caption == "words"
    write_tar(tmp_path / "big" / "0.TAR", pictures(3))
    for path in ("big/0.TAR", "big/*.TAR", "big"):
        assert opened(tmp_path / path).counts().sum() == 3


def test_clips_of_other_suffixes_are_taken_and_what_is_not_is_named(tmp_path, opened, caplog):
    names = "a.mp4 b.m4v c.ts d.mpg e.wmv f.MTS g.3gp h.flv i.m2ts j.VOB k.ogv l.mpeg".split()
    folder = put(tmp_path / "own")
    for name in names:
        shutil.copy(CLIPS["carphone_pristine.mp4"], folder / name)
        (folder / name).with_suffix(".txt").write_text(name)
    put(folder, m_heic=b"?", m_txt="words", n_rm=b"?", n_txt="words", o_avif=b"?", note_srt="?", note_txt="?")
    raws = read_all(opened(folder, kind="clip"))
    assert sorted(raw.caption for raw in raws) == names
    said = next(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert "own: passed over 1 .heic, 1 .rm, which have captions" in said and "avif" not in said


def test_what_a_tar_holds_of_no_known_kind_is_named(tmp_path, opened, caplog):
    samples = pictures(2) | {"x": {"heic": b"?", "txt": "words"}, "y": {"heic": b"?"}}
    source = opened(write_tar(tmp_path / "0.tar", samples))
    assert len(read_all(source)) == 2
    assert "0.tar: passed over 1 .heic, which have captions" in caplog.text


@pytest.mark.parametrize("name", ["a.mp4", "a.txt", "metadata.jsonl", "note.md"])
def test_a_pipe_is_no_file(tmp_path, opened, caplog, name):
    folders._warn_of_others.cache_clear()
    folder = make_folder(tmp_path / "own")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    (folder / "c.mp4").symlink_to(folder / "nowhere")  # still a sample, a bad one
    (folder / "circle").symlink_to(folder / "circle")
    source = opened(folder, kind="clip")
    assert source.counts().sum() == 4 and f"{name} is no regular file and is passed over" in caplog.text
    os.mkfifo(tmp_path / "p.tar")
    with pytest.raises(ValueError, match=r"expected a folder or a .tar, uncompressed, got '.*p.tar'"):
        opened(tmp_path / "p.tar")
    with pytest.raises(ValueError, match="it is no regular file"):
        opened(tmp_path / "*.tar")


def test_names_that_are_no_text_can_be_logged(tmp_path, opened):
    from streams import stream

    from training.data.loader import BadSamples

    folder = os.fsencode(put(tmp_path / "own"))
    for name in (b"\xff.jpg", b"\xff.txt"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(jpeg(64, 64) if name.endswith(b"jpg") else b" ")
    source = opened(tmp_path / "own")
    with pytest.raises(BadSample) as error:
        source.read(1, 0, 0)
    bad = BadSamples(tmp_path / "run", stream())
    bad._note([{"reason": str(error.value)}])
    assert "caption is empty" in (tmp_path / "run" / "bad.jsonl").read_text()


# Sizes and depths


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"start": 1e300}, "numbers up to 10,000,000"),
        ({"end": 1e300}, "numbers up to"),
        ({"start": 10**400}, "got a number of more than 18 digits"),
        ({"start": 1e18}, "numbers up to"),
        ({"end": 10_000_001}, "numbers up to"),
        ({"caption": "x" * 70_000}, "more than 65,536 characters"),
        ({"caption": ["x" * 100_000]}, "must be text, got"),
        ({"file": "x" * 100_000}, "there is no file 'xxx.* … .*xxx'"),
        ({"x" * 100_000: 1}, "the fields are"),
        ({"more": "x" * 2_000_000}, "more than 1,048,576 bytes"),
        ({"file": "\x1b[2J"}, r"no file '\\\\?x1b"),
    ],
)
def test_a_line_of_a_list_is_bounded(tmp_path, opened, row, reason):
    path = make_folder(tmp_path / "own")
    good = {"file": "b.mp4", "caption": "x"}
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, (good, good | row))))
    with pytest.raises(ValueError, match=f"metadata.jsonl, line 2: .*{reason}") as error:
        opened(path, kind="clip")
    assert len(str(error.value)) < 400 and str(error.value).isprintable()


@pytest.mark.parametrize("loose", [False, True])
@pytest.mark.parametrize(
    "members, reason",
    [
        ({"txt": "x" * 70_000}, "its txt has more than 65,536 bytes"),
        ({"json": b"[" * 20_000_000}, "its json has more than 16,777,216 bytes"),
        ({"json": b'{"a": ' * 500 + b"1" + b"}" * 500}, "nested more than 100 deep"),
        ({"json": b'{"a": ' + b"9" * 5000 + b"}"}, "does not parse"),
    ],
)
def test_a_sample_s_words_are_bounded(tmp_path, opened, members, reason, loose):
    sample = {"jpg": jpeg(64, 64), "txt": "fine", "json": {}}
    path = write_tar(tmp_path / "0.tar", {"good": sample, "wrong": sample | members})
    if loose:
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "folder", filter="data")
        path = tmp_path / "folder"
    source = opened(path)
    assert source.read(1, 0, 0).caption == "fine"
    with pytest.raises(BadSample, match=f"wrong.*: .*{reason}"):
        source.read(1, 0, 1)


def test_jsons_of_any_shape_say_what_they_can(tmp_path, opened):
    """A rotation that is a list was no number that a set can hold."""
    odd = [[1], {"x": 1}, None, "90", True, float("nan")]
    samples = {
        f"{number}": {
            "jpg": jpeg(96, 48),
            "txt": "x",
            "json": {"video_metadata": {"streams": [
                {"codec_type": "video", "width": 30, "height": 60, "side_data_list": [{"rotation": value}]}
            ]}},
        }
        for number, value in enumerate(odd)
    }  # fmt: skip
    source = opened(write_tar(tmp_path / "0.tar", samples))
    assert source.counts().tolist() == [[0], [0], [0], [6]]
    assert members.size_in_json({"width": True, "height": True}) == (0, 0)


def test_a_shard_s_names_of_numbers_are_bounded():
    jsons = [json.dumps({f"{sample} {i}": i for i in range(600)} | {"y" * 300: 1}) for sample in range(3)]
    facts = members.collect(3, [text.encode() for text in jsons], lambda sample, meta: (0, 0))
    assert facts.numbers.shape == (3, members.NAMES) and len(facts.names) == members.NAMES


def test_a_member_too_large_for_memory_is_a_bad_sample(tmp_path, opened, monkeypatch):
    monkeypatch.setattr("training.data.tars.MEDIUM_BYTES", 500)
    source = opened(write_tar(tmp_path / "0.tar", pictures(1)))
    bucket = int(source.counts()[:, 0].argmax())
    with pytest.raises(BadSample, match="its jpg has more than 500 bytes"):
        source.read(bucket, 0, 0)


# Settings


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_bad_share": float("nan")}, "max_bad_share must be from 0 to 1, got nan"),
        ({"max_bad_share": 1.5}, "max_bad_share must be"),
        ({"fps": float("nan")}, "fps above 0"),
        ({"fps": float("inf")}, "fps above 0"),
        ({"buckets": ()}, "at least one bucket"),
        ({"buckets": ((64, 64 * 10**9),)}, "multiples of 8, at least 64 and at most 8192"),
        ({"max_frames": 10**30}, "max_frames <= 100,000"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**changes)
    with pytest.raises(ValueError, match="must be numbers, got"):
        SourceConfig((), at_least={"a": float("nan")})


def test_an_empty_variable_names_no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, place in (("", tmp_path / ".cache"), (str(tmp_path / "x"), tmp_path / "x")):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == place / "univid"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "univid"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user whom the system does not know
    assert cache_folder().is_absolute() and cache_folder().name == "univid"


def test_messages_of_a_source_stay_short(tmp_path, opened):
    names = {"n" * 150 + str(i): "words" for i in range(300)}
    samples = {"a": {"jpg": jpeg(64, 64), "json": names | {key + "x": 1 for key in names}}}
    path = write_tar(tmp_path / ("t" * 150) / "0.tar", samples)
    for settings in ({}, {"caption": "json:" + "n" * 150 + "0", "at_least": {"z" * 1000: 1}}):
        with pytest.raises(ValueError) as error:
            opened(path, **settings)
        assert len(str(error.value)) < 500
    with pytest.raises(ValueError) as error:
        sources.find_shards(["\x1b[2J" + "x" * 10_000], "image")
    assert len(str(error.value)) < 300 and "\x1b" not in str(error.value)


@pytest.mark.slow
def test_fifteen_seconds_of_broken_data():
    counted = fuzz(15, seed=0)
    kinds = ("inputs", "read", "refused", "samples", "bad samples")
    assert all(counted[kind] > 10 for kind in kinds), counted

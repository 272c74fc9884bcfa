"""Folders of pictures and clips, metadata.jsonl, paths, and the words for what is wrong with them."""

import json
import shutil
import tarfile

import av
import pytest
from shards import CLIPS, jpeg, make_folder, opener, pictures, read_all, write_tar

from training.data.samples import BadSample


@pytest.fixture
def opened(tmp_path):
    return opener(tmp_path / "cache")


NOTHING = {"jpg": jpeg(64, 64), "json": {}}


@pytest.mark.parametrize(
    "members, settings, reason",
    [
        ({}, {}, "no caption"),
        ({"txt": "größer".encode("latin-1")}, {}, "caption is not UTF-8"),
        ({"txt": "a cat".encode("utf-16")}, {}, "caption is not UTF-8"),
        ({"txt": b"\xef\xbb\xbf \n"}, {}, "caption is empty"),
        ({"txt": ""}, {}, "caption is empty"),
        ({"txt": "fine", "json": b'{"a": '}, {}, "its json does not parse"),
        ({"txt": "fine", "json": b"[" * 100_000}, {}, "its json does not parse"),
        ({"txt": "fine", "json": [1, 2]}, {}, "its json is not an object"),
        ({"json": {"c": "fine"}}, {"caption": "json:title"}, "no caption"),
        ({"json": {"title": 5}}, {"caption": "json:title"}, "caption is not text"),
        ({"json": {"title": " "}}, {"caption": "json:title"}, "caption is empty"),
    ],
)
@pytest.mark.parametrize("loose", [False, True])
def test_a_bad_sample_says_what_is_bad(tmp_path, opened, members, settings, reason, loose):
    good = {"jpg": jpeg(64, 64), "txt": "\ufeffgood ", "json": {"title": "good"}}
    path = write_tar(tmp_path / "0.tar", {"good": good, "wrong": NOTHING | members})
    if loose:
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "folder")
        path = tmp_path / "folder"
    source = opened(path, **settings)
    assert source.counts().tolist() == [[0], [2], [0], [0]]
    assert source.read(1, 0, 0).caption == "good"
    with pytest.raises(BadSample, match=f"wrong.*: {reason}"):
        source.read(1, 0, 1)


def test_media_that_are_shown_turned_are_in_the_bucket_as_shown(tmp_path, opened):
    (tmp_path / "upright.jpg").write_bytes(jpeg(96, 48, orientation=6))
    (tmp_path / "flat.jpg").write_bytes(jpeg(96, 48, orientation=3))
    with av.open(str(tmp_path / "upright.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        stream.set_display_rotation(90)
        for _ in range(2):
            file.mux(stream.encode(av.VideoFrame(96, 48, "yuv420p")))
        file.mux(stream.encode())
    for name in ("upright", "flat"):
        (tmp_path / f"{name}.txt").write_text("x")
    assert opened(tmp_path).counts().tolist() == [[1], [0], [0], [1]]
    assert opened(tmp_path, kind="clip").counts().tolist() == [[0], [0], [0], [1]]


def test_a_folder_is_one_shard_in_the_order_of_names(tmp_path, opened):
    path = make_folder(tmp_path / "own")
    source = opened(path, kind="clip")
    assert source.counts().tolist() == [[1], [2], [0], [0]]
    raws = read_all(source)
    assert [raw.key for raw in raws] == ["own/b.mp4", "own/a.MP4", "own/below/c.mp4"]
    assert [raw.caption for raw in raws] == ["clip b.mp4", "clip a.MP4", "clip below/c.mp4"]
    assert [(raw.media, raw.extension, raw.meta) for raw in raws[:2]] == [
        (path / "b.mp4", "mp4", {"motion": 3}),
        (path / "a.MP4", "mp4", {}),
    ]
    assert [raw.key for raw in read_all(opened(path, kind="clip", at_least={"motion": 3}))] == ["own/b.mp4"]

    sizes = json.loads((path / ".sizes.json").read_text())
    assert sizes["b.mp4"][2:] == [640, 272]
    shutil.copy(CLIPS["carphone_pristine.mp4"], path / "b.mp4")  # another clip under the name
    assert opened(path, kind="clip").counts().tolist() == [[0], [3], [0], [0]]


def test_metadata_cuts_clips(tmp_path, opened):
    path = make_folder(tmp_path / "own")
    lines = [
        {"file": "b.mp4", "caption": "whole"},
        {"file": "./b.mp4", "caption": "begin", "end": 2},
        {"file": "b.mp4", "caption": "rest", "start": 2.5, "end": None},
        {"file": "below/c.mp4"},
        {"file": "still.png", "caption": "no clip"},
    ]
    text = "\n\n".join(json.dumps(line) for line in lines)
    (path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    raws = read_all(opened(path, kind="clip"))
    assert [(raw.key, raw.caption, raw.start, raw.end) for raw in raws] == [
        ("own/b.mp4", "whole", 0, None),
        ("own/b.mp4:0-2", "begin", 0, 2),
        ("own/b.mp4:2.5-", "rest", 2.5, None),
        ("own/below/c.mp4", "clip below/c.mp4", 0, None),
    ]
    assert all(raw.media.is_file() for raw in raws)


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"file": "b.mp4", ', "not json"),
        ('["b.mp4"]', 'an object with a "file"'),
        ('{"caption": "x"}', 'an object with a "file"'),
        ('{"file": "gone.mp4", "caption": "x"}', "no file 'gone.mp4'"),
        ('{"file": "b.mp4", "captoin": "x"}', "the fields are file, caption, start, end; got captoin"),
        ('{"file": "b.txt", "caption": "x"}', "neither a picture nor a clip"),
        ('{"file": "b.mp4", "caption": 3}', "must be text, got 3"),
        ('{"file": "b.mp4", "caption": "x", "start": 3, "end": 3}', "before .*got 3 and 3"),
        ('{"file": "b.mp4", "caption": "x", "start": -1}', "seconds from 0 on, got -1"),
        ('{"file": "b.mp4", "caption": "x", "start": "0:03"}', "seconds from 0 on, got '0:03'"),
        ('{"file": "b.mp4", "caption": "x", "end": NaN}', "seconds from 0 on, got 0.0 and nan"),
        ('{"file": "b.mp4", "caption": "x", "start": true}', "seconds from 0 on, got True"),
    ],
)
def test_a_wrong_line_of_metadata_is_named(tmp_path, opened, line, reason):
    path = make_folder(tmp_path / "own")
    (path / "metadata.jsonl").write_text(f'{{"file": "b.mp4", "caption": "x"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=f"metadata.jsonl, line 3: .*{reason}"):
        opened(path, kind="clip")


def test_bad_places_are_refused_with_what_was_found(tmp_path, opened):
    for number in range(3):
        (tmp_path / "words").mkdir(exist_ok=True)
        (tmp_path / "words" / f"{number}.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    make_folder(tmp_path / "own")
    write_tar(tmp_path / "0.tar", {"a": {"jpg": jpeg(64, 64), "json": {"title": "x", "w": 1, "nothing": ""}}})
    for paths, settings, message in [
        (["words"], {}, r"expected clips \(.mp4, .*words, got 3 .txt and no clip; correct data.clips.paths"),
        (["empty"], {}, "in .*empty, got nothing and no clip"),
        (["0.tar"], {}, "0.tar, got 1 .jpg, 1 .json and no clip"),
        (["gone"], {}, "at '.*gone', got nothing there"),
        (["own", "gone/*.tar"], {}, r"at '.*gone/\*.tar', got nothing there"),
        (["own/b.mp4"], {}, "expected a folder or a .tar, uncompressed, got '.*b.mp4'"),
        ([], {}, "got no paths"),
        (["own"], {"caption": "text"}, "a .text of the same name, got 3 clips and no caption"),
        (["own"], {"at_least": {"speed": 1}}, "expected 'speed'.*got motion; correct"),
        (["own"], {"at_most": {"motion": 1}}, "some of the 3 clips .*got none; loosen"),
        (["0.tar"], {"kind": "image"}, "a .txt of the same name, got 1 pictures and no caption.* in: title"),
        (["0.tar"], {"kind": "image", "caption": "json:nothing"}, '"nothing" in its json, got .* no caption'),
        (["0.tar"], {"kind": "image", "caption": "json:title", "at_most": {"x": 1}}, "got w; correct"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            opened(*(tmp_path / path for path in paths), **{"kind": "clip"} | settings)


def test_paths_stand_for_what_a_shell_makes_of_them(tmp_path, opened):
    for name in ("a[1]/00.tar", "a[1]/01.tar", "a[1]/10.tar", "b/00.tar", "{c}/00.tar"):
        write_tar(tmp_path / name, pictures(1))
    (tmp_path / "b" / ".partial_01.tar").touch()
    (tmp_path / "b" / "00_stats.json").touch()

    def found(*patterns):
        source = opened(*(tmp_path / pattern for pattern in patterns))
        return [path.relative_to(tmp_path).as_posix() for path in source.paths]

    assert found("a[1]/{00..01}.tar") == ["a[1]/00.tar", "a[1]/01.tar"]
    assert found("{b,a[1]}/00.tar") == ["b/00.tar", "a[1]/00.tar"]
    assert found("a[1]/*.tar", "b/*") == ["a[1]/00.tar", "a[1]/01.tar", "a[1]/10.tar", "b/00.tar"]
    assert found("a[1]/10.tar", "a[1]") == ["a[1]/10.tar", "a[1]/00.tar", "a[1]/01.tar"]  # each once
    assert found("{c}/00.tar", "b") == ["{c}/00.tar", "b/00.tar"]

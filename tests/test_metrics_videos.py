"""Folders of videos: what is found in them, what it was asked for, and its frames."""

import json
import logging
import math
import shutil

import numpy as np
import pytest
from shards import CLIPS

from training.metrics.videos import find_videos
from univid.files.encode import encode_picture
from univid.video import read_video, to_uint8, write_frames


def clip(frames=12, seed=0, size=(24, 32)):
    return np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A real clip, an array, frames of pictures, and much that is no video."""
    shutil.copy(CLIPS["carphone_pristine.mp4"], tmp_path / "a man. In a car.MP4")
    (tmp_path / "below").mkdir()
    np.save(tmp_path / "below" / "array.npy", clip())
    pictures = tmp_path / "below" / "x.y"
    pictures.mkdir()
    for number, frame in enumerate(clip(seed=1), start=1):  # no leading zeros
        encode_picture(frame, pictures / f"{number}.png")
    (pictures / "receipt.json").write_text("{}")
    encode_picture(clip(1)[0], tmp_path / "sheet.png")
    (tmp_path / ".partial_1.mp4").write_bytes(b"x")
    (tmp_path / "below" / "x.y.txt").write_text("of pictures\n", encoding="utf-8")
    rows = [
        {"checkpoint": "some"},
        {"file": "a man. In a car.MP4", "prompt": "a man"},
        {"file": "below/array.npy", "prompt": "an array", "fps": 8},
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path


def test_videos_are_found_and_read(folder):
    found = {video.name: video for video in find_videos(folder)}
    assert list(found) == ["a man. In a car", "below/array", "below/x.y"]
    assert [video.prompt for video in found.values()] == ["a man", "an array", "of pictures"]
    frames, fps = found["a man. In a car"].read()
    expected, rate = read_video(CLIPS["carphone_pristine.mp4"])
    assert (frames == to_uint8(expected)).all() and fps == rate and frames.dtype == np.uint8
    frames, fps = found["below/array"].read()
    assert (frames == clip()).all() and fps == 8
    frames, fps = found["below/x.y"].read()
    assert (frames == clip(seed=1)).all() and math.isnan(fps)


def test_what_a_manifest_names_and_is_missing_is_said(folder, caplog):
    (folder / "below" / "array.npy").unlink()
    with caplog.at_level(logging.WARNING):
        assert len(find_videos(folder)) == 2
    assert "names 1 videos that are not there, the first: below/array.npy" in caplog.text


def test_what_is_no_folder_of_videos_is_refused(tmp_path):
    def refused(path):
        with pytest.raises(ValueError) as error:
            find_videos(path)
        return str(error.value)

    assert "which is none" in refused(tmp_path / "absent")
    assert "holds no video; videos are" in refused(tmp_path)
    encode_picture(clip(1)[0], tmp_path / "1.png")
    assert "give the folder above" in refused(tmp_path)
    for name in ("a.mp4", "a.gif"):
        write_frames(clip(), tmp_path / name, 8)
    assert "two videos called a," in refused(tmp_path)
    (tmp_path / "a.gif").unlink()
    for line in ("[1]", "{", '{"file": 1}', '{"file": "a.mp4", "prompt": 2}', '{"file": "a.mp4", "fps": -1}'):
        (tmp_path / "manifest.jsonl").write_text(f"\n{line}")
        assert "manifest.jsonl, line 2" in refused(tmp_path)


def test_what_is_no_video_is_refused(tmp_path):
    np.save(tmp_path / "float.npy", clip().astype(float))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("x")
    (tmp_path / "text.mp4").write_text("x")
    (tmp_path / "sizes").mkdir()
    encode_picture(clip(1)[0], tmp_path / "sizes" / "1.png")
    encode_picture(clip(1, size=(8, 8))[0], tmp_path / "sizes" / "2.png")
    (tmp_path / "sizes2").mkdir()
    (tmp_path / "sizes2" / "1.png").write_bytes(b"\x89PNG")
    for path in ("text.mp4", "text.npy"):
        (tmp_path / path).rename(tmp_path / f"no {path}")
    (tmp_path / "no text.mp4").rename(tmp_path / "movie.mp4")
    messages = {}
    for video in find_videos(tmp_path):
        with pytest.raises(ValueError) as error:
            video.read()
        messages[video.name] = str(error.value)
    assert len(messages) == 6
    assert "got float64 [12, 24, 32, 3]" in messages["float"]
    assert "several sizes" in messages["sizes"]

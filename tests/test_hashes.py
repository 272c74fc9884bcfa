"""Hashes of files, and the notes of them in the user's cache folder."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

import univid
from univid.files import hashes


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """The file of notes, kept for files of any size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "LARGE", 0)
    return tmp_path / "cache" / "univid" / hashes.NOTES


def test_a_hash_is_that_of_the_bytes(tmp_path):
    for content in (b"", b"abc", bytes(3 * 2**20 + 1)):
        (tmp_path / "file").write_bytes(content)
        assert hashes.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    with pytest.raises(ValueError, match="absent cannot be read"):
        hashes.sha256(tmp_path / "absent")


def test_a_folder_is_its_names_and_contents(tmp_path):
    def made(name, **files):
        for path, content in files.items():
            place = tmp_path / name / path.replace("__", "/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)
        return hashes.sha256(tmp_path / name)

    first = made("a", unet__w="1", vae__w="2")
    assert first == made("b", vae__w="2", unet__w="1")
    assert len({first, made("c", unet__w="2", vae__w="1"), made("d", unet__w="1"), made("e", x="1")}) == 4


def test_what_was_hashed_is_noted_until_it_changes(tmp_path, notes, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    found = hashes.noted_sha256(file)
    assert json.loads(notes.read_text()) == {str(file): [3, file.stat().st_mtime_ns, found]}
    with monkeypatch.context() as patch:
        patch.setattr(hashes, "sha256", lambda path: pytest.fail("it was read again"))
        assert hashes.noted_sha256(file) == found
        os.utime(file, ns=(1, 1))
        with pytest.raises(pytest.fail.Exception):
            hashes.noted_sha256(file)
    file.write_bytes(b"abcd")
    assert hashes.noted_sha256(file) == hashlib.sha256(b"abcd").hexdigest()
    assert len(json.loads(notes.read_text())) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"FILE": 3}', '{"FILE": [3, "x", 5]}', '{"FILE": [3, 4, "x"]}'])
def test_notes_that_are_damaged_are_made_anew(tmp_path, notes, text):
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    notes.parent.mkdir(parents=True)
    notes.write_text(text.replace("FILE", str(file)))
    assert hashes.noted_sha256(file) == hashlib.sha256(b"abc").hexdigest()
    assert list(json.loads(notes.read_text())) == [str(file)]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, notes):
    (tmp_path / "cache").write_text("a file")
    (tmp_path / "file").write_bytes(b"abc")
    assert hashes.noted_sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
    assert (tmp_path / "cache").read_text() == "a file"


def test_small_files_are_not_noted(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(hashes, "LARGE", 4)
    (tmp_path / "file").write_bytes(b"abc")
    hashes.noted_sha256(tmp_path / "file")
    assert not notes.exists()


def test_the_notes_do_not_grow_without_end(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(hashes, "MOST_NOTES", 3)
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"abc")
        hashes.noted_sha256(tmp_path / str(number))
    assert [Path(path).name for path in json.loads(notes.read_text())] == ["4", "3", "2"]


def test_the_package_knows_its_version():
    project = Path(__file__).parents[1].joinpath("pyproject.toml").read_text("utf-8")
    assert univid.__version__ == re.search(r'^version = "(.+)"', project, re.MULTILINE)[1]

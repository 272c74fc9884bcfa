"""Saved states and final.pt as disks and people leave them: damage is named, the newest whole one taken."""

import dataclasses
import json
import os
import pickle
import random
import shutil

import pytest
import torch
from toys import OPTIM, RECIPE, Regression, TwoModalities, assert_same_run, newest_state, same
from toys import run as run_toy

from training.report import read
from training.saved import (
    Damaged,
    Saved,
    load,
    newest_weights,
    read_final,
    read_state,
    set_aside,
    states,
)

pytestmark = pytest.mark.usefixtures("no_pictures")
# The learning rate must not hang on the number of steps, as runs here are made longer.
LONG = dataclasses.replace(RECIPE, optim=dataclasses.replace(OPTIM, decay="constant"))
CUT = dataclasses.replace(LONG, steps=21)


def run(folder, recipe=LONG, task=None):
    return run_toy(folder, recipe, task)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run at step 21, with the states of 14 and 21."""
    folder = tmp_path_factory.mktemp("begun")
    run(folder, CUT)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The folder of another network's run, with a state of step 21 too."""
    folder = tmp_path_factory.mktemp("other")
    run(folder, CUT, TwoModalities(CUT, {"image": 1.0, "video": 1.0}))
    return folder


@pytest.fixture
def folder(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def flipped(path):
    """One bit of a tensor's numbers."""
    data = bytearray(path.read_bytes())
    place = data.index(b"data/0") + 200
    data[place] ^= 1
    path.write_bytes(data)


def repickled(path, change):
    with open(path, "rb") as file:
        metadata = pickle.load(file)
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))
    path.with_name(".metadata.sha256").unlink()  # as a state of an earlier version


def without_a_piece(metadata):
    next(iter(metadata.state_dict_metadata.values())).chunks.clear()


def elsewhere(metadata):
    for part in metadata.storage_data.values():
        part.relative_path = "../step_00000014/__0_0.distcp"


def enormous(metadata):
    entry = metadata.state_dict_metadata["counters"]
    entry.size = entry.chunks[0].sizes = torch.Size([10**15])


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


DAMAGES = {
    "gone": lambda s: (s / "__0_0.distcp").unlink(),
    "cut": lambda s: os.truncate(s / "__0_0.distcp", 10_000),
    "empty": lambda s: os.truncate(s / "__0_0.distcp", 0),
    "zeros": lambda s: (s / "__0_0.distcp").write_bytes(bytes((s / "__0_0.distcp").stat().st_size)),
    "a bit": lambda s: flipped(s / "__0_0.distcp"),
    "no metadata": lambda s: (s / ".metadata").unlink(),
    "empty metadata": lambda s: (s / ".metadata").write_bytes(b""),
    "a number": lambda s: (s / ".metadata").write_bytes(pickle.dumps(5)),
    "a dict": lambda s: (s / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": {}})),
    "a folder": lambda s: ((s / ".metadata").unlink(), (s / ".metadata").mkdir()),
    "nothing": lambda s: (shutil.rmtree(s), s.mkdir()),
    "a file": lambda s: (shutil.rmtree(s), s.write_text("?")),
    "a piece": lambda s: repickled(s / ".metadata", without_a_piece),
    "elsewhere": lambda s: repickled(s / ".metadata", elsewhere),
    "enormous": lambda s: repickled(s / ".metadata", enormous),
    "changed": lambda s: (s / ".metadata").write_bytes((s / ".metadata").read_bytes()[:-1] + b"!"),
    "another step": lambda s: (shutil.rmtree(s), shutil.copytree(s.with_name("step_00000014"), s)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_state_is_taken(whole, folder, damage, caplog):
    DAMAGES[damage](folder / "step_00000021")
    run(folder)
    assert_same_run(folder, whole)
    assert "step_00000021 is damaged: " in caplog.text and "step_00000014 is taken instead" in caplog.text
    assert "step_00000021 is now called damaged_step_00000021" in caplog.text
    names = {path.name for path in folder.iterdir()}
    assert {"damaged_step_00000021", "step_00000035", "step_00000040"} <= names
    assert not any(name.startswith(".partial") for name in names)


def test_a_state_of_another_network_is_not_taken(whole, folder, other, caplog):
    shutil.rmtree(folder / "step_00000021")
    shutil.copytree(other / "step_00000021", folder / "step_00000021")
    run(folder)
    assert_same_run(folder, whole)
    assert "it is of another network" in caplog.text


def test_junk_that_looks_newer_is_set_aside(whole, folder, caplog):
    """Or it would stay the newest for ever, and good states would be dropped for it."""
    for name in ("step_99999999", "step_00000028", "step_123456789"):
        (folder / name).mkdir()
    (folder / "step_99999999" / ".metadata").write_bytes(b"")
    (folder / "step_x").mkdir()
    shutil.copytree(folder / "step_00000021", folder / ".partial_step_00000028")
    run(folder)
    assert_same_run(folder, whole)
    assert [path.name for path in states(folder)] == ["step_00000035", "step_00000040"]
    assert all(f"{name} is damaged" in caplog.text for name in ("step_99999999", "step_00000028"))
    (folder / "step_00000035" / "x").touch()
    assert set_aside(folder / "step_00000035").name == "damaged_step_00000035"
    (folder / "step_00000035").mkdir()
    assert set_aside(folder / "step_00000035").name == "damaged_step_00000035_2"


def test_where_nothing_is_whole_nothing_is_begun_over_it(folder):
    rows = (folder / "metrics.jsonl").read_bytes()
    for path in states(folder):
        (path / "__0_0.distcp").unlink()
    with pytest.raises(ValueError, match="no state in .*run is whole .*_00000021: its __0_0.distcp is gone"):
        run(folder)
    assert (folder / "metrics.jsonl").read_bytes() == rows
    for path in states(folder):
        shutil.rmtree(path)
    with pytest.raises(ValueError, match="holds a finished run .*no state to go on from; take another name"):
        run(folder)
    (folder / "final.pt").unlink()  # as the sentence says
    run(folder)
    assert newest_state(folder)["step"] == 40


def test_a_state_executes_nothing(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    state = folder / "step_00000021"
    repickled(state / ".metadata", lambda metadata: setattr(metadata, "planner_data", Evil()))
    with pytest.raises(Damaged, match="its .metadata cannot be read"):
        Saved(state)
    assert not (tmp_path / "evil").exists()
    pickle.loads((state / ".metadata").read_bytes())
    assert (tmp_path / "evil").exists()  # it would have


def test_a_changed_bit_changes_nothing_or_is_seen(begun, tmp_path):
    good, rng, seen = read_state(begun / "step_00000021"), random.Random(0), 0
    for name in ("__0_0.distcp", ".metadata") * 60:
        state = shutil.copytree(begun / "step_00000021", tmp_path / "step_00000021", dirs_exist_ok=True)
        data = bytearray((state / name).read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (state / name).write_bytes(data)
        try:
            assert same(read_state(state), good)
        except Damaged:
            seen += 1
    assert seen > 60


def test_states_of_an_earlier_version_are_taken(whole, folder):
    for path in states(folder):
        (path / ".metadata.sha256").unlink()
    run(folder)
    assert_same_run(folder, whole)


# final.pt


def changed(final, **parts):
    return torch.load(final, weights_only=True) | parts


FINALS = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a bit": flipped,
    "a list": lambda path: torch.save([1], path),
    "no ema": lambda path: torch.save({"model": {}, "step": 1}, path),
    "another class": lambda path: torch.save({"x": path}, path),
    "a text": lambda path: torch.save(changed(path, ema={"a": "b"}), path),
    "whole numbers": lambda path: torch.save(
        changed(path, ema={"a": torch.ones(2, dtype=torch.int64)}), path
    ),
    "no tensors": lambda path: torch.save(changed(path, ema={}, model={}), path),
    "no number": lambda path: torch.save(changed(path, step=float("nan")), path),
    "no recipe": lambda path: torch.save(changed(path, recipe=[1]), path),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Evil())),
}


@pytest.mark.parametrize("damage", FINALS)
def test_a_damaged_result_is_named_and_the_newest_state_taken(folder, damage, caplog):
    good = newest_weights(folder)["ema"]
    FINALS[damage](folder / "final.pt")
    with pytest.raises(Damaged):
        read_final(folder / "final.pt")
    with pytest.raises(ValueError, match="final.pt is damaged: .*; delete it and train the run again"):
        load(folder / "final.pt")
    assert same(newest_weights(folder)["ema"], good)
    assert "final.pt is damaged" in caplog.text and "step_00000021 is taken instead" in caplog.text
    (folder / "final.pt").unlink()  # as the sentence says
    run(folder, CUT)
    assert same(load(folder / "final.pt")["ema"], good)


def test_what_is_exported_is_the_newest_step(folder, caplog):
    class Stopping(Regression):
        def micro_batches(self, step):
            if step == 30:
                raise KeyError("crash")
            return super().micro_batches(step)

    with pytest.raises(KeyError):
        run(folder, task=Stopping(LONG))  # its final.pt is still the one of step 21
    assert newest_weights(folder)["step"] == 28 and "is taken instead" not in caplog.text
    (folder / "step_00000028" / "__0_0.distcp").unlink()
    assert newest_weights(folder)["step"] == 21
    assert "step_00000028 is damaged: its __0_0.distcp is gone; final.pt is taken instead" in caplog.text
    (folder / "final.pt").write_bytes(b"")
    (folder / "step_00000021" / ".metadata").write_bytes(b"")
    with pytest.raises(ValueError, match="no state in .* is whole .*final.pt.*step_00000028.*step_00000021"):
        newest_weights(folder)


# Whose run it is


def test_a_missing_recipe_is_the_one_that_states_carry(folder, whole, caplog):
    faster = dataclasses.replace(LONG, optim=dataclasses.replace(LONG.optim, lr=0.5))
    record = folder / "config.json"
    for damage in (record.unlink, lambda: record.write_text("[]"), lambda: record.write_text("{")):
        damage()
        with pytest.raises(ValueError, match=r"holds a run with other settings \(optim.lr\)"):
            run(folder, faster)
        assert "config.json is missing or damaged; the recipe in step_00000021 is taken" in caplog.text
    for state in states(folder):
        (state / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds a run with other settings \(optim.lr\)"):
        run(folder, faster)
    assert "the recipe in final.pt is taken" in caplog.text
    (folder / "final.pt").unlink()
    with pytest.raises(ValueError, match="config.json is missing or damaged; put it back from a copy"):
        run(folder, faster)
    shutil.copy(whole / "config.json", record)
    run(folder)
    assert_same_run(folder, whole)


def test_before_the_first_state_settings_may_be_put_right(tmp_path):
    """As the sentences of a run that ends early advise."""

    class Ending(Regression):
        def micro_batches(self, step):
            raise ValueError("lower the learning rate")

    slower = dataclasses.replace(LONG, optim=dataclasses.replace(LONG.optim, lr=1e-3))
    with pytest.raises(ValueError, match="lower the"):
        run(tmp_path, task=Ending())
    assert not states(tmp_path)
    for text in ("[]", "null", "{}", "{", "[" * 100_000, '{"task": 5}'):
        (tmp_path / "config.json").write_text(text)
        (tmp_path / "data.json").write_text(text)
        with pytest.raises(ValueError, match="lower the"):
            run(tmp_path, slower, Ending())
        assert json.loads((tmp_path / "config.json").read_text()) == slower.to_dict()
    run(tmp_path, slower)
    assert len(read(tmp_path / "metrics.jsonl")) == 40


class Reading(Regression):
    """A task that reads from disks."""

    def __init__(self, **evidence):
        super().__init__()
        self.evidence = evidence


def test_other_data_does_not_continue_a_run(tmp_path):
    run(tmp_path, CUT, Reading(clip="4 samples (a)", base="x"))
    with pytest.raises(ValueError, match=r"begun with 4 samples \(a\) of clip, there are now 3 samples"):
        run(tmp_path, task=Reading(clip="3 samples (b)", base="x"))
    kept = (tmp_path / "data.json").read_text()
    for text in ("[]", "{", '{"clip": 4}', "null"):
        (tmp_path / "data.json").write_text(text)
        with pytest.raises(ValueError, match="data.json is damaged; put it back from a copy, or delete it"):
            run(tmp_path, task=Reading(clip="4 samples (a)", base="x"))
    (tmp_path / "data.json").unlink()  # as the sentence says
    run(tmp_path, dataclasses.replace(LONG, steps=22), Reading(clip="4 samples (a)", base="x"))
    assert json.loads((tmp_path / "data.json").read_text()) == json.loads(kept)
    run(tmp_path, task=Reading(clip="4 samples (a)", image="2 samples (c)"))  # another kind is new, not other

"""What training's messages advise, a run that goes on accepts; what changes its numbers it does not."""

import dataclasses
import json
import shutil

import pytest
from denoise_runs import Maker

from training.__main__ import main
from training.config import LogsConfig
from training.data.config import SourceConfig
from training.loop import train
from training.options import SampleOptions
from training.saved import states
from training.stages.base import base_evidence
from training.stages.denoise import DenoiseTask

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture(scope="module")
def begun(media, small_checkpoint, tmp_path_factory):
    """The folder of all runs with one of two steps, and beside it its data and base, which can be moved."""
    root = tmp_path_factory.mktemp("begun")
    shutil.copytree(media, root / "media")
    shutil.copy(small_checkpoint, root / "base.safetensors")
    recipe = make_recipe(root)
    train(recipe, DenoiseTask(recipe, root), root / "run", progress=False)
    return root


def make_recipe(root, steps=2, **changes):
    made = Maker(root / "media", root / "base.safetensors", root).recipe(batch={"video": 2}, **changes)
    return dataclasses.replace(made, steps=steps, logs=LogsConfig(save_every=2))


@pytest.fixture
def root(begun, tmp_path):
    """A copy of it: so all of it has been moved, and only the run's recipe says where it was."""
    root = shutil.copytree(begun, tmp_path / "all")
    text = (root / "run" / "config.json").read_text()
    for path in (root / "run", root / "run" / "step_00000002"):
        (path / "config.json").write_text(text)
    return root


def go_on(root, recipe):
    task = DenoiseTask(recipe, root)
    try:
        train(recipe, task, root / recipe.name, progress=False)
    finally:
        task.feed.close()
    assert [path.name for path in states(root / recipe.name)] == ["step_00000002", "step_00000003"]


def changed_data(recipe, **changes):
    data = dataclasses.replace(recipe.options.data, **changes)
    return dataclasses.replace(recipe, options=dataclasses.replace(recipe.options, data=data))


def changed(recipe, **changes):
    return dataclasses.replace(recipe, options=dataclasses.replace(recipe.options, **changes))


ACCEPTED = {
    "more bad samples": lambda recipe: changed_data(recipe, max_bad_share=0.9),
    "workers": lambda recipe: changed_data(recipe, workers=1),
    "sample settings": lambda recipe: changed(recipe, samples=SampleOptions(("a", "b"), steps=1, seed=4)),
    "validation": lambda recipe: changed(recipe, samples=SampleOptions(validation=3)),
    "skipped steps": lambda recipe: dataclasses.replace(recipe, max_skipped=99),
    "micro-batches": lambda recipe: dataclasses.replace(
        recipe, engine=dataclasses.replace(recipe.engine, micro_batch={"video": 1}, checkpointing=True)
    ),
    "logs": lambda recipe: dataclasses.replace(recipe, logs=LogsConfig(save_every=1, keep=5)),
}
REFUSED = {
    "optim.lr": lambda recipe: dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, lr=1e-9)),
    "batch.video": lambda recipe: dataclasses.replace(recipe, batch={"video": 4}),
    "seed": lambda recipe: dataclasses.replace(recipe, seed=6),
    "options.data.max_frames": lambda recipe: changed_data(recipe, max_frames=3),
    "options.data.pool": lambda recipe: changed_data(recipe, pool=2),
    "options.data.clips.caption": lambda recipe: changed_data(
        recipe, clips=dataclasses.replace(recipe.options.data.clips, caption="TXT")
    ),
    "options.modes.text": lambda recipe: changed(recipe, modes={"text": 1.0}),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_what_changes_no_number_may_change(root, what):
    go_on(root, ACCEPTED[what](make_recipe(root, steps=3)))


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_numbers_may_not(root, name):
    recipe = REFUSED[name](make_recipe(root, steps=3))
    with pytest.raises(ValueError, match=rf"holds a run with other settings \({name}"):
        go_on(root, recipe)


def test_a_moved_base_and_moved_data_are_found_to_be_the_same(root):
    (root / "media").rename(root / "elsewhere")
    (root / "base.safetensors").rename(root / "renamed.safetensors")
    recipe = make_recipe(root, steps=3)
    sources = {kind: SourceConfig((str(root / "elsewhere" / kind),)) for kind in ("clips", "images")}
    moved = changed_data(changed(recipe, base=str(root / "renamed.safetensors")), **sources)
    go_on(root, dataclasses.replace(moved, name="run"))
    (root / "run").rename(root / "other")  # and the run itself
    moved = dataclasses.replace(moved, name="other", steps=3)
    train(moved, DenoiseTask(moved, root), root / "other", progress=False)


def test_pictures_that_no_step_reads_may_lie_anywhere(root):
    go_on(root, changed_data(make_recipe(root, steps=3), images=SourceConfig(("nowhere",))))


def test_other_data_and_another_base_are_not_taken_for_the_moved_ones(root, small_checkpoint):
    clips = root / "media" / "clips"
    (clips / "0.mp4").rename(clips / "9.mp4")
    (clips / "0.txt").rename(clips / "9.txt")
    with pytest.raises(ValueError, match=r"begun with files \(.*\) of clip names, there are now files"):
        go_on(root, make_recipe(root, steps=3))
    (clips / "9.mp4").rename(clips / "0.mp4")
    (clips / "9.txt").rename(clips / "0.txt")
    data = bytearray((root / "base.safetensors").read_bytes())
    data[len(data) // 64 * 32 : len(data) // 64 * 32 + 4096] = bytes(4096)
    (root / "base.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"begun with a file of .* bytes \(.*\) of base, there are now"):
        go_on(root, make_recipe(root, steps=3))


def test_a_run_of_an_earlier_version_has_no_evidence_and_may_not_move(root):
    evidence = root / "run" / "data.json"
    kept = json.loads(evidence.read_text())
    evidence.write_text(json.dumps({"clip": kept["clip"]}))
    recipe = make_recipe(root, steps=3)
    with pytest.raises(ValueError, match=r"other settings \(options.base, options.data.clips.paths"):
        go_on(root, recipe)  # the fixture has moved it
    assert json.loads(evidence.read_text()) == {"clip": kept["clip"]}
    record = root / "run" / "config.json"
    here = json.loads(record.read_text()) | {"options": recipe.to_dict()["options"]}
    record.write_text(json.dumps(here))
    go_on(root, recipe)
    assert json.loads(evidence.read_text()) == kept  # from now on it may


def test_a_base_is_told_by_its_bytes(small_checkpoint, tmp_path):
    assert base_evidence("tiny") == "preset tiny" != base_evidence("paper")
    copy = shutil.copy(small_checkpoint, tmp_path / "a.safetensors")
    assert base_evidence(copy) == base_evidence(str(small_checkpoint))
    folder = tmp_path / "fam" / "unet"
    folder.mkdir(parents=True)
    (folder / "x.bin").write_bytes(b"abc")
    before = base_evidence(str(tmp_path / "fam"))
    (folder / "x.bin").rename(folder / "y.bin")
    assert before.startswith("a file of 3 bytes") and base_evidence(str(tmp_path / "fam")) != before


SMALL = (
    "--steps 2 --batch.video 2 --options.data.min-frames 2 --options.data.max-frames 3 --rank 2 --name n "
    "--options.data.workers 0 --options.samples.validation 1 --logs.validate-every 0 --logs.sample-every 0"
).split()


def test_too_many_bad_samples_are_gone_on_with_as_the_sentence_says(small_checkpoint, media, tmp_path):
    clips = shutil.copytree(media / "clips", tmp_path / "clips")
    for name in ("0.mp4", "1.mp4"):
        (clips / name).write_bytes(b"no clip")
    words = ["--root", str(tmp_path), "finetune", "--base", str(small_checkpoint), *SMALL]
    words += ["--data", str(clips)]
    with pytest.raises(ValueError, match="raise options.data.max_bad_share to go on, or mend or remove them"):
        main(words)
    main([*words, "--options.data.max-bad-share", "0.9"])
    main([*words, "--options.data.max-bad-share", "0.8", "--steps", "3"])
    assert states(tmp_path / "n")[-1].name == "step_00000003"


def test_pictures_train_beside_clips(small_checkpoint, media, tmp_path):
    words = ["--root", str(tmp_path), "finetune", "--base", str(small_checkpoint)]
    words += ["--data", str(media / "clips"), *SMALL]
    main([*words, "--options.data.images.paths", str(media / "images"), "--batch.image", "2"])
    rows = [json.loads(line) for line in (tmp_path / "n" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["image/loss"] > 0 and row["video/loss"] > 0 for row in rows)
    kept = json.loads((tmp_path / "n" / "config.json").read_text())
    assert (
        kept["batch"] == {"video": 2, "image": 2} and "image names" in (tmp_path / "n/data.json").read_text()
    )

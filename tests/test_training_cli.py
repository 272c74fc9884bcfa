"""`python -m training`: settings of recipes, finetuning from end to end, plans, prepared data, bad input."""

import dataclasses
import json
import shutil
import sys

import pytest
import torch

from training import cli
from training.__main__ import main, program
from training.data.config import DegradationConfig, SourceConfig
from training.export import saved_recipe
from training.lora import LoraConfig
from training.options import SampleOptions
from training.recipes_univid import RECIPES, finetune
from training.saved import load
from univid import checkpoints
from univid.checkpoints.lora import read_lora


def recipe_of(*words):
    return cli.recipe_of(*cli.parse(list(words)))


def test_every_setting_can_be_changed_and_has_its_type():
    words = "--optim.lr 3e-5 --batch.video 8 --engine.parallel fsdp --engine.micro-batch.video 2"
    data = "--options.data.images.paths a/*.tar b --options.data.images.at-least aesthetic 5.5"
    recipe = recipe_of("train", "univid_t2v", *words.split(), *data.split(), "--logs.tensorboard")
    assert recipe.optim.lr == 3e-5 and recipe.batch == {"image": 256, "frame": 256, "video": 8}
    assert recipe.engine.parallel == "fsdp"
    assert recipe.engine.micro_batch == {"image": 4, "frame": 4, "video": 2}
    assert recipe.options.data.images.paths == ("a/*.tar", "b")
    assert recipe.options.data.images.at_least == {"aesthetic": 5.5}
    assert recipe.options.data.clips == RECIPES["univid_t2v"]().options.data.clips
    assert (
        recipe_of("train", "tiny_t2v", "--options.shown.still-share", "0.25").options.shown.still_share
        == 0.25
    )


@pytest.mark.parametrize(
    "words, message",
    [
        ("--optim.lrr 1", "Unrecognized options: --optim.lrr"),
        ("--optim.lr fast", "could not convert string to float: 'fast'"),
        ("--steps 2.5", "invalid literal for int"),
        ("--options.stage", "--options.stage"),
    ],
)
def test_a_setting_that_is_none_or_of_another_type_is_refused(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        recipe_of("train", "univid_t2v", *words.split())
    assert caught.value.code == 2 and message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "words, message",
    [
        ("--engine.parallel mesh", "parallel must be one of"),
        ("--options.data.min-frames 30", "min_frames <= max_frames <= 100,000, got 30 and 24"),
        ("--options.stage lora", "expected a LoRA with stage"),
    ],
)
def test_a_value_that_cannot_be_is_refused(words, message, capsys):
    with pytest.raises((ValueError, SystemExit)) as caught:
        recipe_of("train", "univid_t2v", *words.split())
    assert message in " ".join(f"{caught.value} {capsys.readouterr().err}".replace("│", " ").split())


def test_settings_lists_what_can_be_set(capsys):
    with pytest.raises(SystemExit):
        recipe_of("train", "univid_t2v", "--settings")
    text = " ".join(capsys.readouterr().out.split())
    for word in ("--options.noise.offset", "--engine.checkpointing", "--optim.ema-decay", "UniVG: 0.1"):
        assert word in text


@pytest.mark.parametrize("recipe", [RECIPES["univid_joint"](), finetune("tiny", "clips")])
def test_config_json_gives_the_recipe_back(recipe, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(recipe.to_dict()))
    assert saved_recipe(tmp_path) == recipe


def test_a_recipe_of_an_earlier_version_is_read(tmp_path):
    recipe = finetune("tiny", "clips")
    recipe = dataclasses.replace(
        recipe, options=dataclasses.replace(recipe.options, samples=SampleOptions(validation=3))
    )
    saved = json.loads(json.dumps(recipe.to_dict()))
    saved["options"]["validation"] = saved["options"]["samples"].pop("validation")
    for name in ("parts", "joined"):
        del saved["options"][name]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert saved_recipe(tmp_path) == recipe


SMALL = (
    "--steps 2 --batch.video 2 --options.data.min-frames 2 --options.data.max-frames 3 "
    "--options.data.workers 0 --options.samples.validation 1 --options.samples.steps 1 "
    "--logs.validate-every 2 --logs.sample-every 2"
).split()


def finetuning(root, base, data) -> list[str]:
    return ["--root", str(root), "finetune", "--base", str(base), "--data", str(data), *SMALL]


@pytest.mark.parametrize("how", ["--rank 2 --parts temporal-attention", "--full"])
def test_finetuning_from_end_to_end(small_checkpoint, media, tmp_path, how, capsys):
    words = finetuning(tmp_path, small_checkpoint, media / "clips") + [*how.split(), "--name", "mine"]
    main([*words, "--out", str(tmp_path / "new" / "out.safetensors")])
    written = tmp_path / "mine" / "mine.safetensors"
    assert str(written) in capsys.readouterr().out
    assert written.read_bytes() == (tmp_path / "new" / "out.safetensors").read_bytes()
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    assert {"config.json", "metrics.jsonl", "final.pt", "step_00000002", "samples", "loss.png"} <= names
    if how == "--full":
        weight = checkpoints.load(written).unet.state_dict()["out.2.weight"]
        assert torch.equal(weight, load(tmp_path / "mine" / "final.pt")["ema"]["out.2.weight"].half())
    else:
        lora = read_lora(written)
        assert lora.layers and all(".temporal." in name for name in lora.layers)
    before = written.read_bytes()
    main(words)  # a finished run is left as it is
    (tmp_path / "mine" / "final.pt").unlink()  # as in the middle of a run
    written.unlink()
    main(["--root", str(tmp_path), "export", "--run", "mine"])
    assert written.read_bytes() == before
    shutil.rmtree(tmp_path / "mine" / "step_00000002")
    with pytest.raises(ValueError, match="expected a state in .*mine, got none yet"):
        main(["--root", str(tmp_path), "export", "--run", "mine"])


@pytest.mark.parametrize(
    "left, message",
    [
        ((), "expected clips .* got nothing and no clip"),
        ((".txt",), "got 4 .txt and no clip"),
        ((".mp4",), "caption"),
    ],
)
def test_a_folder_without_clips_or_captions_is_one_sentence(small_checkpoint, media, tmp_path, left, message):
    folder = tmp_path / "clips"
    folder.mkdir()
    for path in (media / "clips").iterdir():
        if path.suffix in left:
            shutil.copy(path, folder)
    with pytest.raises(ValueError, match=message):
        main(finetuning(tmp_path, small_checkpoint, folder))


def test_data_that_has_changed_does_not_continue_a_run(small_checkpoint, media, tmp_path):
    clips = shutil.copytree(media / "clips", tmp_path / "clips")
    main(finetuning(tmp_path, small_checkpoint, clips))
    (clips / "0.mp4").unlink()
    (clips / "0.txt").unlink()
    with pytest.raises(
        ValueError, match="begun with 4 samples .* of clip, there are now 3 samples .* of clip"
    ):
        main([*finetuning(tmp_path, small_checkpoint, clips), "--steps", "3"])


@pytest.mark.parametrize("recipe", ["tiny_vae", "tiny_towers", "univid_t2v"])
def test_a_recipe_stays_with_its_task(recipe, capsys):
    with pytest.raises(SystemExit):
        recipe_of("train", recipe, "--task", "joint")
    assert "Unrecognized options: --task" in capsys.readouterr().err


def test_a_preset_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="preset must be one of"):
        main(["train", "tiny_t2v", "--options.preset", "nonsense"])


def test_parts_that_a_recipe_lacks_can_be_asked_for(capsys):
    own = ("finetune", "--base", "tiny", "--data", "clips")
    words = "--options.data.images.paths=a --batch.image=3 --engine.micro-batch.image 2".split()
    recipe = recipe_of(*own, *words)
    assert recipe.batch == {"video": 2, "image": 3} and recipe.engine.micro_batch == {"video": 1, "image": 2}
    assert recipe.options.data.images == SourceConfig(("a",))
    assert recipe_of(*own, "--batch.frame", "0") == recipe_of(*own)
    with pytest.raises(ValueError, match="got none; set --batch.image"):
        recipe_of(*own, "--options.data.images.paths", "a")
    recipe = recipe_of("train", "univid_t2v", "--options.lora.rank", "4")
    assert recipe.options.stage == "lora" and recipe.options.lora == LoraConfig(rank=4)
    with pytest.raises(SystemExit):
        recipe_of(*own, "--settings")
    text = " ".join(capsys.readouterr().out.split())
    assert "--options.data.images.paths" in text and "--batch.image" in text


NUMBERS = (
    "--optim.lr --optim.weight-decay --optim.clip-norm --optim.ema-decay --options.noise.offset "
    "--options.data.fps --options.data.max-bad-share"
).split()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("setting", NUMBERS)
def test_what_is_no_number_is_no_setting(setting, value, capsys):
    with pytest.raises((ValueError, SystemExit)):
        recipe_of("train", "univid_t2v", f"{setting}={value}")
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1"])
def test_a_plan_takes_numbers_alone(value):
    for option in ("--network", "--mfu"):
        with pytest.raises(ValueError, match=option.strip("-")):
            main(["plan", "finetune", f"{option}={value}", "--options.base", "tiny"])
    with pytest.raises(ValueError, match="expected 1 to 1,000,000 GPUs"):
        main(["plan", "finetune", "--gpus", "9" * 30, "--options.base", "tiny"])


def ended(monkeypatch, capsys, *words) -> tuple[int, str]:
    """What the program ends with, and what it says on stderr."""
    monkeypatch.setattr(sys, "argv", ["training", *map(str, words)])
    return program(), capsys.readouterr().err


DAMAGED = {
    "a list": "[]",
    "null": "null",
    "no task": "{}",
    "an unknown entry": '{"task": "denoise", "evil": 1}',
    "a task of another kind": '{"task": 5}',
    "a name of another kind": '{"task": "denoise", "name": [1]}',
    "no JSON": "{",
    "nested": "[" * 100_000,
    "letters of control": '{"task": "denoise", "\\u001b[2J": 1}',
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_recipe_of_another_shape_is_one_sentence(text, tmp_path, monkeypatch, capsys):
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "config.json").write_text(text)
    status, said = ended(monkeypatch, capsys, "--root", tmp_path, "export", "--run", "n")
    assert status == 2 and said.count("\n") == 1 and len(said) <= 401 and said[:-1].isprintable()
    assert said.startswith("error: ") and "config.json" in said


def test_an_export_takes_the_recipe_that_states_carry(small_checkpoint, media, tmp_path, monkeypatch, capsys):
    main(finetuning(tmp_path, small_checkpoint, media / "clips") + ["--rank", "2", "--name", "n"])
    before = (tmp_path / "n" / "n.safetensors").read_bytes()
    (tmp_path / "n" / "config.json").unlink()
    (tmp_path / "n" / "final.pt").write_bytes(b"")
    status, said = ended(monkeypatch, capsys, "--root", tmp_path, "export", "--run", "n")
    assert status == 0 and (tmp_path / "n" / "n.safetensors").read_bytes() == before
    (tmp_path / "n" / "step_00000002" / "__0_0.distcp").unlink()
    status, said = ended(monkeypatch, capsys, "--root", tmp_path, "export", "--run", "n")
    assert status == 2 and "no state in" in said and "step_00000002: its __0_0.distcp is gone" in said
    status, said = ended(monkeypatch, capsys, "--root", tmp_path, "export", "--run", "nobody")
    assert status == 2 and "expected a run in" in said


def test_a_plan_is_printed(capsys):
    words = "plan finetune --gpu 4090 --options.base tiny"
    main([*words.split(), "--options.data.min-frames", "8", "--options.data.max-frames", "12"])
    text = capsys.readouterr().out
    assert "1 x 4090" in text and "left of 24" in text and "--mfu 0.35" in text


def test_data_is_prepared_checked_and_trained_on(small_checkpoint, media, tmp_path, capsys):
    out = tmp_path / "prepared"
    words = ["prepare", "--base", str(small_checkpoint), "--out", str(out), "--clips", str(media / "clips")]
    main([*words, "--frames", "4", "--min-frames", "2", "--references", "2", "--buckets", "64", "64"])
    assert "samples=4" in capsys.readouterr().out
    main(["prepare", "--out", str(out), "--verify"])
    main(finetuning(tmp_path, small_checkpoint, out / "clips"))
    rows = [json.loads(line) for line in (tmp_path / "finetune" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["loss"] > 0 for row in rows)
    tar = next((out / "clips").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ValueError, match=tar.name):
        main(["prepare", "--out", str(out), "--verify"])


def test_poor_copies_are_asked_for_when_data_is_prepared():
    words = ["prepare", "--out", "out", "--clips", "clips"]
    asked = [*words, "--degradations", "strong", "--degradations.noise", "--degradations.seed", "3"]
    found = cli.prepare_config(*cli.parse(asked))
    assert found.degradations == DegradationConfig("strong", noise=True, seed=3)
    assert cli.prepare_config(*cli.parse(words)).degradations is None


def test_a_setting_is_found_by_its_earlier_name():
    words = ["--data", "clips", "--options.validation", "3"]
    for given in (words, ["--data", "clips", "--options.validation=3"]):
        options, settings = cli.parse(["finetune", *given])
        assert cli.recipe_of(options, settings).options.samples.validation == 3

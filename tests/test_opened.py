"""One file, opened alike by the library, by `generate` and `inspect`, and as a base of training."""

import dataclasses
import json
import logging

import pytest
import torch
from golden_weights import golden_state
from safetensors.torch import load_file, save_file
from weight_files import stable_diffusion, write_holes

from training.stages.base import describe_base, load_base
from univid import __main__ as command_line
from univid import load
from univid.checkpoints import import_file
from univid.checkpoints.native import header
from univid.checkpoints.opened import PREDICTION_KEY, open_checkpoint
from univid.presets import PROFILES, TINY


def parameters(model):
    parts = {"unet": model.unet, "vae": model.vae, "text": model.text_encoder, "vision": model.image_encoder}
    return {
        f"{part}.{key}": tensor
        for part, module in parts.items()
        if module is not None
        for key, tensor in module.state_dict().items()
    }


def equal(a, b):
    first, second = parameters(a), parameters(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def modelscope(tmp_path_factory):
    """ModelScope's network as its own file, and imported."""
    folder = tmp_path_factory.mktemp("opened")
    torch.save(golden_state("modelscope"), folder / "modelscope.pth")
    import_file(folder / "modelscope.pth", folder / "imported.safetensors")
    return folder


def test_a_foreign_file_is_what_import_writes(modelscope, capsys):
    source, imported = modelscope / "modelscope.pth", modelscope / "imported.safetensors"
    ours, theirs = load(imported), load(source)
    assert equal(ours, theirs) and (ours.config, ours.profile) == (theirs.config, theirs.profile)
    assert ours.info == theirs.info and theirs.unet.training is False
    assert equal(load_base(str(source), seed=0), ours)
    assert describe_base(str(source)) == describe_base(str(imported)) == (ours.config, ours.profile)
    texts = []
    for path in (source, imported):
        assert command_line.main(["inspect", str(path)]) == 0
        texts.append(capsys.readouterr().out.replace(str(path), "FILE"))
    assert texts[0] == texts[1] and "imported as ModelScope" in texts[0]
    opened = open_checkpoint(source, "zeroscope")
    assert opened.trained and opened.profile.frames == 24 and opened.config == theirs.config
    with pytest.raises(ValueError, match="is a UniVid checkpoint, not zeroscope"):
        open_checkpoint(imported, "zeroscope")


def test_generate_names_what_a_foreign_file_lacks(modelscope, tmp_path, capsys):
    argv = ["generate", "--checkpoint", str(modelscope / "modelscope.pth"), "--prompt", "x", "--steps", "1",
            "--out", str(tmp_path / "o.mp4")]  # fmt: skip
    assert command_line.main(argv) == 2
    assert "holds no VAE" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_files_that_fit_several_models_are_asked_about_alike(tmp_path, capsys):
    path = tmp_path / "d.safetensors"
    shapes = {name: tensor.shape for name, tensor in golden_state("dynamicrafter_512").items()}
    write_holes(path, shapes, {"scale_arr": torch.tensor(0.7)} if "scale_arr" in shapes else {})
    messages = set()
    for opening in (
        load,
        open_checkpoint,
        lambda p: load_base(str(p), seed=0),
        lambda p: describe_base(str(p)),
    ):
        with pytest.raises(ValueError, match="give the name 'dynamicrafter-512'") as caught:
            opening(path)
        messages.add(str(caught.value))
    assert command_line.main(["inspect", str(path)]) == 2
    assert messages == {capsys.readouterr().err.removeprefix("univid: error: ").strip()}


@pytest.fixture(scope="module")
def still():
    """A small Stable Diffusion 2 that has the vector which tells what it predicts."""
    state = stable_diffusion(num_res_blocks=2)
    assert state[PREDICTION_KEY].shape == (64,)
    return state


def spread(std):
    """A vector whose standard deviation is this."""
    values = torch.ones(64)
    values[::2] = -1
    return values / values.std() * std


@pytest.mark.parametrize(("std", "prediction"), [(0.02, "eps"), (0.0899, "eps"), (0.0901, "v"), (0.4, "v")])
def test_what_stable_diffusion_predicts(still, tmp_path, std, prediction, caplog):
    path = tmp_path / "sd.safetensors"
    save_file(still | {PREDICTION_KEY: spread(std)}, path)
    with caplog.at_level(logging.WARNING):
        model = load(path)
    assert "will not move together" in caplog.text
    assert model.config.schedule.prediction == prediction
    opened = open_checkpoint(path)
    assert not opened.trained and opened.config.schedule.prediction == prediction
    assert describe_base(str(path))[0].schedule.prediction == prediction


def test_a_vector_that_tells_nothing(still, tmp_path):
    path = tmp_path / "sd.safetensors"
    for value in (torch.zeros(64, dtype=torch.int64), torch.zeros(4, 16), torch.tensor(0.0)):
        save_file(still | {PREDICTION_KEY: value}, path)
        with pytest.raises(ValueError, match="give import the prediction"):
            open_checkpoint(path)


def test_a_config_is_held_against_the_tensors(tmp_path):
    """Layers, sizes and schedules that a native header asks for, over the tensors of the built-in network."""
    entries = {f"model.diffusion_model.{i}.weight": (4,) for i in range(10)}
    metadata = header(TINY, PROFILES["tiny"], {})

    def config(**changes):
        data = json.loads(metadata["config"])
        for name, value in changes.items():
            *way, last = name.split("__")
            inner = data
            for step in way:
                inner = inner[step]
            inner[last] = value
        return json.dumps(data)

    for changed in (
        config(unet__num_res_blocks=10**9),
        config(unet__channel_mult=[1] * 10**5, unet__attention_levels=[True] * 10**5,
               unet__temporal={**json.loads(metadata["config"])["unet"]["temporal"],
                               "conv_kernels": [], "segment_frames": []}),
        config(unet__model_channels=2**62),
        config(unet__context_dim=2**62),
        config(text__layers=10**9),
        config(text__context_length=2**40),
        config(text__vocab_size=2**62),
        config(vae__num_res_blocks=10**9),
        config(vae__channel_mult=[1] * 10**6),
        config(vision__layers=10**9),
        config(vision__image_size=2**40, vision__patch_size=1),
        config(vision__mlp_ratio=1e300),
        config(schedule__num_timesteps=10**12),
        config(schedule__num_timesteps=True),
        config(unet__image_stream__resampler={"width": 8, "depth": 10**9, "heads": 1, "head_channels": 8,
                                              "tokens": 4, "frames": None}),
        config(unet__in_channels=10**400),
        config(unet__in_channels="9" * 5000),
        config(unet__channel_mult={}),
    ):  # fmt: skip
        path = write_holes(tmp_path / "n.safetensors", entries)
        text = path.read_bytes()
        length = int.from_bytes(text[:8], "little")
        head = json.loads(text[8 : 8 + length]) | {"__metadata__": metadata | {"config": changed}}
        head = json.dumps(head).encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + text[8 + length :])
        with pytest.raises(ValueError) as caught:
            open_checkpoint(path)
        message = str(caught.value)
        assert message.startswith(str(path)) and len(message) <= 400 and message.isprintable(), message


def test_a_checkpoint_knows_its_parts(modelscope):
    opened = open_checkpoint("built-in")
    assert [opened.holds(part) for part in ("unet", "vae", "text_encoder", "image_encoder")] == [True] * 4
    assert opened.dtype("unet") == torch.float16 and opened.name is None
    assert opened.read("vae").keys() == opened.entries("vae").keys()
    opened = dataclasses.replace(opened, make=lambda key: torch.tensor(float("nan")))
    with pytest.raises(ValueError, match="nan or infinite weights in first_stage_model.decoder"):
        opened.tensor("vae", "decoder.conv_in.bias")
    assert not open_checkpoint(modelscope / "modelscope.pth").holds("vae")
    assert (
        load_file(modelscope / "imported.safetensors").keys()
        == dict(open_checkpoint(modelscope / "modelscope.pth").all_entries).keys()
    )

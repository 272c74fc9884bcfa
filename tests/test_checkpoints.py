"""The native checkpoint: exact, atomic, readable by the safetensors library, and clear about bad files."""

import dataclasses
import errno
import json
import math
import os

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from univid.checkpoints import describe, load, save, stream
from univid.checkpoints.inspect import count_parameters
from univid.checkpoints.native import PARTS, meta_modules
from univid.conditioning import Conditioning
from univid.files.weights import open_weights
from univid.model import UniVid
from univid.narrowed import narrowed
from univid.presets import PAPER, PROFILES, TINY
from univid.widened import widened

SMALL = dataclasses.replace(
    TINY,
    unet=dataclasses.replace(
        TINY.unet, model_channels=32, channel_mult=(1, 1, 1, 1), head_channels=16, context_dim=16
    ),
    vae=dataclasses.replace(TINY.vae, channels=8, channel_mult=(1, 1), norm_groups=4),
    text=dataclasses.replace(TINY.text, width=16, vocab_size=32, layers=2),
    vision=dataclasses.replace(TINY.vision, width=32, layers=1),
)
UNET = PARTS["unet"].prefix


def random_model(config=SMALL) -> UniVid:
    torch.manual_seed(0)
    parts = {name: part.build(getattr(config, part.field)).eval() for name, part in PARTS.items()}
    with torch.no_grad():
        for module in parts.values():
            for parameter in module.parameters():
                parameter.normal_(std=0.1)
    info = {"source": "a test", "training_step": "7", "licence": "none", "note": "ein Gruß"}
    return UniVid(config, PROFILES["tiny"], info=info, **parts)


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "new folder" / "small.safetensors"
    save(path, model)
    return path


@pytest.fixture
def rewrite(saved, tmp_path):
    """Save the small checkpoint again, by the safetensors library, with changed tensors or metadata."""

    def rewrite(change_tensors=lambda tensors: None, change_metadata=lambda metadata: None):
        tensors = safetensors.torch.load_file(saved)
        with safe_open(saved, "pt") as file:
            metadata = file.metadata()
        change_tensors(tensors)
        change_metadata(metadata)
        path = tmp_path / "changed.safetensors"
        safetensors.torch.save_file(tensors, path, metadata)
        return path

    return rewrite


def parameters(model: UniVid) -> dict[str, torch.Tensor]:
    return {
        PARTS[name].prefix + key: tensor
        for name in PARTS
        if getattr(model, name) is not None
        for key, tensor in getattr(model, name).state_dict().items()
    }


def refused(path, *words):
    with pytest.raises(ValueError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and message.endswith(".")
    for word in words:
        assert word in message


def test_round_trip_is_bitwise(model, saved):
    loaded = load(saved)
    assert (loaded.config, loaded.profile, loaded.info) == (model.config, model.profile, model.info)
    before, after = parameters(model), parameters(loaded)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(module.training for module in (loaded.unet, loaded.vae, loaded.text_encoder))

    cond = Conditioning(torch.randn(1, 3, 16), None, torch.tensor([[1.0, 0.0]]))
    x = torch.randn(1, 4, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.denoiser()(x, torch.tensor(2.0), cond),
            model.denoiser()(x, torch.tensor(2.0), cond),
            rtol=0,
            atol=0,
        )
        ids = torch.randint(0, 32, (1, 77))
        assert torch.equal(loaded.text_encoder.tokens(ids), model.text_encoder.tokens(ids))
        frames = torch.rand(1, 3, 2, 16, 16)
        assert torch.equal(loaded.vae.encode(frames), model.vae.encode(frames))


def test_the_safetensors_library_reads_what_we_write_and_the_other_way(model, saved, rewrite):
    theirs = safetensors.torch.load_file(saved)
    assert theirs.keys() == parameters(model).keys()
    assert all(torch.equal(theirs[key], tensor) for key, tensor in parameters(model).items())
    again = parameters(load(rewrite()))
    assert all(torch.equal(again[key], tensor) for key, tensor in theirs.items())


def test_stream_keeps_every_dtype_and_shape(tmp_path):
    tensors = {
        "scalar": torch.tensor(3.0, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "half": torch.randn(3, 5).half(),
        "int": torch.arange(7),
        "strided": torch.randn(4, 6).T,
    }
    entries = {name: stream.Entry(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    stream.write(tmp_path / "f.safetensors", entries, tensors.__getitem__, {"a": "b"})
    reader = open_weights(tmp_path / "f.safetensors")
    theirs = safetensors.torch.load_file(tmp_path / "f.safetensors")
    assert reader.metadata == {"a": "b"}
    for name, tensor in tensors.items():
        assert torch.equal(reader.read(name), tensor) and torch.equal(theirs[name], tensor)
        assert reader.read(name).dtype == tensor.dtype


def test_a_header_whose_length_begins_as_a_pickle_does(tmp_path):
    """640 bytes are 80 02 00 ...: the first bytes of pickle's second protocol."""
    path = tmp_path / "f.safetensors"
    tensors = {"a": torch.ones(2)}
    for padding in range(1000):
        safetensors.torch.save_file(tensors, path, {"padding": "x" * padding})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    else:
        pytest.fail("no header of 640 bytes came about")
    assert torch.equal(open_weights(path).read("a"), tensors["a"])


def test_dtype_and_parts(model, saved, tmp_path):
    half = load(saved, dtype=torch.bfloat16, parts=("unet",))
    assert half.vae is None and half.text_encoder is None and half.image_encoder is None
    assert half.unet.dtype == torch.bfloat16 == next(half.unet.parameters()).dtype
    save(tmp_path / "half.safetensors", model, dtype=torch.float16)
    assert {entry.dtype for entry in open_weights(tmp_path / "half.safetensors").entries.values()} == {
        torch.float16
    }
    assert (
        load(tmp_path / "half.safetensors", dtype=torch.float32).to(dtype=torch.float64).unet.dtype
        == torch.float64
    )
    with pytest.raises(KeyError):
        load(saved, parts=("network",))


def test_a_file_may_hold_the_unet_alone(model, tmp_path):
    alone = UniVid(model.config, model.profile, unet=model.unet)
    save(tmp_path / "unet.safetensors", alone)
    loaded = load(tmp_path / "unet.safetensors")
    assert loaded.vae is None and loaded.config.vae is None and loaded.config.unet == model.config.unet
    with pytest.raises(ValueError, match="without a U-Net"):
        save(tmp_path / "none.safetensors", dataclasses.replace(model, unet=None))


def test_an_expert_leaves_out_what_the_built_in_checkpoint_has(tmp_path):
    built_in, expert = load(), load()
    with torch.no_grad():
        expert.unet.out[2].bias.add_(1)
        expert.vae.decoder.conv_out.bias.add_(1)
    path = tmp_path / "expert.safetensors"
    save(path, expert, beside_built_in=True)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {
            "model.diffusion_model.out.2.bias",
            "first_stage_model.decoder.conv_out.bias",
        }
    again = load(path)
    assert again.config == built_in.config and again.info["base"] == "built-in"
    for part in ("unet", "vae", "text_encoder", "image_encoder"):
        states = [getattr(model, part).state_dict() for model in (expert, again)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    save(path, expert)
    assert path.stat().st_size > 25e6 and "base" not in load(path, parts=()).info


def test_an_expert_of_another_shape_lacks_nothing_else(tmp_path):
    """What the built-in network has and it has not is left where it is; what it lacks is said."""
    path = tmp_path / "narrow.safetensors"
    save(path, narrowed(load()), beside_built_in=True)
    assert path.stat().st_size < 100_000
    assert not any("pst_attn" in key for key in load(path).unet.state_dict())
    save(path, widened(load(), "known"), beside_built_in=True)
    state = load_file(path)
    wider = state.pop("model.diffusion_model.input_blocks.0.0.weight")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert wider.shape[1] == 9
    save_file(state, path, metadata)  # then that of the built-in one is there, which does not fit
    refused(path, "input_blocks.0.0.weight of shape (48, 4, 3, 3) instead of (48, 9, 3, 3)")
    save_file(state, path, metadata | {"base": "another"})
    refused(path, "describes a")


def test_files_that_are_no_checkpoint(saved, tmp_path):
    whole = saved.read_bytes()
    path = tmp_path / "bad.safetensors"
    refused(tmp_path / "absent.safetensors", "cannot be read")
    refused(tmp_path, "no unet/ inside")
    for content, word in [
        (b"", "empty"),
        (whole[:-1], "truncated"),
        (whole[: len(whole) // 2], "truncated"),
        (whole[:1000], "truncated"),
        (whole[:5], "neither a .safetensors file nor plain weights"),
        (b"GIF89a" + bytes(100), "neither a .safetensors file nor plain weights"),
        (b"PK\x03\x04" + bytes(100), "plain weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        ((1 << 40).to_bytes(8, "little") + b"{" + bytes(100), "header of"),
        ((10**6).to_bytes(8, "little") + b'{"a":' + b"[" * (10**6 - 5), "damaged"),
        ((7 * 10**5).to_bytes(8, "little") + b'{"a":' + b"9" * (7 * 10**5 - 6) + b"}", "damaged"),
    ]:
        path.write_bytes(content)
        refused(path, word)
    torch.save({"weight": torch.zeros(3)}, path)  # the suffix is no proof
    refused(path, "nor of any kind known here")
    torch.save({"weight": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    refused(path, "nor of any kind known here")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 6]},
        {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        "entry",
    ],
)
def test_headers_that_disagree_with_themselves(entry, tmp_path):
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    refused(path, "damaged")


def test_other_models_are_recognised(tmp_path):
    path = tmp_path / "other.safetensors"
    for key, words in [
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", ("Stable Diffusion 1.x",)),
        ("conditioner.embedders.0.transformer.a", ("Stable Diffusion XL",)),
        ("cond_stage_model.model.ln_final.bias", ("lacks 'input_blocks.0.0.weight'",)),
        ("something.else", ("not a UniVid checkpoint",)),
    ]:
        safetensors.torch.save_file({key: torch.zeros(1), UNET + "out.2.bias": torch.zeros(4)}, path)
        refused(path, *words)


def test_headers_of_another_version_or_config(rewrite):
    def config(change):
        def change_metadata(metadata):
            data = json.loads(metadata["config"])
            change(data)
            metadata["config"] = json.dumps(data)

        return change_metadata

    for change, words in [
        (lambda m: m.update(format_version="4"), ("version 4",)),
        (lambda m: m.update(format="other"), ("lost its header",)),
        (lambda m: m.pop("config"), ("JSON",)),
        (lambda m: m.update(config="[" * 100_000), ("JSON",)),
        (lambda m: m.pop("profile"), ("JSON",)),
        (config(lambda c: c["unet"].update(colour=1)), ("colour",)),
        (config(lambda c: c["unet"].pop("context_dim")), ("context_dim",)),
        (config(lambda c: c["unet"].update(context_dim="16")), ("context_dim",)),
        (config(lambda c: c["unet"].update(context_dim=-1)), ("at least 1",)),
        (config(lambda c: c["vae"].update(norm_groups=5)), ("cannot be built",)),
        (config(lambda c: c["unet"].update(head_channels=0)), ("does not fit",)),
        (config(lambda c: c["text"].update(layers=10**9)), ("tensors or more", "holds")),
        (config(lambda c: c["unet"].update(context_dim=17)), ("shape",)),
    ]:
        refused(rewrite(change_metadata=change), *words)


def test_tensors_that_do_not_fit(rewrite):
    key = UNET + "out.2.bias"
    for change, words in [
        (lambda t: t.pop(key), ("lacks", key)),
        (lambda t: t.update(surprise=torch.zeros(1)), ("unknown", "surprise")),
        (lambda t: t.update({key: torch.zeros(5)}), (key, "(5,)", "(4,)")),
        (lambda t: t.update({key: torch.zeros(4, dtype=torch.int32)}), (key, "int32")),
        (lambda t: t.update({key: torch.tensor([0, 0, math.nan, 0])}), (key, "nan")),
        (lambda t: t.update({key: torch.tensor([0, 0, math.inf, 0])}), (key, "infinite")),
    ]:
        refused(rewrite(change), *words)


def test_nothing_half_written(model, tmp_path, monkeypatch):
    path = tmp_path / "out" / "model.safetensors"
    broken = random_model()
    with torch.no_grad():
        broken.unet.out[2].bias[0] = 1e6
    with pytest.raises(ValueError, match="float16"):
        save(path, broken, dtype=torch.float16)  # 1e6 is infinite there
    assert list(tmp_path.iterdir()) == []

    save(path, model)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(stream, "memory_of", full)
        with pytest.raises(ValueError, match="No space left"):
            save(path, model)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stream, "memory_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(path, model)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]

    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        save(tmp_path / "folder.safetensors", model)
    with pytest.raises(ValueError, match="cannot be written"):
        save(path / "below a file.safetensors", model)


def test_describe(model, saved):
    text = describe(saved)
    total = sum(tensor.numel() for tensor in parameters(model).values())
    assert f"{total:,}" in text and "a test" in text and "float32" in text and "PSTAttn" in text
    assert "lcm" in text and "sgm_uniform" in text and "unet.model_channels" in text
    with pytest.raises(ValueError, match="cannot be read"):
        describe("no such file")


def test_the_paper_preset_has_the_paper_s_size():
    entries = {
        PARTS[part].prefix + key: stream.Entry(tensor.dtype, tuple(tensor.shape))
        for part, module in meta_modules(PAPER).items()
        for key, tensor in module.state_dict().items()
    }
    counts = count_parameters(entries)
    assert counts["trunk"] == (686, 865_910_724)
    assert counts["vae"][1] == 83_653_863
    unet = sum(parameters for name, (_, parameters) in counts.items() if name not in set(PARTS))
    assert abs(unet / 1509e6 - 1) < 0.005
    assert "865,910,724" in describe("paper")

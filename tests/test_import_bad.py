"""Sources that cannot be imported: one sentence each, and nothing is left under the output's name."""

import json
import pickle
import resource
import subprocess
import sys

import pytest
import torch
from golden_weights import golden_state
from safetensors.torch import load_file, save_file

from univid import __main__ as command_line
from univid.checkpoints import import_file
from univid.checkpoints.origins import ORIGINS

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The golden networks as files; heads are taken as 64 wide, which fits their shapes too."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("videocrafter2", "dynamicrafter_512", "modelscope"):
        save_file(golden_state(name), folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def refused(tmp_path):
    out = tmp_path / "out" / "univid.safetensors"

    def refuse(source, *words, **options):
        with pytest.raises(ValueError) as caught:
            import_file(source, out, **options)
        message = str(caught.value)
        assert message.startswith(str(source)) or "cannot write" in message, message
        assert "\n" not in message and message.endswith("."), message
        for word in words:
            assert word in message, message
        assert not out.parent.exists() or not list(out.parent.iterdir())

    return refuse


CHANGES = {  # what is done to VideoCrafter2's tensors: what the message says
    "unknown key": (lambda t: t.update({UNET + "what.weight": torch.zeros(2)}), "the unknown tensor model"),
    "unknown part": (lambda t: t.update({"what.weight": torch.zeros(2)}), "unknown tensor what.weight"),
    "missing keys": (
        lambda t: [t.pop(f"{UNET}{key}") for key in ("out.0.bias", "init_attn.0.norm.bias")],
        "lacks tensors model.diffusion_model.init_attn.0.norm.bias, model.diffusion_model.out.0.bias;",
    ),
    "missing first": (lambda t: t.pop(UNET + "input_blocks.0.0.weight"), "lacks 'input_blocks.0.0.weight'"),
    "wrong shape": (
        lambda t: t.update({UNET + "out.0.bias": torch.zeros(3)}),
        "has model.diffusion_model.out.0.bias of shape (3,), expected (64,)",
    ),
    "turned kernel": (
        lambda t: t.update(
            {UNET + "middle_block.0.temopral_conv.conv1.2.weight": torch.zeros(128, 128, 1, 3, 1)}
        ),
        "of shape (128, 128, 1, 3, 1), expected (128, 128, 3, 1)",
    ),
    "nan": (lambda t: t[UNET + "out.0.bias"].fill_(float("nan")), "nan or infinite weights"),
    "whole numbers": (
        lambda t: t.update({UNET + "out.0.bias": torch.zeros(64, dtype=torch.int8)}),
        "of type torch.int8",
    ),
    "inpainting": (
        lambda t: t.update({UNET + "input_blocks.0.0.weight": torch.zeros(64, 8, 3, 3)}),
        "8 channels and no picture",
    ),
    "relative positions": (
        lambda t: t.update({UNET + "a.relative_position_k.embeddings_table": torch.zeros(2)}),
        "VideoCrafter1's text-to-video",
    ),
    "another video decoder": (
        lambda t: t.update({"first_stage_model.decoder.attn_refinement.0.to_q.weight": torch.zeros(2)}),
        "ToonCrafter",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_tensors(sources, refused, tmp_path, change):
    tensors = load_file(sources / "videocrafter2.safetensors")
    apply, words = CHANGES[change]
    apply(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    refused(tmp_path / "changed.safetensors", words)


def test_choices_that_are_needed_or_do_not_fit(sources, refused, tmp_path):
    vc, dc = sources / "videocrafter2.safetensors", sources / "dynamicrafter_512.safetensors"
    refused(dc, "has an attention 48 wide", name="dynamicrafter-1024")
    refused(dc, "give the name 'dynamicrafter-512' ", "'dynamicrafter-1024' (DynamiCrafter 1024)")
    refused(dc, "is not 'videocrafter2', as its tensors show", name="videocrafter2")
    refused(vc, "is not 'magic'", name="magic")
    refused(vc, "predicts eps, not v", prediction="v")
    refused(sources / "modelscope.safetensors", "predicts eps, not v", prediction="v")
    for source, options in (
        (vc, {}),
        (dc, {"extend": True, "name": "dynamicrafter-512", "head_channels": 16}),
    ):
        with pytest.raises(ValueError, match="would go unused"):
            import_file(source, tmp_path / "out.safetensors", vision=vc, **options)
    with pytest.raises(ValueError, match="holds no CLIP vision tower"):
        import_file(vc, tmp_path / "out.safetensors", vision=vc, extend=True)
    scales = torch.full((1400,), 0.5)
    save_file(load_file(dc) | {"scale_arr": scales}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", "x0 down to 0.5")


def test_damaged_files(sources, refused, tmp_path):
    content = (sources / "videocrafter2.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(content[: len(content) // 2])
    refused(cut, "is truncated")
    torch.save({"state_dict": load_file(sources / "videocrafter2.safetensors")}, tmp_path / "whole.ckpt")
    content = (tmp_path / "whole.ckpt").read_bytes()
    for size, words in ((len(content) // 2, "plain weights"), (100, "plain weights"), (0, "is empty")):
        (tmp_path / "cut.ckpt").write_bytes(content[:size])
        refused(tmp_path / "cut.ckpt", words)
    refused(tmp_path / "absent.ckpt", "cannot be read (No such file")
    refused(tmp_path / "absent.safetensors", "cannot be read (No such file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no unet/ inside")


class Evil:
    def __reduce__(self):
        return open, ("hacked", "w")


def test_a_pickle_with_code_is_not_run(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    refused(tmp_path / "evil.ckpt", "plain weights")
    (tmp_path / "older.pth").write_bytes(pickle.dumps(Evil()))
    refused(tmp_path / "older.pth", "plain weights")
    assert not (tmp_path / "hacked").exists()
    torch.load(tmp_path / "evil.ckpt", weights_only=False)  # the code is alive
    assert (tmp_path / "hacked").exists()


def test_pickles_from_before_zip_files(sources, tmp_path):
    state = load_file(sources / "modelscope.safetensors")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    import_file(tmp_path / "old.pth", tmp_path / "out.safetensors")
    import_file(sources / "modelscope.safetensors", tmp_path / "expected.safetensors")
    out, expected = (load_file(tmp_path / f"{name}.safetensors") for name in ("out", "expected"))
    assert out.keys() == expected.keys() and all(torch.equal(out[key], expected[key]) for key in expected)


FOLDERS = {
    "UNetMotionModel": "is AnimateDiff",
    "UNetSpatioTemporalConditionModel": "is Stable Video Diffusion",
    "I2VGenXLUNet": "is I2VGen-XL",
    "Strange": "is of the kind Strange",
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_of_other_models(refused, tmp_path, kind):
    (tmp_path / "model" / "unet").mkdir(parents=True)
    config = tmp_path / "model" / "unet" / "config.json"
    config.write_text(json.dumps({"_class_name": kind}))
    refused(tmp_path / "model", FOLDERS[kind])
    config.write_text("[")
    with pytest.raises(ValueError, match="config.json is no JSON that can be read"):
        import_file(tmp_path / "model", tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cross_attention_dim": 768}, "seems to be Stable Diffusion 1.x"),
        ({"addition_embed_type": "text_time"}, "seems to be Stable Diffusion XL"),
    ],
)
def test_folders_of_other_stable_diffusions(tmp_path, refused, change, words):
    config = {
        "_class_name": "UNet2DConditionModel", "block_out_channels": [320, 640], "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10],
    }  # fmt: skip
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / "sd" / part).mkdir(parents=True)
        save_file({"a": torch.zeros(1)}, tmp_path / "sd" / part / "model.safetensors")
    (tmp_path / "sd/unet/config.json").write_text(json.dumps(config | change))
    (tmp_path / "sd/vae/config.json").write_text(
        json.dumps({"block_out_channels": [32], "in_channels": 3, "latent_channels": 4,
                    "layers_per_block": 1, "norm_num_groups": 32})
    )  # fmt: skip
    (tmp_path / "sd/text_encoder/config.json").write_text(
        json.dumps({"hidden_act": "gelu", "hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1,
                    "max_position_embeddings": 77, "vocab_size": 9})
    )  # fmt: skip
    refused(tmp_path / "sd", words)


def test_a_full_disk_leaves_the_older_file(sources, tmp_path):
    out = tmp_path / "univid.safetensors"
    out.write_text("the user's own")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, limits[1]))
    try:
        with pytest.raises(ValueError, match="univid.safetensors cannot be written .*name another output"):
            import_file(sources / "videocrafter2.safetensors", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == [out.name] and out.read_text() == "the user's own"


def test_the_same_import_twice_and_onto_its_source(sources, tmp_path):
    source, out = sources / "videocrafter2.safetensors", tmp_path / "out.safetensors"
    before = source.read_bytes()
    import_file(source, out)
    first = out.read_bytes()
    import_file(source, out)
    assert out.read_bytes() == first
    with pytest.raises(ValueError, match="is read too"):
        import_file(source, source)
    with pytest.raises(ValueError, match="already"):
        import_file(out, tmp_path / "again.safetensors")
    assert source.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [out.name]


def test_what_the_command_prints(sources, tmp_path, capsys):
    source, out = tmp_path / "model.ckpt", tmp_path / "out.safetensors"
    state = golden_state("dynamicrafter_256")
    for key, tensor in state.items():  # the resampler's three heads become one of 64
        if key.startswith("image_proj_model.layers.") and key.endswith((".to_q.weight", ".to_kv.weight")):
            state[key] = torch.ones(64 * (1 + ("to_kv" in key)), tensor.shape[1])
        elif key.startswith("image_proj_model.layers.") and key.endswith(".to_out.weight"):
            state[key] = torch.ones(tensor.shape[0], 64)
    torch.save({"state_dict": state | {"betas": torch.zeros(1000)}}, source)
    assert command_line.main(["import", str(source), "--out", str(out), "--dtype", "bf16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{source}: DynamiCrafter 256"
    mapped = {key: tensor for key, tensor in state.items() if not key.endswith(".alpha")}
    words = [line.split() for line in lines[1:6]]
    assert words[0] == [
        "mapped", f"{len(mapped):,}", "tensors", f"{sum(t.numel() for t in mapped.values()):,}", "parameters",
    ]  # fmt: skip
    assert [word[:4] for word in words[1:]] == [
        ["padded", "0", "tensors", "0"], ["new", "0", "tensors", "0"], ["folded", "16", "tensors", "16"],
        ["dropped", "1", "tensors", "1,000"],
    ]  # fmt: skip
    assert lines[6] == "  absent: vae, text encoder, image encoder"
    assert lines[7] == f"  licence of the source: {ORIGINS['dynamicrafter-256'].licence}"
    assert "univid inspect" in lines[8]
    assert command_line.main(["inspect", str(out)]) == 0
    assert "torch" not in (text := capsys.readouterr().out) and "bfloat16" in text and "Apache" in text

    interpolation = sources / "dynamicrafter_512.safetensors"
    assert command_line.main(["import", str(interpolation), "--out", str(out)]) == 2
    assert "give the name" in capsys.readouterr().err

    source = sources / "modelscope.safetensors"
    assert command_line.main(["import", str(source), "--out", str(out), "--extend"]) == 0
    printed = capsys.readouterr().out
    assert "name one for its size and guidance" in printed and "non-commercial" in printed
    assert command_line.main(["export", str(out), "--out", str(tmp_path / "folder")]) == 2
    assert "extended" in capsys.readouterr().err and not (tmp_path / "folder").exists()


MEASURE = """
import dataclasses, resource, sys
import torch
from univid.checkpoints import import_file, stream
from univid.checkpoints.family_names import ldm_family_unet
from univid.checkpoints.modelscope import DIALECT
from univid.checkpoints.native import meta_modules
from univid.presets import FAMILY

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

unet = dataclasses.replace(FAMILY.unet, model_channels=64)
temporal = dataclasses.replace(unet.temporal, input_heads=1)
unet = dataclasses.replace(unet, temporal=temporal)
config = dataclasses.replace(FAMILY, unet=unet, vae=None, text=None)
table = ldm_family_unet(unet, DIALECT)
entries = {
    table.source(key): stream.Entry(torch.float32, tuple(tensor.shape))
    for key, tensor in meta_modules(config)["unet"].state_dict().items()
}
stream.write(sys.argv[1], entries, lambda key: torch.zeros(entries[key].shape), {})
before = peak()
import_file(sys.argv[1], sys.argv[2], extend=True)
print(sum(entry.num_bytes for entry in entries.values()), peak() - before)
"""


def test_memory_stays_far_below_the_file(tmp_path):
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    command = [sys.executable, "-c", MEASURE, source, out]
    size, growth = map(int, subprocess.check_output(command, text=True).split())
    source.unlink()
    out.unlink()
    assert size > 200e6
    assert growth < size / 4

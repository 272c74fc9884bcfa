"""What configs, names and numbers of foreign files ask for is held against what is there."""

import json
import math
import resource
import time

import diffusers
import pytest
import torch
from golden_weights import golden_state
from safetensors.torch import load_file, save_file
from weight_files import RAW, stable_diffusion, write_holes

from univid.checkpoints import import_file, load
from univid.checkpoints.imports import plan


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def refused(source, *words, **options):
    before, started = peak(), time.process_time()
    with pytest.raises(ValueError) as caught:
        plan(source, **options)
    message = str(caught.value)
    assert message.startswith(str(source)[:40]) and message.endswith("."), message
    assert len(message) <= 400 and message.isprintable() and not RAW.search(message), message
    for word in words:
        assert word in message, message
    assert time.process_time() - started < 10 and peak() - before < 500e6


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small ModelScope as diffusers writes it."""
    folder = tmp_path_factory.mktemp("saved")
    unet = diffusers.UNet3DConditionModel(block_out_channels=(64, 128, 128, 128), cross_attention_dim=64)
    unet.save_pretrained(folder / "unet")
    return folder


@pytest.fixture
def family(saved, tmp_path):
    """The same, with a config and a scheduler that a test may change."""
    folder = tmp_path / "family"
    (folder / "unet").mkdir(parents=True)
    (folder / "scheduler").mkdir()
    for file in (saved / "unet").iterdir():
        (folder / "unet" / file.name).symlink_to(file)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").unlink()

    def change(part=None, name=None, **entries):
        values = {
            "unet/config.json": config,
            "scheduler/scheduler_config.json": {"prediction_type": "epsilon"},
        }
        for path, content in values.items():
            (folder / path).write_text(
                json.dumps(content | (entries if path.startswith(part or "-") else {}))
            )
        return folder

    return change


HOSTILE = [
    None, True, False, -1, 0, 1.5, 10**9, 2**70, 1e308, float("inf"), float("nan"), "x", "", [], {}, [[]],
    ["x"], [1], [-64] * 4, [0] * 4, ["64"] * 4, [64] * 10**6, [64 * 10**12] * 4, [64.5] * 4, [None] * 4,
    {"a": 1}, "9" * 10**6,
]  # fmt: skip
ENTRIES = ["layers_per_block", "block_out_channels", "down_block_types", "cross_attention_dim", "in_channels",
           "out_channels", "attention_head_dim", "norm_num_groups", "_class_name"]  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_of_a_config(family, entry):
    good = json.loads((family("unet") / "unet" / "config.json").read_text())[entry]
    for value in HOSTILE:
        folder = family("unet", **{entry: value})
        if value == good or (entry == "norm_num_groups" and value is True):
            continue
        refused(folder)
    whole = not isinstance(good, (str, list))
    refused(family("unet", **{entry: "x"}), entry if entry != "_class_name" else "of the kind x")
    config = json.loads((folder / "unet" / "config.json").read_text())
    del config[entry]
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    refused(folder, f"has no {entry}" if entry != "_class_name" else "of the kind None")
    if whole:
        assert plan(family("unet", **{entry: float(good)})).entries  # another spelling


def test_layers_and_widths_against_the_tensors(family):
    assert plan(family("unet")).trained
    refused(family("unet", layers_per_block=100), "describes a unet of 6,400 tensors or more")
    refused(family("unet", layers_per_block=3), "lacks tensors")
    refused(family("unet", block_out_channels=[64, 128, 128, 65472]), "conv_shortcut")
    refused(family("unet", block_out_channels=[32, 64, 64, 64], attention_head_dim=32), "shape")
    refused(family("unet", block_out_channels=[64, 96, 128, 128]), "no multiples of 64")
    refused(family("unet", down_block_types=["CrossAttnDownBlock3D"] * 9), "down_block_types")
    refused(family("unet", norm_num_groups=48), "norm_groups")


def test_large_and_deep_json(family):
    folder = family("unet")
    for name in ("unet/config.json", "scheduler/scheduler_config.json"):
        path = family("unet") / name
        for text in ("[" * 100_000, '{"a":' * 100_000, '{"a":' + "9" * 10_000 + "}", "\0", "", "nan"):
            path.write_text(text)
            with pytest.raises(ValueError, match="JSON"):
                plan(folder)
        path.write_text(
            '{"a":' + "[" * 700 + "]" * 700 + ', "layers_per_block":' + "[" * 700 + "]" * 700 + "}"
        )
        with pytest.raises(ValueError):
            plan(folder)
        with open(path, "wb") as file:
            file.truncate(2 * 2**30)
        with pytest.raises(ValueError, match="is larger than"):
            plan(folder)


SCHEDULES = [
    ({"beta_start": "x"}, "beta_start"),
    ({"beta_start": None}, "beta_start"),
    ({"beta_start": -1.0}, "beta_start"),
    ({"beta_start": True}, "beta_start"),
    ({"beta_start": float("nan")}, "beta_start"),
    ({"beta_end": 2}, "beta_end"),
    ({"beta_end": 10**400}, "beta_end"),
    ({"beta_start": 0.5, "beta_end": 0.1}, "beta"),
    ({"trained_betas": [0.1]}, "trained_betas"),
    ({"beta_schedule": "linear"}, "beta_schedule ('linear')"),
    ({"beta_schedule": ["scaled_linear"]}, "beta_schedule (a list)"),
    ({"num_train_timesteps": "12"}, "num_train_timesteps"),
    ({"num_train_timesteps": float("inf")}, "num_train_timesteps"),
    ({"num_train_timesteps": 10**12}, "num_train_timesteps"),
    ({"num_train_timesteps": 0}, "num_train_timesteps"),
    ({"num_train_timesteps": [1000]}, "num_train_timesteps"),
    ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": "yes"}, "rescale_betas_zero_snr"),
    ({"prediction_type": "epsilon", "rescale_betas_zero_snr": True}, "zero_terminal_snr"),
    ({"prediction_type": ["x"]}, "prediction_type (a list)"),
    ({"prediction_type": {}}, "prediction_type (an object)"),
    ({"prediction_type": 5}, "prediction_type (5)"),
    ({"prediction_type": "\x1b[2J" + "x" * 10**6}, "prediction_type"),
    ({"prediction_type": None}, "prediction"),
]


@pytest.mark.parametrize(("change", "word"), SCHEDULES)
def test_schedulers_that_make_no_sense(family, change, word):
    refused(family("scheduler", **change), word)


def test_a_scheduler_that_is_spelled_otherwise_opens(family, tmp_path):
    change = {"num_train_timesteps": 500.0, "beta_start": 0.001, "prediction_type": "v_prediction"}
    import_file(family("scheduler", **change), tmp_path / "out.safetensors")
    schedule = load(tmp_path / "out.safetensors").config.schedule
    assert (schedule.num_timesteps, schedule.prediction) == (500, "v")


@pytest.fixture(scope="module")
def still():
    return stable_diffusion()


NAMES = {
    "text layers 1e9": "cond_stage_model.model.transformer.resblocks.999999999.x",
    "text layers 1e5": "cond_stage_model.model.transformer.resblocks.99999.x",
    "text layers of 5,000 digits": "cond_stage_model.model.transformer.resblocks." + "9" * 900 + ".x",
    "a gap": "cond_stage_model.model.transformer.resblocks.9.x",
    "VAE blocks 1e9": "first_stage_model.encoder.down.0.block.999999999.x",
    "VAE levels 1e9": "first_stage_model.encoder.down.999999999.x",
    "a vision tower 1e9 deep": "embedder.model.visual.transformer.resblocks.999999999.x",
    "a U-Net 1e9 deep": "model.diffusion_model.input_blocks.999999999.0.op.weight",
    "nothing": "",
    "dots": "." * 900,
    "control characters": "\x1b[2J\x1b]0;x\x07",
    "another script": "ﷺ" * 900,
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_tensors(still, tmp_path, name):
    torch.save(still | {NAMES[name]: torch.zeros(1)}, tmp_path / "s.ckpt")
    refused(tmp_path / "s.ckpt", prediction="v")
    shapes = {key: tensor.shape for key, tensor in still.items()} | {NAMES[name]: (1,)}
    refused(write_holes(tmp_path / "s.safetensors", shapes), prediction="v")


def test_a_resampler_that_is_1e9_deep(tmp_path):
    shapes = golden_shapes("dynamicrafter_512") | {"image_proj_model.layers.999999999.0.x": (1,)}
    path = write_holes(tmp_path / "v.safetensors", shapes)
    refused(path, "layers", name="dynamicrafter-512", head_channels=16)


def golden_shapes(source):
    return {name: tensor.shape for name, tensor in golden_state(source).items()}


SHAPES = [
    (),
    (0,),
    (0, 0, 0, 0),
    (1,),
    (1, 1),
    (7, 5),
    (3, 2, 2, 2),
    (1, 1, 1, 1, 1),
    (64, 4, 3, 3, 3),
    (2**20,),
]
READ = {  # from which an architecture is told
    "videocrafter2": ["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.2.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.init_attn.0.proj_in.weight",
        "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"],
    "dynamicrafter_512": ["image_proj_model.latents", "image_proj_model.proj_in.weight",
        "image_proj_model.layers.0.0.to_q.weight", "scale_arr",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.alpha"],
}  # fmt: skip


@pytest.mark.parametrize(("source", "key"), [(source, key) for source, keys in READ.items() for key in keys])
def test_shapes_of_tensors(tmp_path, source, key):
    shapes, scales = golden_shapes(source), {"scale_arr": torch.tensor(0.7)}
    options = {"name": "dynamicrafter-512", "head_channels": 16} if source == "dynamicrafter_512" else {}
    for shape in SHAPES:
        if shapes.get(key) == shape or (key.endswith("alpha") and math.prod(shape) == 1):
            continue  # of one number, however it is written
        if key == "scale_arr" and len(shape) == 1 and 0 < math.prod(shape) < 100:
            continue  # the last number counts
        path = write_holes(tmp_path / "m.safetensors", shapes | {key: shape}, scales if key in scales else {})
        refused(path, **options)


TOWERS = [
    "first_stage_model.encoder.conv_in.weight", "first_stage_model.post_quant_conv.weight",
    "first_stage_model.encoder.down.1.block.0.conv1.weight",
    "cond_stage_model.model.token_embedding.weight", "cond_stage_model.model.positional_embedding",
    "cond_stage_model.model.text_projection",
]  # fmt: skip


@pytest.mark.parametrize("key", TOWERS)
def test_shapes_of_towers(still, tmp_path, key):
    shapes = {name: tensor.shape for name, tensor in still.items()}
    for shape in SHAPES:
        path = write_holes(tmp_path / "s.safetensors", shapes | {key: shape})
        refused(path, prediction="v")
    del shapes[key]
    path = write_holes(tmp_path / "s.safetensors", shapes)
    if key.endswith("text_projection"):  # which text tokens do not need
        assert plan(path, prediction="v").report.counts["mapped"]
    else:
        refused(path, "lacks", prediction="v")


def test_scales_of_odd_values(tmp_path):
    shapes = golden_shapes("dynamicrafter_512")
    for value in (float("nan"), float("inf"), -0.7, 0.5, 6e4):
        scales = {"scale_arr": torch.tensor([value])}
        refused(
            write_holes(tmp_path / "v.safetensors", shapes | {"scale_arr": (1,)}, scales), "scales x0 down"
        )


def test_the_widest_type_of_a_part_is_its_type(tmp_path):
    """A file may hold norms in float32 between weights in half precision; nothing of them is lost."""
    path, out = tmp_path / "m.safetensors", tmp_path / "out.safetensors"
    state = {key: tensor.half() for key, tensor in golden_state("modelscope").items()}
    exact = torch.full_like(state["out.0.weight"], 1 + 2**-20, dtype=torch.float32)
    save_file(state | {"out.0.weight": exact}, path)
    import_file(path, out)
    written = load_file(out)
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    assert torch.equal(written["model.diffusion_model.out.0.weight"], exact)
    save_file(state, path)
    assert {entry.dtype for entry in plan(path).entries.values()} == {torch.float16}
    save_file(state | {"out.0.weight": exact.bfloat16()}, path)  # half precision has not its range
    assert {entry.dtype for entry in plan(path).entries.values()} == {torch.float32}

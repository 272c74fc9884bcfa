"""Public relatives imported: what their original code gave, at reduced width; every key, at full size."""

import dataclasses
import json
from functools import partial

import diffusers
import pytest
import torch
import transformers
from golden_weights import CASES, family_keys, golden_inputs, golden_outputs, golden_state
from safetensors.torch import load_file, save_file
from weight_files import write_holes

from univid.checkpoints import export, import_file, load, stream
from univid.checkpoints.extension import rule_of
from univid.checkpoints.imports import plan
from univid.checkpoints.origins import ORIGINS
from univid.conditioning import Conditioning
from univid.presets import FAMILY, FROM_NOISE, PAPER

HEADS = 16  # of the golden networks
NAMES = {  # table of the source: its name in ORIGINS
    "videocrafter2": "videocrafter2",
    "videocrafter1_i2v_512": "videocrafter1-i2v",
    "dynamicrafter_256": "dynamicrafter-256",
    "dynamicrafter_512": "dynamicrafter-512",
    "dynamicrafter_512_interp": "dynamicrafter-512-interp",
    "dynamicrafter_1024": "dynamicrafter-1024",
    "modelscope": "modelscope",
}


def write_source(case, folder):
    """The random checkpoint of a case, in the container that its authors publish, or a deepspeed one."""
    name, state = case.split()[0], golden_state(case)
    if name == "modelscope":
        torch.save(state, path := folder / "text2video_pytorch_model.pth")
    elif name == "dynamicrafter_256":
        torch.save({"module": {f"_forward_module.{k}": v for k, v in state.items()}}, path := folder / "m.pt")
    elif name.startswith("videocrafter"):
        torch.save({"state_dict": state, "global_step": 9}, path := folder / "model.ckpt")
    else:
        save_file(state, path := folder / "pruned.safetensors")
    return path


def small_plan(case, folder, **options):
    asked = {"name": "dynamicrafter-512"} if case.startswith("dynamicrafter_512") else {}
    return plan(write_source(case, folder), head_channels=HEADS, **(asked | options))


@torch.no_grad()
def difference(unet, case, image_weight=None, **changes):
    """The largest difference from what the original network gave."""
    inputs = golden_inputs(case) | changes
    weight = float("clip" in inputs) if image_weight is None else image_weight
    cond = Conditioning(
        text=inputs["text"],
        image=inputs.get("clip"),
        weights=torch.tensor([[1.0, weight]] * len(inputs["x"])),
        concat=inputs.get("concat"),
        numbers={name: inputs[name] for name in ("fps",) if name in inputs},
    )
    out = unet(inputs["x"], inputs["timesteps"], cond)
    return (out - golden_outputs()[case]).abs().max().item()


def imported(case, folder, **options):
    planned = small_plan(case, folder, **options)
    stream.write(folder / "univid.safetensors", planned.entries, planned.make, planned.metadata)
    return load(folder / "univid.safetensors"), planned.report


# Reduced width, random weights


@pytest.mark.parametrize("case", CASES)
def test_a_relative_gives_what_its_own_code_gave(case, tmp_path):
    model, report = imported(case, tmp_path)
    assert report.title == ORIGINS[NAMES[case.split()[0]]].title
    assert report.counts["new"] == report.counts["padded"] == report.counts["dropped"] == (0, 0)
    assert report.counts["folded"] == ((16, 16) if case == "dynamicrafter_256" else (0, 0))
    assert difference(model.unet, case) < 2e-5
    inputs = golden_inputs(case)
    assert difference(model.unet, case, x=inputs["x"].flip(2)) > 1e-2
    if "clip" in inputs:
        assert difference(model.unet, case, image_weight=0.9) > 1e-4
    if "fps" in inputs:
        assert difference(model.unet, case, fps=inputs["fps"] + 1) > 1e-4


@pytest.mark.parametrize("case", ["videocrafter2", "dynamicrafter_512", "modelscope"])
def test_the_extended_network_gives_the_same(case, tmp_path):
    model, report = imported(case, tmp_path, extend=True)
    config = model.config.unet
    assert config.temporal.conv_kernels == (3, 5, 7, 9) and config.temporal.segment_frames == (8, 4, 2, 1)
    assert report.counts["padded"][0] == 4 * 17 and report.counts["new"][0] > 0
    weights = model.unet.state_dict()
    assert not weights["middle_block.1.transformer_blocks.0.pst_attn.to_out.0.weight"].any()
    assert difference(model.unet, case) < 2e-5
    if case == "dynamicrafter_512":
        assert not any("image_projection.proj." in key for key in weights)  # it keeps its own
        return
    image = torch.randn(len(golden_inputs(case)["x"]), 5, 1280)
    assert difference(model.unet, case, image_weight=0.0, clip=image) < 2e-5
    assert difference(model.unet, case, image_weight=1.0, clip=image) > 1e-2
    assert torch.equal(
        weights["middle_block.1.transformer_blocks.0.attn2.to_v_image.weight"],
        weights["middle_block.1.transformer_blocks.0.attn2.to_v.weight"],
    )
    for parameter in model.unet.middle_block[0].temporal_stack[0].conv.parameters():
        parameter.data.fill_(0.1)  # the outer taps are alive
    assert difference(model.unet, case) > 1e-3


def test_a_dtype_is_that_of_all_weights(tmp_path):
    planned = small_plan("videocrafter2", tmp_path, dtype=torch.bfloat16)
    assert {entry.dtype for entry in planned.entries.values()} == {torch.bfloat16}
    key, theirs = "model.diffusion_model.out.2.bias", golden_state("videocrafter2")
    assert torch.equal(planned.make(key), theirs[key].bfloat16())


def test_modelscope_goes_to_diffusers_and_back(tmp_path):
    _, _ = imported("modelscope", tmp_path)
    export(tmp_path / "univid.safetensors", tmp_path / "folder")
    theirs = diffusers.UNet3DConditionModel.from_pretrained(tmp_path / "folder", subfolder="unet").eval()
    inputs, expected = golden_inputs("modelscope"), golden_outputs()["modelscope"]
    with torch.no_grad():
        run = partial(theirs, timestep=inputs["timesteps"], encoder_hidden_states=inputs["text"])
        assert (run(inputs["x"]).sample - expected).abs().max() < 2e-5
        assert (run(inputs["x"].flip(2)).sample - expected).abs().max() > 1e-2
    import_file(tmp_path / "folder", tmp_path / "again.safetensors")
    before, after = (load_file(tmp_path / name) for name in ("univid.safetensors", "again.safetensors"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(ValueError, match="embedding of fps, which diffusers"):
        imported("videocrafter2", tmp_path)
        export(tmp_path / "univid.safetensors", tmp_path / "no")
    with pytest.raises(ValueError, match="extended"):
        imported("modelscope", tmp_path, extend=True)
        export(tmp_path / "univid.safetensors", tmp_path / "no")
    assert not (tmp_path / "no").exists()


# Full size: real headers in front of files that are holes


X0_SCALE = {"dynamicrafter_1024": 0.3}


@pytest.mark.parametrize("table", NAMES)
def test_every_key_of_a_full_size_file_is_known(table, tmp_path):
    keys = family_keys(table)
    scale = {"scale_arr": torch.tensor(X0_SCALE.get(table, 0.7))}
    path = write_holes(tmp_path / "full.safetensors", keys, scale if "scale_arr" in keys else {})
    if table in ("dynamicrafter_512", "dynamicrafter_512_interp"):
        with pytest.raises(ValueError, match="dynamicrafter-512-interp") as caught:
            plan(path)
        assert "1024" not in str(caught.value)
        planned = plan(path, name=NAMES[table])
    else:
        planned = plan(path)
    assert planned.report.title == ORIGINS[NAMES[table]].title
    counts, dropped = planned.report.counts, planned.report.counts["dropped"][0]
    assert counts["mapped"][0] == len(planned.entries) and counts["new"] == counts["padded"] == (0, 0)
    assert counts["mapped"][0] + counts["folded"][0] + dropped == len(keys)
    config = json.loads(planned.metadata["config"])
    assert config["unet"]["temporal"] == json.loads(json.dumps(dataclasses.asdict(FAMILY.unet.temporal)))
    if table == "modelscope":
        assert counts["mapped"][0] == 1480 and dropped == 0
        assert config["unet"] == json.loads(json.dumps(dataclasses.asdict(FAMILY.unet)))
        return
    ours = json.loads(json.dumps(dataclasses.asdict(PAPER)))
    assert config["vae"] == ours["vae"] and config["text"] == ours["text"]
    assert config["vision"] == (None if table == "videocrafter2" else ours["vision"])
    mapped = {key for key in keys if key.startswith("model.diffusion_model.") and not key.endswith(".alpha")}
    mapped |= {key for key in keys if key.startswith(("image_proj_model.", "embedder.model.visual."))}
    assert len(mapped) == sum(
        key.startswith(("model.diffusion_model.", "embedder.")) for key in planned.entries
    )
    resampler = (config["unet"]["image_stream"] or {"resampler": None})["resampler"]
    if resampler is not None:
        frames = None if table == "videocrafter1_i2v_512" else 16
        assert resampler == {
            "width": 1024, "depth": 4, "heads": 12, "head_channels": 64, "tokens": 16, "frames": frames,
        }  # fmt: skip


def test_pruned_files_lack_towers(tmp_path):
    keys = {k: s for k, s in family_keys("dynamicrafter_1024").items() if not k.startswith("cond_stage")}
    del keys["scale_arr"]
    path = write_holes(tmp_path / "pruned.safetensors", keys)
    with pytest.raises(ValueError, match="give the name 'dynamicrafter-512'.*'dynamicrafter-1024'"):
        plan(path)
    planned = plan(path, name="dynamicrafter-1024")
    assert planned.report.absent == ("text_encoder",)
    assert json.loads(planned.metadata["config"])["text"] is None


def write_folder(folder, unet_class, **config):
    """A diffusers folder at full size, its weights holes."""
    with torch.device("meta"):
        parts = {
            "unet": unet_class(**config),
            "vae": diffusers.AutoencoderKL(
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            ),
            "text_encoder": transformers.CLIPTextModel(
                transformers.CLIPTextConfig(
                    vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23,
                    num_attention_heads=16, hidden_act="gelu",
                )
            ),
        }  # fmt: skip
    for name, part in parts.items():
        (folder / name).mkdir(parents=True)
        shapes = {key: tensor.shape for key, tensor in part.state_dict().items()}
        write_holes(folder / name / "model.safetensors", shapes)
        text = part.config.to_json_string() if name == "text_encoder" else part.to_json_string()
        (folder / name / "config.json").write_text(text)
    diffusers.DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    return {name: len(part.state_dict()) for name, part in parts.items()}


def test_zeroscope_s_folder(tmp_path):
    sizes = write_folder(tmp_path / "zeroscope", diffusers.UNet3DConditionModel)
    assert sizes["unet"] == 1480
    planned = plan(tmp_path / "zeroscope", name="zeroscope")
    assert sum(key.startswith("model.diffusion_model.") for key in planned.entries) == 1480
    assert planned.report.counts["dropped"] == (0, 0) and planned.report.absent == ("image_encoder",)
    profile = json.loads(planned.metadata["profile"])
    assert (profile["frames"], profile["height"], profile["width"]) == (24, 320, 576)
    unnamed = plan(tmp_path / "zeroscope").report
    assert unnamed.title == ORIGINS["modelscope"].title and "zeroscope-xl" in unnamed.note
    with pytest.raises(ValueError, match="is not 'videocrafter2'"):
        plan(tmp_path / "zeroscope", name="videocrafter2")


def test_stable_diffusion_s_folder(tmp_path):
    sizes = write_folder(
        tmp_path / "sd", diffusers.UNet2DConditionModel, block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True,
    )  # fmt: skip
    assert sizes["unet"] == 686
    planned = plan(tmp_path / "sd")
    counts = planned.report.counts
    assert counts["dropped"] == counts["padded"] == (0, 0) and not planned.trained
    new = {key for key in planned.entries if rule_of(key.removeprefix("model.diffusion_model."))}
    # Beside those the text tower's last layer, 12 tensors, and its projection, which no token depends on.
    assert counts["new"][0] == len(new) + 13
    assert counts["mapped"][0] == len(planned.entries) - len(new) - 13
    unet = {key for key in planned.entries if key.startswith("model.diffusion_model.")}
    assert len(unet - new) == 686
    config = json.loads(planned.metadata["config"])
    assert config["unet"] == json.loads(json.dumps(dataclasses.asdict(PAPER.unet)))


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "videocrafter2": ("eps", False, 0.7, "ddim_uniform", 1.0, 12.0, 0.0, 28.0, "fps", "off", "none"),
        "videocrafter1-i2v": ("eps", False, 0.7, "ddim_uniform", 1.0, 12.0, 0.0, 8.0, "fps", "grey", "none"),
        "dynamicrafter-256": (
            "eps", False, 1.0, "ddim_uniform", 1.0, 7.5, 0.0, 3.0, "stride", "grey", "first",
        ),
        "dynamicrafter-512": ("v", True, 0.7, "simple", 1.0, 7.5, 0.7, 24.0, "fps", "grey", "first"),
        "dynamicrafter-512-interp": ("v", True, 0.7, "simple", 1.0, 7.5, 0.7, 5.0, "fps", "grey", "ends"),
        "dynamicrafter-1024": ("v", True, 0.3, "simple", 1.0, 7.5, 0.7, 10.0, "fps", "grey", "first"),
        "modelscope": ("eps", False, 1.0, "ddim_uniform", 0.0, 9.0, 0.0, None, "fps", "off", "none"),
    }.items(),
)  # fmt: skip
def test_profiles_are_the_sources_own(name, expected):
    schedule, p = ORIGINS[name].schedule, ORIGINS[name].profile
    fps, unit = next(((n.value, n.unit) for n in p.inputs.numbers), (None, "fps"))
    assert p.start == FROM_NOISE
    assert (p.steps, p.sampler, p.guidance.kind) == (50, "ddim", "joint")
    assert expected == (
        schedule.prediction, schedule.zero_terminal_snr, schedule.x0_scale, p.sigma_schedule, p.eta,
        p.guidance.scale, p.guidance.rescale, fps, unit, p.inputs.null_image, p.inputs.concat,
    )  # fmt: skip
    for words in {"modelscope": "CC-BY-NC", "dynamicrafter": "Apache", "videocrafter": "research"}.items():
        assert not name.startswith(words[0]) or words[1] in ORIGINS[name].licence

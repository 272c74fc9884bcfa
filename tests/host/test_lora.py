"""LoRAs of training/lora.py through the stock LoraLoaderModelOnly, against the library's merged weights."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from host_tests import both, random_model
from host_tests import test_relatives as relatives
from safetensors import safe_open

CASES = [  # checkpoint, parts
    ("univid", "all"),
    ("univid", "temporal-attention"),
    ("modelscope", "all"),
    ("dynamicrafter", "cross-attention"),
]
paths, loaded, library = relatives.paths, relatives.loaded, relatives.library

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(scope="module")
def bases(pack, paths, tmp_path_factory):
    own = random_model.write(tmp_path_factory.mktemp("checkpoint"))
    return {"univid": own} | {kind: paths[kind] for kind, _ in CASES if kind != "univid"}


@pytest.fixture(scope="module")
def loras(bases):
    """Names of the files in the host's folder, trained by training/lora.py in a process of its own."""
    import folder_paths
    from host_tests.harness import FOLDER, ROOT

    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    files = {case: folder / f"{'-'.join(case)}.safetensors" for case in CASES}
    words = [str(word) for case in CASES for word in (bases[case[0]], case[1], files[case])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, FOLDER / "train_lora.py", *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {case: path.name for case, path in files.items()}


@pytest.fixture
def stock(caplog):
    """The stock node, and that it and what follows say nothing in the log."""
    import nodes

    with caplog.at_level(logging.WARNING):
        yield lambda model, name, strength: nodes.LoraLoaderModelOnly().load_lora_model_only(
            model, name, strength
        )[0]
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def model_of(bases, kind):
    from univid_pack.nodes.host.model import load_model

    return load_model(bases[kind], "fp32")


def merged(bases, case, loras, strength):
    """The library's model with the LoRA in its weights."""
    import folder_paths
    from univid_pack.univid.checkpoints import apply_lora, load

    model = load(bases[case[0]], dtype=torch.float32)
    apply_lora(model, folder_paths.get_full_path("loras", loras[case]), strength)
    return model


def clip(kind, loaded, library, model):
    """What the host makes with `model`: latents, or of a relative its frames."""
    if kind == "univid":
        return both.run(model)[0]
    latents = relatives.sample({kind: (model, *loaded[kind][1:])}, kind)
    return relatives.frames(library, kind, latents)


def library_clip(kind, model):
    if kind == "univid":
        return both.expected(model)
    image = {"image": relatives.picture()} if relatives.takes_picture(kind) else {}
    return relatives.expected({kind: model}, kind, **image)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_lora_trained_here_is_the_librarys_merged_model(bases, loras, loaded, library, stock, case):
    kind, name = case[0], loras[case]
    model = model_of(bases, kind)
    before = clip(kind, loaded, library, model)
    whole, back = (clip(kind, loaded, library, stock(model, name, strength)) for strength in (1.0, -0.5))
    theirs = library_clip(kind, merged(bases, case, loras, 1.0))
    assert both.difference(whole, theirs) < 1e-3
    assert both.difference(back, library_clip(kind, merged(bases, case, loras, -0.5))) < 1e-3
    assert both.difference(whole, before) > 0.03 and both.difference(back, theirs) > 0.03
    assert torch.equal(clip(kind, loaded, library, stock(model, name, 0.0)), before)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_every_tensor_of_the_file_finds_its_weight(bases, loras, stock, case):
    import folder_paths

    with safe_open(folder_paths.get_full_path("loras", loras[case]), "pt") as file:
        names, info = set(file.keys()), file.metadata()
    layers = {name.rsplit(".lora_", 1)[0] for name in names if not name.endswith(".alpha")}
    assert len(names) == 3 * len(layers) and info["parts"] == case[1] and info["steps"] == "4"
    patches = stock(model_of(bases, case[0]), loras[case], 1.0).patches
    assert patches.keys() == {f"{layer}.weight" for layer in layers}


def test_one_that_does_not_fit_is_told_apart(bases, loras, caplog):
    """The control of the others: what is not loaded is in the log, so the silence above means something."""
    import nodes

    with caplog.at_level(logging.WARNING):
        nodes.LoraLoaderModelOnly().load_lora_model_only(
            model_of(bases, "modelscope"), loras["univid", "all"], 1.0
        )
    assert any("lora key not loaded: diffusion_model." in r.getMessage() for r in caplog.records)


def test_partly_loaded_it_is_the_same(bases, loras, stock):
    """What does not fit into memory is patched at each call, kernels like matrices."""
    (positive, extras), _ = (c[0] for c in both.conditionings())

    def answer(**how):
        model = stock(model_of(bases, "univid"), loras["univid", "all"], 1.0)
        model.load(model.load_device, **how)
        late = [m for m in model.model.modules() if getattr(m, "weight_function", None)]
        conds = model.model.extra_conds(cross_attn=positive, noise=both.LATENT["samples"], **extras)
        inputs = {key: value.process_cond(both.FRAMES, area=None).cond for key, value in conds.items()}
        x, sigma = both.randn(both.FRAMES, 4, 8, 8), torch.full((both.FRAMES,), 2.0)
        out = model.model.apply_model(x, sigma, transformer_options={"cond_or_uncond": [0]}, **inputs)
        return len(late), out

    (none_late, whole), (all_late, partly) = answer(full_load=True), answer(lowvram_model_memory=1)
    assert none_late == 0 and all_late > 400
    assert both.difference(partly, whole) < 1e-5


def test_loras_of_others_fit_the_built_in_model(pack, caplog):
    """kohya's names: of diffusers for Stable Diffusion's layers, of our own for UniVid's."""
    import comfy.model_management
    import comfy.sd
    from univid_pack.nodes.host.model import load_model
    from univid_pack.univid.checkpoints import built_in_path

    names = {
        "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (
            "input_blocks.1.1.transformer_blocks.0.attn1.to_q", (48, 48),
        ),
        "mid_block_attentions_0_proj_in": ("middle_block.1.proj_in", (96, 96)),
        "up_blocks_3_resnets_1_conv1": ("output_blocks.7.0.in_layers.2", (48, 96, 3, 3)),
        "middle_block_1_temporal_attn1_to_v": ("middle_block.1.temporal.attn1.to_v", (96, 96)),
        "middle_block_0_in_temporal_conv": ("middle_block.0.in_temporal.conv", (96, 96, 9, 1)),
    }  # fmt: skip
    file, differences = {}, {}
    for seed, (name, (path, (rows, columns, *kernel))) in enumerate(names.items()):
        down, up = both.randn(2, columns, *kernel, seed=seed), both.randn(rows, 2, seed=seed + 10)
        key = f"lora_unet_{name}"
        file |= {f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(1.5)}
        file[f"{key}.lora_up.weight"] = up[..., None, None] if kernel else up
        differences[f"{path}.weight"] = 1.5 / 2 * (up @ down.flatten(1)).view(rows, columns, *kernel)
    model = load_model(built_in_path(), "fp32")
    before = {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        patched, _ = comfy.sd.load_lora_for_models(model, None, file, 1.0, 0)
        comfy.model_management.load_models_gpu([patched], force_full_load=True)
    assert not caplog.records
    after = patched.model.diffusion_model.state_dict()
    for name, weight in before.items():
        assert (after[name] - weight - differences.get(name, 0)).abs().max() < 1e-5, name
    patched.detach()


def test_the_one_that_ships_is_offered_and_moves_the_built_in_model_as_the_librarys(pack, stock):
    import folder_paths
    from univid_pack.nodes.host.prompts import encode_dual
    from univid_pack.nodes.host.sampling import sample
    from univid_pack.nodes.load import UniVidLoad
    from univid_pack.univid import generate
    from univid_pack.univid.checkpoints import apply_lora, load
    from univid_pack.univid.guidance import Joint
    from univid_pack.univid.pipeline import Sampling

    prompt, name = "a blue cross moves right on a white background", "univid-tiny-diagonal.safetensors"
    assert name in folder_paths.get_filename_list("loras")
    library = load(dtype=torch.float32)
    model, clip, vision, vae = UniVidLoad.execute("built-in", "fp32").result

    def frames(model):
        latent = {"samples": torch.zeros(12, 4, 8, 8)}
        out, _ = sample(
            model, *encode_dual(clip, vision, prompt, "", None, 0), latent, seed=7, steps=4,
            sampler_name="lcm", scheduler="sgm_uniform", guider=Joint(1.0),
        )  # fmt: skip
        return vae.decode(out["samples"])  # [t h w 3], 0..1

    def theirs():
        video = generate(library, prompt, seed=7, sampling=Sampling(steps=4))
        return (video[0].permute(1, 2, 3, 0) + 1) / 2

    with torch.inference_mode():
        without, moved = frames(model), frames(stock(model, name, 1.0))
        assert (without - theirs()).abs().max() < 0.05
        apply_lora(library, folder_paths.get_full_path("loras", name))
        assert (moved - theirs()).abs().max() < 0.05
    assert (moved - without).abs().max() > 0.3

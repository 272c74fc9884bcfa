"""The table of patches in PST Sampler's help page, each row with the host's nodes on the built-in model."""

import importlib.util
import re

import pytest
import torch
from host_tests.both import conditionings, difference, randn, run
from host_tests.harness import ROOT

pytestmark = pytest.mark.slow
PAGE = ROOT / "nodes/web/docs/UniVidPSTSampler.md"
LATENT = {"samples": torch.zeros(2, 4, 16, 16)}
# node -> module of comfy_extras, class where it has another name, values with which it has something to do
NODES = {
    "APG": ("apg", None, {"eta": 0.5, "norm_threshold": 5.0, "momentum": -0.5}),
    "CFGNorm": ("cfg", None, {"strength": 1.0}),
    "CFGOverride": ("custom_sampler", None, {"cfg": 1.0, "start_percent": 0.0, "end_percent": 1.0}),
    "CFGZeroStar": ("cfg", None, {}),
    "EpsilonScaling": ("eps", None, {"scaling_factor": 1.02}),
    "FreeU": ("freelunch", None, {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}),
    "FreeU_V2": ("freelunch", None, {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
    "HyperTile": ("hypertile", None, {"tile_size": 1, "swap_size": 2, "max_depth": 0, "scale_depth": False}),
    "LTXVContextWindows": ("context_windows", "LTXVContextWindowsNode", None),
    "LTXVSpatioTemporalGuidance": (
        "lt", None, {"scale": 1.0, "blocks": "1", "start_percent": 0.0, "end_percent": 1.0},
    ),
    "LatentApplyOperationCFG": ("latent", None, None),
    "Mahiro": ("mahiro", None, {}),
    "NAGuidance": ("nag", None, {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}),
    "PatchModelAddDownscale": (
        "model_downscale", None,
        {"block_number": 3, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 1.0,
         "downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic"},
    ),
    "PerturbedAttentionGuidance": ("pag", None, {"scale": 3.0}),
    "RescaleCFG": ("model_advanced", None, {"multiplier": 0.7}),
    "ScaleROPE": (
        "rope", None,
        {"scale_x": 1.0, "shift_x": 0.0, "scale_y": 1.0, "shift_y": 0.0, "scale_t": 1.0, "shift_t": 0.0},
    ),
    "SelfAttentionGuidance": ("sag", None, {"scale": 0.5, "blur_sigma": 2.0}),
    "SkipLayerGuidanceDiTSimple": (
        "slg", None, {"double_layers": "7", "single_layers": "7", "start_percent": 0.0, "end_percent": 1.0},
    ),
    "TCFG": ("tcfg", None, {}),
    "TomePatchModel": ("tomesd", None, {"ratio": 0.5}),
    "VideoLinearCFGGuidance": ("video_model", None, {"min_cfg": 1.0}),
    "VideoTriangleCFGGuidance": ("video_model", None, {"min_cfg": 1.0}),
    "WanContextWindowsManual": ("context_windows", "WanContextWindowsManualNode", None),
}  # fmt: skip


def table() -> dict[str, tuple[str, str]]:
    """What the page says of each node, in joint mode and in the two others."""
    part = PAGE.read_text(encoding="utf-8").split("## Patches of other nodes")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if "|" in line
    ]
    found = {}
    for names, said in rows[2:]:
        joint, others = said.split("; ")
        found |= {
            name.replace(" ", ""): (joint, joint if others == "the same" else others)
            for name in names.split(", ")
        }
    return found


def test_the_page_speaks_of_these_nodes():
    assert table().keys() == NODES.keys()


@pytest.fixture(scope="module")
def model(pack):
    from univid_pack.nodes.host.model import load_model
    from univid_pack.univid.checkpoints.native import built_in_path

    importlib.import_module("comfy_extras.nodes_post_processing")  # before nodes_latent: they need each other
    return load_model(built_in_path(), "fp32")


@pytest.fixture(scope="module")
def plain(model):
    with torch.inference_mode():
        return {mode: sampled(model, mode) for mode in ("joint", "separate", "nested")}


def sampled(model, mode):
    conds = conditionings((1, 1), text=randn(1, 77, 64, seed=1), image=randn(1, 65, 96, seed=3))
    negative = [[randn(1, 77, 64, seed=2), conds[1][0][1]]]
    return run(model, mode, (conds[0], negative), sampler="euler", latent=LATENT, steps=3)[0]


def patch(name, model):
    """The MODEL after a node of the host; skips where this host does not have it."""
    module, cls, values = NODES[name]
    module = f"comfy_extras.nodes_{module}"
    there = importlib.util.find_spec(module) and importlib.import_module(module)
    if not (made := getattr(there, cls or name, None)):
        pytest.skip(f"this host has no {name}")
    if values is None:
        values = (sharpened if name == "LatentApplyOperationCFG" else windowed)(made)
    if hasattr(made, "execute"):
        return made.execute(model, **values)[0]
    return getattr(made(), made.FUNCTION)(model, **values)[0]


def sharpened(_) -> dict:
    from comfy_extras.nodes_latent import LatentOperationSharpen

    node = LatentOperationSharpen
    made = node.execute if hasattr(node, "execute") else node().op
    return {"operation": made(sharpen_radius=1, sigma=1.0, alpha=0.5)[0]}


def windowed(made) -> dict:
    """A node of context windows with its own defaults; of a choice the first."""
    fields = [field for field in made.define_schema().inputs if field.id != "model"]
    return {f.id: f.options[0] if f.default is None else f.default for f in fields}


@pytest.mark.parametrize("mode", ["joint", "separate", "nested"])
@pytest.mark.parametrize("name", NODES)
def test_what_the_page_says_of_a_node(model, plain, caplog, name, mode):
    said = table()[name][0 if mode == "joint" else 1]
    with torch.inference_mode():
        other = patch(name, model)
        if said.startswith("refused"):
            with pytest.raises(ValueError, match="dim 0"):
                sampled(other, mode)
            return
        changed = difference(sampled(other, mode), plain[mode])
    warned = [r.getMessage() for r in caplog.records if "UniVid" in r.getMessage()]
    if said.startswith("act"):
        assert changed > 1e-4 and not warned
    else:
        assert said.startswith("named") and changed < 1e-4
        words = re.sub("[^a-z]", "", name.lower())
        assert warned and all(words[:8] in re.sub("[^a-z]", "", line.lower()) for line in warned)

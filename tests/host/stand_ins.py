"""Small random models under the names that the workflows for imported models open."""

import dataclasses
import importlib.util
import math

import torch
from safetensors.torch import save_file

FRAMES = 5  # what DynamiCrafter's small image projection has tokens for


def write_all(folder):
    """`folder`: of the models. What `import` makes of ZeroScope, and DynamiCrafter as its authors give it."""
    write_zeroscope(folder / "univid/zeroscope_v2_576w.safetensors")
    write_dynamicrafter(folder / "univid/dynamicrafter_512.ckpt")


def write_zeroscope(path):
    """An imported file with ZeroScope's profile."""
    from univid_pack.univid.checkpoints import native
    from univid_pack.univid.checkpoints.origins import ORIGINS
    from univid_pack.univid.presets import FAMILY, TINY

    unet = dataclasses.replace(
        FAMILY.unet, model_channels=16, channel_mult=(1, 2, 2, 2), num_res_blocks=1, head_channels=8,
        context_dim=TINY.text.embed_dim, norm_groups=8,
    )  # fmt: skip
    config = dataclasses.replace(TINY, unet=unet, vision=None, schedule=ORIGINS["zeroscope"].schedule)
    state = state_of(native, config, ("unet", "vae", "text_encoder"))
    save_file(state, path, native.header(config, ORIGINS["zeroscope"].profile, {}))


def write_dynamicrafter(path):
    """The original network at a small width in its authors' layout, with towers that fit it.

    Heads are 64 wide in every file of the family, so the image projection's are here too.
    """
    from univid_pack.univid.checkpoints import native
    from univid_pack.univid.presets import TINY

    golden = golden_weights()
    state = {}
    for key, shape in golden.family_keys("dynamicrafter_512/small").items():
        if key.endswith((".to_q.weight", ".to_kv.weight", ".to_out.weight")) and "image_proj" in key:
            shape = tuple({48: 64, 96: 128}.get(side, side) for side in shape)
        state[key] = golden.golden_weight(key, shape)
    towers = dataclasses.replace(
        TINY,
        vae=dataclasses.replace(TINY.vae, channels=32, channel_mult=(1, 1, 1, 1), norm_groups=32),
        vision=dataclasses.replace(TINY.vision, width=80, head_width=80),
    )
    state |= state_of(native, towers, ("vae", "text_encoder", "image_encoder"))
    state["scale_arr"] = torch.cat([torch.linspace(1, 0.7, 400), torch.full((1000,), 0.7)])
    torch.save({"state_dict": state}, path)


def state_of(native, config, parts):
    """Random weights of a model's parts; no matrix changes the size of what goes through it by much."""
    state, generator = {}, torch.Generator().manual_seed(0)
    for name, part in native.meta_modules(config).items():
        for key, weight in part.state_dict().items() if name in parts else ():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1:
                noise *= math.prod(weight.shape[1:]) ** -0.5
            elif key.endswith(".weight"):
                noise = 1 + 0.2 * noise
            else:
                noise *= 0.1
            state[native.PARTS[name].prefix + key] = noise
    return state


def golden_weights():
    """tests/golden_weights.py, which stands beside this package."""
    from host_tests.harness import ROOT

    spec = importlib.util.spec_from_file_location("golden_weights", ROOT / "tests/golden_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

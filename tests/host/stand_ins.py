"""Small random models under the names that the workflows for imported models open."""

import dataclasses
import importlib.util
import math
import shutil

import torch
from safetensors.torch import save_file

FRAMES = 5  # what DynamiCrafter's small image projection has tokens for


def write_all(folder):
    """`folder`: of the models. Three of them as their authors give them, and a control net that fits all."""
    write_videocrafter(folder / "univid/videocrafter2.ckpt")
    write_dynamicrafter(folder / "univid/dynamicrafter_512.ckpt")
    # The interpolation model has the same tensors: the workflow names it as the source.
    shutil.copyfile(folder / "univid/dynamicrafter_512.ckpt", folder / "univid/dynamicrafter_512_interp.ckpt")
    write_control_net(folder / "controlnet/control_v11p_sd21_canny.safetensors")


def write_videocrafter(path):
    """The original network at a small width in its authors' layout, with towers that fit it."""
    from univid_pack.univid.checkpoints import native

    golden = golden_weights()
    shapes = golden.family_keys("videocrafter2/small")
    state = {key: golden.golden_weight(key, shape) for key, shape in shapes.items()}
    state |= state_of(native, with_wide_vae(), ("vae", "text_encoder"))
    torch.save({"state_dict": state}, path)


def write_control_net(path, channel_mult=(1, 2, 2, 2), context_dim=64):
    """A control net of Stable Diffusion 2.1's layout, as narrow as those networks, with random weights."""
    import comfy.cldm.cldm
    import comfy.ops

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = comfy.cldm.cldm.ControlNet(
            image_size=32, in_channels=4, model_channels=64, hint_channels=3, num_res_blocks=[2] * 4,
            channel_mult=channel_mult, transformer_depth=[1] * 6 + [0] * 2, transformer_depth_middle=1,
            num_head_channels=64, context_dim=context_dim, use_spatial_transformer=True,
            use_linear_in_transformer=True, dtype=torch.float32, operations=comfy.ops.disable_weight_init,
        )  # fmt: skip
        state = {key: 0.05 * torch.randn(weight.shape) for key, weight in net.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)


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
    towers = with_wide_vae(vision=dataclasses.replace(TINY.vision, width=80, head_width=80))
    state |= state_of(native, towers, ("vae", "text_encoder", "image_encoder"))
    state["scale_arr"] = torch.cat([torch.linspace(1, 0.7, 400), torch.full((1000,), 0.7)])
    torch.save({"state_dict": state}, path)


def with_wide_vae(**changes):
    """The built-in model's config with a VAE whose norms have the groups of Stable Diffusion's."""
    from univid_pack.univid.presets import TINY

    vae = dataclasses.replace(TINY.vae, channels=32, channel_mult=(1, 1, 1, 1), norm_groups=32)
    return dataclasses.replace(TINY, vae=vae, **changes)


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

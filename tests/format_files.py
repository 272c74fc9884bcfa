"""Files as earlier versions of the checkpoint format wrote them, and the clips that they gave then.

`golden/headers.json` holds headers, `golden/format_clips.safetensors` what `generate` made of each file
before version 3 came. Weights are `golden_weight`'s, but for those of the built-in model.
"""

import json
from pathlib import Path

import torch
from golden_weights import FOLDER, golden_weight
from safetensors.torch import load_file, save_file

HEADERS = json.loads((FOLDER / "headers.json").read_text())
BUILT_IN = "2 built-in"  # its weights are those that ship


def write(name: str, folder: Path, shipped: Path) -> Path:
    """The file of a name in HEADERS, "<version> <kind>"; shipped: the built-in checkpoint."""
    from univid.checkpoints.native import PARTS, meta_modules, parse_header

    header = HEADERS[name]
    if name == BUILT_IN:
        state = load_file(shipped)
    else:
        parts = meta_modules(parse_header(header)[0])
        shapes = {
            PARTS[part].prefix + key: tuple(tensor.shape)
            for part, module in parts.items()
            for key, tensor in module.state_dict().items()
        }
        state = {key: golden_weight(key, shape) for key, shape in shapes.items()}
    path = folder / f"{name}.safetensors"
    save_file(state, path, header)
    return path


def clip(path: Path) -> torch.Tensor:
    """A clip `[1 3 t h w]` of a file, from a prompt, and a picture where the model takes one."""
    from univid.checkpoints import load
    from univid.pipeline import Clip, Sampling, generate

    model = load(path, dtype=torch.float32)
    takes_picture = model.config.unet.image_stream is not None or model.profile.inputs.concat != "none"
    picture = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image = picture if takes_picture else None
    return generate(
        model, "a red circle moves left", image, seed=3, clip=Clip(3, 16, 16), sampling=Sampling(steps=4)
    )


def clips() -> dict[str, torch.Tensor]:
    """What each file gave."""
    return load_file(FOLDER / "format_clips.safetensors")

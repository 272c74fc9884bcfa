"""Stored facts of the public relatives: key tables, and random weights as the original code had them.

The original networks are no package, and their code stays out of this repository. What they computed once
is in `golden/`: `family_keys.json.gz` (every key and shape of their checkpoint files) and
`family_outputs.safetensors` (what they put out at a reduced width). Weights and inputs are not stored: both
sides make them from names with `seeded`, which is exact on every machine, as it only scales integers.
"""

import gzip
import json
import math
import zlib
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"
SMALL = "/small"  # a table of this suffix is the reduced width of the golden outputs
CASES = {  # clips, frames, height, width, width of the text tokens
    "videocrafter2": (2, 5, 8, 16, 64),
    "videocrafter1_i2v_512": (1, 5, 8, 16, 64),
    "videocrafter1_i2v_512 faint": (1, 5, 8, 16, 64),
    "dynamicrafter_512": (2, 5, 8, 16, 64),
    "dynamicrafter_512 3 frames": (1, 3, 8, 16, 64),
    "dynamicrafter_256": (1, 5, 8, 16, 64),
    "modelscope": (1, 5, 8, 16, 1024),
}


def seeded(name: str, *shape: int) -> Tensor:
    """Uniform values of mean 0 and variance 1 that depend on the name alone, float32 `[*shape]`."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return (torch.rand(shape, generator=generator) - 0.5) * math.sqrt(12)


def golden_weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """The weight that the original network had under this key of its file; none is zero, every part matters.

    Matrices and kernels keep the size of their input, norms scale by about 1, biases and scalars are visible.
    """
    value = seeded(key, *shape)
    if len(shape) > 1 and not key.endswith("latents"):
        return value / math.sqrt(math.prod(shape[1:]))
    if len(shape) == 1 and key.endswith(".weight"):
        return 1 + 0.2 * value
    return 0.2 * value if len(shape) < 2 else value


def golden_state(case: str) -> dict[str, Tensor]:
    """The random checkpoint of one of `CASES` at the reduced width, under its file's keys.

    A faint one has activations so small that the epsilon of every norm shows.

    Raises:
        KeyError: no such case.
    """
    name, _, variant = case.partition(" ")
    state = {key: golden_weight(key, shape) for key, shape in family_keys(name + SMALL).items()}
    if variant != "faint":
        return state
    loud = {key for key, value in state.items() if value.dim() == 1 and key.endswith(".weight")}
    return {key: value if key in loud or ".out.2." in key else 0.03 * value for key, value in state.items()}


@cache
def family_tables() -> dict[str, dict]:
    """The stored tables as they are: a table adds to, or removes from, the one it names as `base`."""
    return json.loads(gzip.decompress((FOLDER / "family_keys.json.gz").read_bytes()))


def family_keys(name: str) -> dict[str, tuple[int, ...]]:
    """{key: shape} of a relative's checkpoint file: `"videocrafter2"`, reduced `"videocrafter2/small"`."""
    table = family_tables()[name]
    keys = family_keys(table["base"]) if "base" in table else {}
    keys = {key: shape for key, shape in keys.items() if key not in table.get("removed", ())}
    for prefix, shapes in table["keys"].items():
        keys |= {prefix + key: tuple(shape) for key, shape in shapes.items()}
    return keys


def golden_inputs(case: str) -> dict[str, Tensor]:
    """What the original network was given.

    x: `[b 4 t h w]`. timesteps: `[b]`. text: `[b 77 d]`. fps: frames a second or stride, `[b]`.
    concat: latents that join x's channels, `[b 4 t h w]`. clip: a picture's tokens before the resampler,
    `[b 9 80]`. What the model does not take is left out.
    """
    clips, frames, height, width, context = CASES[case]
    inputs = {
        "x": seeded("x", clips, 4, frames, height, width),
        "timesteps": torch.tensor([801, 10])[:clips],
        "text": seeded("text", clips, 77, context),
    }
    if case != "modelscope":
        inputs["fps"] = torch.tensor([24, 7])[:clips]
    if case.startswith("dynamicrafter"):
        inputs["concat"] = seeded("concat", clips, 4, frames, height, width)
    if case not in ("modelscope", "videocrafter2"):
        inputs["clip"] = seeded("clip", clips, 9, 80)
    return inputs


@cache
def golden_outputs() -> dict[str, Tensor]:
    """What the original code put out, by the names that `golden/README.md` explains."""
    return load_file(FOLDER / "family_outputs.safetensors")

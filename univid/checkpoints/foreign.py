"""Open files of other libraries: tensors of any container, and the parts that all sources share."""

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import BETAS, BetaConfig, ModelConfig, ScheduleConfig
from . import names, shapes, stream
from .origins import Origin

DEEPSPEED = "_forward_module."  # begins every name in deepspeed's files
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


class ModelCheckpoint:
    """Stands for a class that Stable Diffusion's own .ckpt files mention beside their weights."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


class Pickled:
    """A `.ckpt`, `.pth`, `.bin` or `.pt` of PyTorch, mapped into memory; `weights_only`: no code of it runs.

    Raises:
        ValueError: damaged, or holding more than weights.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            mapped = zipfile.is_zipfile(path)  # files from before PyTorch 1.6 are none
            with torch.serialization.safe_globals([ModelCheckpoint]):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}); check the name.") from error
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path} cannot be read as plain weights; download it again or take its .safetensors version."
            ) from error
        content = content if isinstance(content, dict) else {}
        content = content.get("state_dict", content.get("module", content))
        self._tensors = {
            str(name).removeprefix(DEEPSPEED): value
            for name, value in content.items()
            if isinstance(value, Tensor)
        }
        self.entries = {name: stream.Entry(t.dtype, tuple(t.shape)) for name, t in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """The tensor `name`, mapped."""
        return self._tensors[name]


Weights = stream.Reader | Pickled


@dataclass(frozen=True)
class Asked:
    """What a caller says about a source that its file may not.

    name: of ORIGINS. prediction: "eps" or "v". head_channels: the width of the U-Net's attention heads.
    """

    name: str | None
    prediction: str | None
    head_channels: int


@dataclass(frozen=True)
class Foreign:
    """An opened source.

    config: its own architecture. parts: weights and rename table of each part, by its name in UniVid.
    dropped: patterns of names that no part needs. note: what the tensors leave open, in words.
    """

    origin: Origin
    config: ModelConfig
    parts: Mapping[str, tuple[Weights, names.Table]]
    dropped: tuple[str, ...] = ()
    note: str = ""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of an error about what it holds."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{path} lacks {error}, or it is damaged; take another file.") from error
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def open_weights(path: Path) -> Weights:
    """A file of tensors, by its suffix: .safetensors, or a pickle read with `weights_only`."""
    return stream.Reader(path) if path.suffix.lower() == ".safetensors" else Pickled(path)


def shapes_below(weights: Weights, prefix: str) -> shapes.Shapes:
    """{name: shape} of the tensors behind a prefix, without it."""
    return {
        name.removeprefix(prefix): entry.shape
        for name, entry in weights.entries.items()
        if name.startswith(prefix)
    }


def ldm_towers(weights: Weights) -> tuple[dict, dict]:
    """VAE, text and vision tower beside the U-Net of a single file in LDM's layout: configs, then parts.

    What the file has not is None in the configs and absent from the parts.
    """
    tables = {"vae": names.LDM_VAE, "text_encoder": names.LDM_TEXT, "image_encoder": names.LDM_VISION}
    found = {part: shapes_below(weights, table.renames[""]) for part, table in tables.items()}
    configs = {
        "vae": shapes.ldm_vae(found["vae"]) if found["vae"] else None,
        "text": shapes.open_clip_text(found["text_encoder"]) if found["text_encoder"] else None,
        "vision": shapes.vision(found["image_encoder"], names.Table({})) if found["image_encoder"] else None,
    }
    return configs, {part: (weights, table) for part, table in tables.items() if found[part]}


def diffusers_towers(folder: Path) -> tuple[dict, dict]:
    """VAE and text tower beside unet/ in a diffusers folder, as `ldm_towers` gives them."""
    configs, parts = {"vae": None, "text": None, "vision": None}, {}
    if (folder / "vae").is_dir():
        weights = open_weights(weights_file(folder / "vae"))
        with naming(folder / "vae"):
            configs["vae"] = shapes.diffusers_vae(read_json(folder / "vae" / "config.json"))
            parts["vae"] = (weights, names.diffusers_vae(configs["vae"], weights.entries))
    if (folder / "text_encoder").is_dir():
        weights = open_weights(weights_file(folder / "text_encoder"))
        with naming(folder / "text_encoder"):
            text = shapes.transformers_text(read_json(folder / "text_encoder" / "config.json"))
            configs["text"] = text
            parts["text_encoder"] = (weights, names.transformers_text(text.layers, weights.entries))
    return configs, parts


def diffusers_schedule(folder: Path, trained: ScheduleConfig, prediction: str | None) -> ScheduleConfig:
    """The schedule of a diffusers folder; what its scheduler's config leaves out is as `trained`.

    Raises:
        ValueError: it does not say what the U-Net predicts, and `prediction` does not either.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path) if path.exists() else {}
    prediction = prediction or PREDICTIONS.get(config.get("prediction_type", ""))
    if prediction is None:
        raise ValueError(
            "has no scheduler/scheduler_config.json with a prediction_type; give prediction 'eps' or 'v'."
        )
    return replace(
        trained,
        prediction=prediction,
        betas=_betas(config, trained.betas),
        num_timesteps=config.get("num_train_timesteps", trained.num_timesteps),
        zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
    )


def _betas(config: dict, trained: BetaConfig) -> BetaConfig:
    """The betas of a scheduler's config of diffusers, whose names ours are."""
    name = config.get("beta_schedule", trained.name)
    if name not in BETAS:
        raise ValueError(f"has the noise schedule {name}, not {' or '.join(BETAS)}.")
    if name != "scaled_linear":
        return BetaConfig(name, None, None)
    return BetaConfig(name, config.get("beta_start", trained.start), config.get("beta_end", trained.end))


def weights_file(folder: Path) -> Path:
    """The plain weights in a part's folder: .safetensors before .bin, whole precision before `.fp16`.

    Raises:
        ValueError: none, or they are spread over several files.
    """
    for suffix in (".safetensors", ".bin"):
        if found := list(folder.glob(f"*{suffix}")):
            file = min(found, key=lambda file: len(file.name))
            if "-of-" in file.name:
                raise ValueError(f"{folder} holds weights in several files; save them as one file.")
            return file
    raise ValueError(f"{folder} holds no .safetensors or .bin file; give a whole diffusers folder.")


def read_json(path: Path) -> dict:
    """A config beside weights.

    Raises:
        ValueError: absent, or not a JSON object.
    """
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read; give a whole diffusers folder.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no JSON object; give a whole diffusers folder.")
    return config


def open_vision(path: Path) -> tuple[Weights, names.Table, shapes.VisionConfig]:
    """The vision tower of a CLIP file with open_clip's or transformers' names.

    Raises:
        ValueError: another kind of file.
    """
    weights = open_weights(path)
    found = shapes_below(weights, "")
    if "visual.proj" in found:
        table = names.OPEN_CLIP_VISION
    elif "visual_projection.weight" in found:
        table = names.transformers_vision(shapes.count(found, r"vision_model\.encoder\.layers\.(\d+)\..*"))
    else:
        raise ValueError(f"{path} holds no CLIP vision tower with its projection; take CLIP ViT-H-14.")
    with naming(path):
        return weights, table, shapes.vision(found, table)

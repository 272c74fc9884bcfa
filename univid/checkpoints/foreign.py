"""Open files of other libraries: tensors of any container, and the parts that all sources share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import BETAS, MOST_TIMESTEPS, BetaConfig, ModelConfig, ScheduleConfig
from ..files.folder import open_folder
from ..files.tensors import Weights
from ..files.weights import open_weights
from ..messages import shown
from . import names, shapes
from .origins import Origin
from .settings import Settings

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


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
    except ValueError as error:
        raise ValueError(f"{shown(path)} {error}") from error


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
        weights, config = open_part(folder / "vae")
        with naming(folder):
            configs["vae"] = shapes.diffusers_vae(config)
            parts["vae"] = (weights, names.diffusers_vae(configs["vae"], weights.entries))
    if (folder / "text_encoder").is_dir():
        weights, config = open_part(folder / "text_encoder")
        with naming(folder):
            text = shapes.transformers_text(config)
            configs["text"] = text
            parts["text_encoder"] = (weights, names.transformers_text(text.layers, weights.entries))
    return configs, parts


def diffusers_schedule(folder: Path, trained: ScheduleConfig, prediction: str | None) -> ScheduleConfig:
    """The schedule of a diffusers folder; what its scheduler's config leaves out is as `trained`.

    Raises:
        ValueError: it does not say what the U-Net predicts, and `prediction` does not either; or it says
            something that no schedule here can do.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    config = Settings(path if path.exists() else None)
    with naming(folder):
        said = config.choice("prediction_type", tuple(PREDICTIONS))
        if prediction is None and said is None:
            raise ValueError(
                "has no scheduler/scheduler_config.json with a prediction_type; give prediction 'eps' or 'v'."
            )
        if config.values.get("trained_betas") is not None:
            raise ValueError("has betas of its own (trained_betas), which cannot be imported; take another.")
        return replace(
            trained,
            prediction=prediction or PREDICTIONS[said],
            betas=_betas(config, trained.betas),
            num_timesteps=config.whole("num_train_timesteps", MOST_TIMESTEPS, trained.num_timesteps),
            zero_terminal_snr=config.flag("rescale_betas_zero_snr", False),
        )


def _betas(config: Settings, trained: BetaConfig) -> BetaConfig:
    """The betas of a scheduler's config of diffusers, whose names ours are."""
    name = config.choice("beta_schedule", BETAS, trained.name)
    if name != "scaled_linear":
        return BetaConfig(name, None, None)
    start = config.number("beta_start", 0, 1, trained.start)
    return BetaConfig(name, start, config.number("beta_end", 0, 1, trained.end))


def open_part(folder: Path) -> tuple[Weights, Settings]:
    """Weights and config of one part of a diffusers folder.

    Raises:
        ValueError: one of them is absent or damaged.
    """
    return open_folder(folder), Settings(folder / "config.json")


def open_vision(path: Path) -> tuple[Weights, names.Table, shapes.VisionConfig]:
    """The vision tower of a CLIP file with open_clip's or transformers' names.

    Raises:
        ValueError: another kind of file.
    """
    weights = open_weights(path)
    found = shapes_below(weights, "")
    with naming(path):
        if "visual.proj" in found:
            table = names.OPEN_CLIP_VISION
        elif "visual_projection.weight" in found:
            table = names.transformers_vision(
                shapes.count(found, r"vision_model\.encoder\.layers\.(\d+)\..*")
            )
        else:
            raise ValueError("holds no CLIP vision tower with its projection; take CLIP ViT-H-14.")
        return weights, table, shapes.vision(found, table)

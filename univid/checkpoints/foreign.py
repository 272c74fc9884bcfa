"""Open Stable Diffusion 2.x and CLIP files of other libraries: their weights, architecture and names."""

import dataclasses
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import (
    PAPER,
    SD21_SCHEDULE,
    ModelConfig,
    ScheduleConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
    VisionConfig,
)
from . import names, stream

HEAD_CHANNELS = 64  # of Stable Diffusion 2.x's U-Net and of its text tower; tensors do not show it
VISION_HEAD_WIDTH = 80  # of ViT-H-14
NORM_GROUPS = 32
TEXT_LAYERS = 24  # of ViT-H-14's text tower
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
OTHER_MODEL = "is not Stable Diffusion 2.x, which `inflate` needs"


class ModelCheckpoint:
    """Stands for a class that Stable Diffusion's own .ckpt files mention beside their weights."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


class Pickled:
    """A `.ckpt`, `.bin` or `.pt` of PyTorch, mapped into memory. With `weights_only` none of its code runs.

    Raises:
        ValueError: damaged, or holding more than weights.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with torch.serialization.safe_globals([ModelCheckpoint]):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}); check the name.") from error
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"{path} cannot be read as plain weights; download it again or take its .safetensors version."
            ) from error
        content = content.get("state_dict", content) if isinstance(content, dict) else {}
        self._tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        self.entries = {name: stream.Entry(t.dtype, tuple(t.shape)) for name, t in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


Weights = stream.Reader | Pickled


@dataclass(frozen=True)
class Foreign:
    """An opened source: its architecture; weights and rename table of each part, by its name in UniVid."""

    config: ModelConfig
    parts: Mapping[str, tuple[Weights, names.Table]]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of an error about what it holds."""
    try:
        yield
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} {OTHER_MODEL}; looked for {error}.") from error
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def open_weights(path: Path) -> Weights:
    """A file of tensors, by its suffix: .safetensors, or a pickle read with `weights_only`."""
    return stream.Reader(path) if path.suffix == ".safetensors" else Pickled(path)


def open_ldm(path: Path, prediction: str | None) -> Foreign:
    """Stable Diffusion 2.x as one file in LDM's layout.

    Raises:
        ValueError: another model, an unknown tensor, or no prediction type.
    """
    weights = open_weights(path)
    tables = {"unet": names.LDM_UNET, "vae": names.LDM_VAE, "text_encoder": names.LDM_TEXT}
    with naming(path):
        prefixes = tuple(table.renames[""] for table in tables.values())
        rest = [name for name in weights.entries if not name.startswith(prefixes)]
        if any(name.startswith("cond_stage_model.transformer.") for name in rest):
            raise ValueError(
                "is Stable Diffusion 1.x, whose text tower does not fit; take Stable Diffusion 2.1."
            )
        unknown = [name for name in rest if not any(re.fullmatch(p, name) for p in names.LDM_REST)]
        if unknown:
            raise ValueError(
                f"{OTHER_MODEL}: {len(unknown)} tensors are not known there, such as {unknown[0]}."
            )
        unet, vae, text = (
            {name.removeprefix(p): e.shape for name, e in weights.entries.items() if name.startswith(p)}
            for p in prefixes
        )
        if prediction is None:
            raise ValueError(
                "does not say what its U-Net predicts; give prediction 'v' for Stable Diffusion 2.1 "
                "(768 pixels) or 'eps' for 2.1-base (512 pixels)."
            )
        config = ModelConfig(
            unet=_ldm_unet(unet),
            vae=_ldm_vae(vae),
            text=_open_clip_text(text),
            vision=None,
            schedule=dataclasses.replace(SD21_SCHEDULE, prediction=prediction),
        )
    return Foreign(config, {part: (weights, table) for part, table in tables.items()})


def open_diffusers(folder: Path, prediction: str | None) -> Foreign:
    """Stable Diffusion 2.x as a diffusers folder: unet/, vae/, text_encoder/ and scheduler/.

    Raises:
        ValueError: a missing file, another model, or no prediction type.
    """
    weights = {part: open_weights(_weights_file(folder / part)) for part in ("unet", "vae", "text_encoder")}
    configs = {part: _read_json(folder / part / "config.json") for part in weights}
    scheduler = folder / "scheduler" / "scheduler_config.json"
    with naming(folder):
        text = _transformers_text(configs["text_encoder"])
        unet = _diffusers_unet(configs["unet"])
        vae = _diffusers_vae(configs["vae"])
        schedule = _diffusers_schedule(_read_json(scheduler) if scheduler.exists() else {}, prediction)
    tables = {
        "unet": names.diffusers_unet(unet),
        "vae": names.diffusers_vae(vae, weights["vae"].entries),
        "text_encoder": names.transformers_text(text.layers, weights["text_encoder"].entries),
    }
    config = ModelConfig(unet=unet, vae=vae, text=text, vision=None, schedule=schedule)
    return Foreign(config, {part: (weights[part], tables[part]) for part in weights})


def with_vision(foreign: Foreign, path: Path) -> Foreign:
    """Add the vision tower of a CLIP file with open_clip's or transformers' names.

    Raises:
        ValueError: another kind of file, or a tower whose projection does not end in the text context space.
    """
    weights = open_weights(path)
    shapes = {name: entry.shape for name, entry in weights.entries.items()}
    if "visual.proj" in shapes:
        table = names.OPEN_CLIP_VISION
    elif "visual_projection.weight" in shapes:
        layers = _count(shapes, r"vision_model\.encoder\.layers\.(\d+)\..*")
        table = names.transformers_vision(layers)
    else:
        raise ValueError(f"{path} holds no CLIP vision tower with its projection; take CLIP ViT-H-14.")
    with naming(path):
        vision = _vision(shapes, table)
        if vision.embed_dim != foreign.config.unet.context_dim:
            raise ValueError(
                f"projects to {vision.embed_dim} channels, the U-Net's context has "
                f"{foreign.config.unet.context_dim}; take the CLIP that belongs to the U-Net, ViT-H-14."
            )
    stream_config = dataclasses.replace(foreign.config.unet.image_stream, width=vision.width)
    unet = dataclasses.replace(foreign.config.unet, image_stream=stream_config)
    config = dataclasses.replace(foreign.config, unet=unet, vision=vision)
    return Foreign(config, {**foreign.parts, "image_encoder": (weights, table)})


Shapes = Mapping[str, tuple[int, ...]]


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that the pattern's group finds."""
    found = (re.fullmatch(pattern, name) for name in shapes)
    return max((int(match[1]) for match in found if match), default=-1) + 1


def _unet(width: int, mult: tuple[int, ...], **fields) -> UNetConfig:
    """The paper's U-Net on a trunk of these sizes."""
    levels = len(mult)
    temporal = PAPER.unet.temporal
    if levels > len(temporal.conv_kernels):
        raise ValueError(
            f"has {levels} levels, the pyramid {len(temporal.conv_kernels)}; take Stable Diffusion 2.1."
        )
    temporal = dataclasses.replace(
        temporal, conv_kernels=temporal.conv_kernels[:levels], segment_frames=temporal.segment_frames[:levels]
    )
    if fields["in_channels"] != 4:
        raise ValueError(
            f"takes {fields['in_channels']} channels, not 4: an inpainting or depth model; take 2.1 itself."
        )
    return UNetConfig(
        model_channels=width,
        channel_mult=mult,
        temporal=temporal,
        image_stream=PAPER.unet.image_stream,
        **fields,
    )


def _ldm_unet(shapes: Shapes) -> UNetConfig:
    width, in_channels = shapes["input_blocks.0.0.weight"][:2]
    downs = [0] + [i for i in range(len(shapes)) if f"input_blocks.{i}.0.op.weight" in shapes]
    firsts = [f"input_blocks.{down + 1}" for down in downs]
    return _unet(
        width,
        tuple(shapes[f"{first}.0.in_layers.2.weight"][0] // width for first in firsts),
        in_channels=in_channels,
        out_channels=shapes["out.2.weight"][0],
        num_res_blocks=downs[1] - 1,
        attention_levels=tuple(f"{first}.1.proj_in.weight" in shapes for first in firsts),
        head_channels=HEAD_CHANNELS,
        context_dim=shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        norm_groups=NORM_GROUPS,
    )


def _diffusers_unet(config: dict) -> UNetConfig:
    widths, heads = config["block_out_channels"], config["attention_head_dim"]  # heads, in spite of its name
    heads = [heads] * len(widths) if isinstance(heads, int) else heads
    sizes = {width // count for width, count in zip(widths, heads, strict=True)}
    if len(sizes) > 1:
        raise ValueError(f"{OTHER_MODEL}: its attention heads differ in size ({sorted(sizes)}).")
    return _unet(
        widths[0],
        tuple(width // widths[0] for width in widths),
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        num_res_blocks=config["layers_per_block"],
        attention_levels=tuple(kind.startswith("CrossAttn") for kind in config["down_block_types"]),
        head_channels=sizes.pop(),
        context_dim=config["cross_attention_dim"],
        norm_groups=config["norm_num_groups"],
    )


def _ldm_vae(shapes: Shapes) -> VAEConfig:
    levels = _count(shapes, r"encoder\.down\.(\d+)\..*")
    channels, in_channels = shapes["encoder.conv_in.weight"][:2]
    return VAEConfig(
        in_channels=in_channels,
        latent_channels=shapes["post_quant_conv.weight"][0],
        channels=channels,
        channel_mult=tuple(
            shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] // channels for i in range(levels)
        ),
        num_res_blocks=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\..*"),
        norm_groups=NORM_GROUPS,
        scale=PAPER.vae.scale,
    )


def _diffusers_vae(config: dict) -> VAEConfig:
    widths = config["block_out_channels"]
    return VAEConfig(
        in_channels=config["in_channels"],
        latent_channels=config["latent_channels"],
        channels=widths[0],
        channel_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=config["layers_per_block"],
        norm_groups=config["norm_num_groups"],
        scale=config.get("scaling_factor", PAPER.vae.scale),
    )


def _open_clip_text(shapes: Shapes) -> TextConfig:
    vocab_size, width = shapes["token_embedding.weight"]
    layers = _count(shapes, r"transformer\.resblocks\.(\d+)\..*")
    return TextConfig(
        width=width,
        heads=width // HEAD_CHANNELS,
        layers=TEXT_LAYERS
        if layers == TEXT_LAYERS - 1
        else layers,  # a file without the last, which gives no tokens
        context_length=shapes["positional_embedding"][0],
        vocab_size=vocab_size,
        embed_dim=shapes.get("text_projection", (width, width))[1],
    )


def _transformers_text(config: dict) -> TextConfig:
    if config["hidden_act"] != "gelu":
        raise ValueError(
            f"{OTHER_MODEL}: its text tower uses {config['hidden_act']}, as Stable Diffusion 1.x does."
        )
    return TextConfig(
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        layers=config["num_hidden_layers"] + 1,  # diffusers cuts the last layer off and uses what is left
        context_length=config["max_position_embeddings"],
        vocab_size=config["vocab_size"],
        embed_dim=config["hidden_size"],
    )


def _vision(shapes: Shapes, table: names.Table) -> VisionConfig:
    def shape(name: str) -> tuple[int, ...]:
        source = table.source(name)
        return shapes[source[:-2]][::-1] if source.endswith(".T") else shapes[source]

    width, _, patch, _ = shape("conv1.weight")
    if width % VISION_HEAD_WIDTH:
        raise ValueError(
            f"is {width} wide, not a multiple of {VISION_HEAD_WIDTH}; take CLIP ViT-H-14 (1280)."
        )
    side = round((shape("positional_embedding")[0] - 1) ** 0.5)
    layers = 0
    while table.source(f"transformer.resblocks.{layers}.ln_1.weight") in shapes:
        layers += 1
    return VisionConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        layers=layers,
        head_width=VISION_HEAD_WIDTH,
        mlp_ratio=shape("transformer.resblocks.0.mlp.c_fc.weight")[0] / width,
        embed_dim=shape("proj")[1],
    )


def _diffusers_schedule(config: dict, prediction: str | None) -> ScheduleConfig:
    prediction = prediction or PREDICTIONS.get(config.get("prediction_type", ""))
    if prediction is None:
        raise ValueError(
            "has no scheduler/scheduler_config.json with a prediction_type; give prediction 'eps' or 'v'."
        )
    if config.get("beta_schedule", "scaled_linear") != "scaled_linear":
        raise ValueError(f"{OTHER_MODEL}: its noise schedule is {config['beta_schedule']}.")
    return ScheduleConfig(
        prediction=prediction,
        beta_start=config.get("beta_start", SD21_SCHEDULE.beta_start),
        beta_end=config.get("beta_end", SD21_SCHEDULE.beta_end),
        num_timesteps=config.get("num_train_timesteps", SD21_SCHEDULE.num_timesteps),
        zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
    )


def _weights_file(folder: Path) -> Path:
    """The plain weights in a part's folder: .safetensors before .bin, whole precision before `.fp16`."""
    for suffix in (".safetensors", ".bin"):
        if found := list(folder.glob(f"*{suffix}")):
            return min(found, key=lambda file: len(file.name))
    raise ValueError(
        f"{folder} holds no .safetensors or .bin file; give a whole diffusers folder of Stable Diffusion 2.1."
    )


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read; give a whole diffusers folder of Stable Diffusion 2.1."
        ) from error

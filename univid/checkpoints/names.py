"""Rename tables between our names (those of LDM and open_clip) and other libraries' names, and their engine.

A table maps the beginning of our names to that of theirs, {"time_embed.0.": "time_embedding.linear_1."}, and
the longest one counts. A tuple of names is stacked along the first dimension; a name that ends in `.T` is
transposed, one that ends in `[0]` loses a first dimension of 1. A name of theirs that no target needs is an
error, unless the table's `dropped` has it.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import UNetConfig, VAEConfig
from ..messages import shown


@dataclass(frozen=True)
class Gated:
    """The tensor `name` times (tanh(gate) + 1): a learned scale of what the tensor enters linearly."""

    name: str
    gate: str


Source = str | tuple[str, ...] | Gated


@dataclass(frozen=True)
class Table:
    """renames: beginnings of our names to theirs. dropped: patterns of their names that we do not need."""

    renames: dict[str, Source]
    dropped: tuple[str, ...] = ()

    def source(self, target: str) -> Source:
        """Their name, or names, of our `target`."""
        for end in range(len(target), -1, -1):  # the longest beginning counts
            if (theirs := self.renames.get(target[:end])) is not None:
                return theirs + target[end:] if isinstance(theirs, str) else theirs
        return target


def resolve(table: Table, targets: Iterable[str], names: Collection[str]) -> dict[str, Source]:
    """Where each target comes from; a target that `names` do not serve is left out.

    Raises:
        ValueError: some names serve no target and are not dropped.
    """
    found = find(table, targets, names)
    unused(found.values(), names, table.dropped)
    return found


def find(table: Table, targets: Iterable[str], names: Collection[str]) -> dict[str, Source]:
    """Where each target comes from, of those that `names` serve."""
    found = {target: table.source(target) for target in targets}
    return {
        target: source for target, source in found.items() if all(name in names for name in parts(source))
    }


def unused(found: Iterable[Source], names: Collection[str], dropped: Collection[str]) -> list[str]:
    """The names that no found source needs.

    Raises:
        ValueError: one of them fits none of the patterns `dropped`; the text lists them.
    """
    used = {name for source in found for name in parts(source)}
    rest = sorted(name for name in names if name not in used)
    pattern = re.compile("|".join(f"(?:{p})" for p in dropped) or "(?!)")
    if unknown := [name for name in rest if not pattern.fullmatch(name)]:
        raise ValueError(f"has the unknown {listed(unknown)}; it is damaged or of another model.")
    return rest


def fetch(source: Source, shape: tuple[int, ...], read: Callable[[str], Tensor]) -> Tensor:
    """Read, stack, transpose or scale what `find` found; a linear layer may stand for a 1x1 convolution.

    Raises:
        ValueError: another shape.
    """
    if isinstance(source, tuple):
        tensor = torch.cat([read(name) for name in source])
    elif isinstance(source, Gated):
        tensor = read(source.name)
        tensor = (tensor.float() * (read(source.gate).float().tanh() + 1)).to(tensor.dtype)
    elif source.endswith(".T"):
        tensor = read(source.removesuffix(".T")).T
    elif source.endswith("[0]"):
        tensor = read(source.removesuffix("[0]")).squeeze(0)
    else:
        tensor = read(source)
    _check_shape(source, tensor.shape, shape)
    return tensor.reshape(shape)


def check(source: Source, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """What `fetch` will check, by the shapes of their tensors before one is read.

    Raises:
        ValueError: another shape.
    """
    first, *others = (shapes[name] for name in parts(source))
    if isinstance(source, Gated):
        if math.prod(others[0]) != 1:
            raise ValueError(f"has {source.gate} of shape {others[0]}, expected one number.")
    elif isinstance(source, tuple):
        if odd := [part for part in others if part[1:] != first[1:] or len(part) != len(first)]:
            raise ValueError(f"has {source[0]} of shape {first} beside one of shape {odd[0]}.")
        first = (sum(part[0] for part in (first, *others) if part), *first[1:])
    elif source.endswith(".T"):
        first = first[::-1]
    elif source.endswith("[0]") and first[:1] == (1,):
        first = first[1:]
    _check_shape(source, first, shape)


def parts(source: Source) -> tuple[str, ...]:
    """The names that a source is made of."""
    if isinstance(source, Gated):
        return source.name, source.gate
    return source if isinstance(source, tuple) else (source.removesuffix(".T").removesuffix("[0]"),)


def listed(names: Iterable[str]) -> str:
    """Tensor names for an error message: the first three and how many more."""
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    first = ", ".join(shown(name, 70) for name in names[:3])
    return f"tensor{'s' if len(names) > 1 else ''} {first}{more}"


def _check_shape(source: Source, found: Iterable[int], shape: tuple[int, ...]) -> None:
    if _squeezed(found) != _squeezed(shape):
        raise ValueError(f"has {parts(source)[0]} of shape {tuple(found)}, expected {shape}.")


def _squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    """The shape without trailing ones."""
    shape = tuple(shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


RES_BLOCK = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "skip_connection.": "conv_shortcut.",
}


def diffusers_unet(config: UNetConfig) -> Table:
    """UNet2DConditionModel; inside a transformer the names are the same."""
    renames: dict[str, Source] = {
        "time_embed.0.": "time_embedding.linear_1.",
        "time_embed.2.": "time_embedding.linear_2.",
        "input_blocks.0.0.": "conv_in.",
        "middle_block.1.": "mid_block.attentions.0.",
        "out.0.": "conv_norm_out.",
        "out.2.": "conv_out.",
    }

    def res_block(ours: str, theirs: str) -> None:
        renames.update({f"{ours}.{a}": f"{theirs}.{b}" for a, b in RES_BLOCK.items()})

    res_block("middle_block.0", "mid_block.resnets.0")
    res_block("middle_block.2", "mid_block.resnets.1")
    levels, per_level = len(config.channel_mult), config.num_res_blocks
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        for i in range(per_level):
            ours = f"input_blocks.{1 + level * (per_level + 1) + i}"
            res_block(f"{ours}.0", f"{down}.resnets.{i}")
            renames[f"{ours}.1."] = f"{down}.attentions.{i}."
        renames[f"input_blocks.{(level + 1) * (per_level + 1)}.0.op."] = f"{down}.downsamplers.0.conv."
        for i in range(per_level + 1):
            ours = f"output_blocks.{(levels - 1 - level) * (per_level + 1) + i}"
            res_block(f"{ours}.0", f"{up}.resnets.{i}")
            renames[f"{ours}.1."] = f"{up}.attentions.{i}."
        upsample = 2 if config.attention_levels[level] else 1
        renames[f"{ours}.{upsample}.conv."] = f"{up}.upsamplers.0.conv."
    return Table(renames)


def diffusers_vae(config: VAEConfig, names: Collection[str]) -> Table:
    """AutoencoderKL, with the names of its middle attention from before or after diffusers 0.17."""
    old = "encoder.mid_block.attentions.0.query.weight" in names
    attention = (
        ("query.", "key.", "value.", "proj_attn.") if old else ("to_q.", "to_k.", "to_v.", "to_out.0.")
    )
    renames: dict[str, Source] = {}
    levels = len(config.channel_mult)
    for side in ("encoder", "decoder"):
        middle = f"{side}.mid_block"
        renames[f"{side}.norm_out."] = f"{side}.conv_norm_out."
        renames[f"{side}.mid.block_1."] = f"{middle}.resnets.0."
        renames[f"{side}.mid.block_2."] = f"{middle}.resnets.1."
        renames[f"{side}.mid.attn_1.norm."] = f"{middle}.attentions.0.group_norm."
        for ours, theirs in zip(("q.", "k.", "v.", "proj_out."), attention, strict=True):
            renames[f"{side}.mid.attn_1.{ours}"] = f"{middle}.attentions.0.{theirs}"
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        renames[f"encoder.down.{level}.downsample.conv."] = f"{down}.downsamplers.0.conv."
        renames[f"decoder.up.{level}.upsample.conv."] = f"{up}.upsamplers.0.conv."
        for i in range(config.num_res_blocks + 1):
            for ours, theirs in ((f"encoder.down.{level}", down), (f"decoder.up.{level}", up)):
                renames[f"{ours}.block.{i}."] = f"{theirs}.resnets.{i}."
                renames[f"{ours}.block.{i}.nin_shortcut."] = f"{theirs}.resnets.{i}.conv_shortcut."
    return Table(renames)


def _transformers_layers(layers: int, prefix: str) -> dict[str, Source]:
    """The residual blocks of either CLIP tower; open_clip stacks the projections of query, key and value."""
    renames: dict[str, Source] = {}
    for i in range(layers):
        ours, theirs = f"transformer.resblocks.{i}.", f"{prefix}encoder.layers.{i}."
        renames |= {
            f"{ours}ln_1.": f"{theirs}layer_norm1.",
            f"{ours}ln_2.": f"{theirs}layer_norm2.",
            f"{ours}mlp.c_fc.": f"{theirs}mlp.fc1.",
            f"{ours}mlp.c_proj.": f"{theirs}mlp.fc2.",
            f"{ours}attn.out_proj.": f"{theirs}self_attn.out_proj.",
        }
        for kind in ("weight", "bias"):
            stacked = tuple(f"{theirs}self_attn.{which}_proj.{kind}" for which in "qkv")
            renames[f"{ours}attn.in_proj_{kind}"] = stacked
    return renames


def transformers_text(layers: int, names: Collection[str]) -> Table:
    """CLIPTextModel, whose names start with `text_model.` in versions before 5."""
    prefix = "text_model." if any(name.startswith("text_model.") for name in names) else ""
    renames = _transformers_layers(layers, prefix) | {
        "token_embedding.": f"{prefix}embeddings.token_embedding.",
        "positional_embedding": f"{prefix}embeddings.position_embedding.weight",
        "ln_final.": f"{prefix}final_layer_norm.",
        "text_projection": "text_projection.weight.T",
    }
    return Table(renames, (r".*embeddings\.position_ids",))


def transformers_vision(layers: int) -> Table:
    """CLIPVisionModelWithProjection, or the vision side of a whole CLIPModel."""
    renames = _transformers_layers(layers, "vision_model.") | {
        "class_embedding": "vision_model.embeddings.class_embedding",
        "positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "conv1.": "vision_model.embeddings.patch_embedding.",
        "ln_pre.": "vision_model.pre_layrnorm.",  # their spelling
        "ln_post.": "vision_model.post_layernorm.",
        "proj": "visual_projection.weight.T",
    }
    dropped = (r".*embeddings\.position_ids", r"text_model\..*", r"text_projection\..*", "logit_scale")
    return Table(renames, dropped)


# In LDM's single files the names are ours, behind a prefix a part.
LDM_UNET = Table({"": "model.diffusion_model."})
LDM_VAE = Table({"": "first_stage_model."}, (r"first_stage_model\.loss\..*",))
LDM_TEXT = Table({"": "cond_stage_model.model."}, (r"cond_stage_model\.model\.(logit_scale|attn_mask)",))
LDM_REST = (  # beside the parts: averaged weights of training, and the schedule as buffers
    r"model_ema\..*",
    r"(log_|sqrt_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|betas|scale_factor|logvar",
    r"posterior_.*|lvlb_weights",
)

# A whole CLIP of open_clip: the vision tower behind `visual.`, the text tower beside it.
CLIP_TEXT = (
    r"(transformer|ln_final|token_embedding)\..*|positional_embedding|text_projection|logit_scale|attn_mask"
)
OPEN_CLIP_VISION = Table({"": "visual."}, (CLIP_TEXT,))
LDM_VISION = Table({"": "embedder.model.visual."}, (rf"embedder\.model\.({CLIP_TEXT})",))

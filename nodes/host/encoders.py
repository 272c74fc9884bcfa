"""A checkpoint's encoders and VAE as the host's own CLIP, CLIP_VISION and VAE."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import comfy.clip_vision
import comfy.model_management as management
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor, nn

from ...univid.checkpoints.opened import Checkpoint, open_checkpoint
from ...univid.config import TextConfig, VAEConfig, VisionConfig
from ...univid.vae import Autoencoder

# The host's text tower has these fixed.
VOCABULARY = 49408
START, END, PAD = 49406, 49407, 0  # open_clip fills up with zeros, Stable Diffusion 1's tower with END
STAND_IN = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
            "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": []}  # fmt: skip


def load_encoders(path: str | Path, source: str | None = None) -> tuple:
    """CLIP, CLIP_VISION and VAE of a checkpoint.

    In the place of a part that it does not hold stands what makes the host stop the nodes behind it with a
    message. Raises ValueError as `open_checkpoint`.
    """
    weights = open_checkpoint(path, source)
    parts = (
        ("text_encoder", load_clip, "text tower", "CLIPLoader (type stable_diffusion)"),
        ("image_encoder", _load_vision, "vision tower", "CLIPVisionLoader (CLIP ViT-H-14)"),
        ("vae", load_vae, "VAE", "VAELoader (a VAE of Stable Diffusion 1.x or 2.x)"),
    )

    def load(part: str, build: Callable[[Checkpoint], object], what: str, loader: str):
        if weights.holds(part):
            return build(weights)
        return ExecutionBlocker(
            f"{weights.path.name} holds no {what}: connect one from {loader}, or disconnect this input."
        )

    return tuple(load(*part) for part in parts)


def load_clip(weights: Checkpoint, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The text tower as a CLIP that gives its penultimate layer through ln_final."""
    config = weights.config.text
    if (config.vocab_size, config.embed_dim) != (VOCABULARY, config.width):
        raise ValueError(
            f"{weights.path} has a text tower with vocab_size {config.vocab_size} and embed_dim "
            f"{config.embed_dim}, where the host needs {VOCABULARY} and {config.width}; take another file."
        )
    state = {f"clip_h.{name}": tensor for name, tensor in weights.read("text_encoder").items()}
    state = comfy.utils.clip_text_transformers_convert(state, "clip_h.", "clip_h.transformer.")
    clip = comfy.sd.CLIP(
        _clip_target(config),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=comfy.utils.calculate_parameters(state),
        state_dict=state,
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (_load_clip_patcher, (str(weights.path), weights.name))
    return clip


def _load_clip_patcher(path: str, source: str | None, disable_dynamic: bool = False) -> ModelPatcher:
    return load_clip(open_checkpoint(path, source), disable_dynamic).patcher


def _clip_target(config: TextConfig) -> comfy.supported_models_base.ClipTarget:
    """Tower and tokenizer of a config. The name "h" is that of Stable Diffusion 2's, so its LoRAs fit."""
    tower = partial(
        comfy.sd1_clip.SDClipModel,
        max_length=config.context_length,
        layer="hidden",
        layer_idx=config.layers - 2,
        textmodel_json_config={
            "num_hidden_layers": config.layers,
            "hidden_size": config.width,
            "num_attention_heads": config.heads,
            "intermediate_size": 4 * config.width,
            "hidden_act": "gelu",
            "max_position_embeddings": config.context_length,
            "eos_token_id": END,
        },
        special_tokens={"start": START, "end": END, "pad": PAD},
    )
    tokenizer = partial(
        comfy.sd1_clip.SDTokenizer,
        max_length=config.context_length,
        pad_with_end=False,
        embedding_size=config.width,
        embedding_key="clip_h",
    )
    return comfy.supported_models_base.ClipTarget(
        partial(comfy.sd1_clip.SD1Tokenizer, clip_name="h", tokenizer=tokenizer),
        partial(comfy.sd1_clip.SD1ClipModel, clip_name="h", clip_model=tower),
    )


def _load_vision(weights: Checkpoint) -> comfy.clip_vision.ClipVisionModel:
    config: VisionConfig = weights.config.vision
    arch = {
        "model_type": "clip_vision_model",
        "hidden_act": "gelu",
        "num_channels": 3,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "intermediate_size": int(config.width * config.mlp_ratio),
        "num_attention_heads": config.width // config.head_width,
        "num_hidden_layers": config.layers,
        "projection_dim": config.embed_dim,
    }
    with tempfile.TemporaryDirectory() as folder:  # the host takes its config from a file only
        file = Path(folder, "config.json")
        file.write_text(json.dumps(arch), "utf-8")
        vision = comfy.clip_vision.ClipVisionModel(str(file))
    state = comfy.clip_vision.convert_to_transformers(weights.read("image_encoder"), "")
    missing, unknown = vision.load_sd(state)
    assert not missing and not unknown, (missing, unknown)
    return vision


class HostAutoencoder(Autoencoder):
    """The VAE with the host's calling convention: images `[n 3 h w]` in -1..1, latents not scaled."""

    def encode(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images)).chunk(2, dim=1)[0]  # the posterior's mean

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))


def load_vae(weights: Checkpoint, disable_dynamic: bool = False) -> comfy.sd.VAE:
    """The host's VAE: around its own autoencoder where that can be built, else around ours.

    The host's normalises in groups of a fixed number, which a narrow VAE cannot have.
    """
    config: VAEConfig = weights.config.vae
    if config.factor != 8 or (config.in_channels, config.latent_channels) != (3, 4):
        raise ValueError(
            f"{weights.path} has a VAE with {config.latent_channels} latent channels, {config.factor} times "
            "smaller than the picture, where the host needs 4 and 8; take another file."
        )
    if config.norm_groups == 32:
        arch = STAND_IN | {
            "ch": config.channels,
            "ch_mult": list(config.channel_mult),
            "num_res_blocks": config.num_res_blocks,
        }
        vae = _host_vae(weights.read("vae"), arch)
        if disable_dynamic and vae.patcher.is_dynamic():  # whose weights have the file's type
            _patch(vae, vae.first_stage_model.to(vae.vae_dtype), ModelPatcher)
    else:
        vae = _host_vae({}, STAND_IN)
        ours: nn.Module = HostAutoencoder(config, operations=comfy.ops.disable_weight_init)
        ours.eval().to(vae.vae_dtype)
        management.archive_model_dtypes(ours)
        _patch(vae, ours, ModelPatcher if disable_dynamic else type(vae.patcher))
        ours.load_state_dict(weights.read("vae"), assign=vae.patcher.is_dynamic())
        vae.size = None
        vae.model_size()
    vae.patcher.cached_patcher_init = (_load_vae_patcher, (str(weights.path), weights.name))
    return vae


def _load_vae_patcher(path: str, source: str | None, disable_dynamic: bool = False) -> ModelPatcher:
    return load_vae(open_checkpoint(path, source), disable_dynamic).patcher


def _patch(vae: comfy.sd.VAE, model: nn.Module, Patcher: type[ModelPatcher]) -> None:
    """Put a network and its patcher into a VAE, on the devices that the host chose."""
    old = vae.patcher
    vae.first_stage_model = model
    vae.patcher = Patcher(model, load_device=old.load_device, offload_device=old.offload_device)


def _host_vae(state: dict[str, Tensor], arch: dict) -> comfy.sd.VAE:
    params = {"ddconfig": arch, "embed_dim": arch["z_channels"]}
    state = state or comfy.sd.AutoencoderKL(**params).state_dict()
    return comfy.sd.VAE(sd=state, config={"params": params})

"""What a foreign checkpoint is, read off its tensors' names and shapes."""

import dataclasses

import pytest

from univid.checkpoints import kinds, names, shapes
from univid.checkpoints.native import meta_modules
from univid.presets import PAPER

TRUNK = dataclasses.replace(PAPER.unet, temporal=shapes.NO_TIME, image_stream=None)


def test_full_size_tensors_give_the_paper_s_config():
    found = {
        part: {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        for part, module in meta_modules(dataclasses.replace(PAPER, unet=TRUNK)).items()
    }
    assert shapes.ldm_unet(found["unet"], head_channels=64) == TRUNK
    assert len(found["unet"]) == 686
    assert shapes.ldm_vae(found["vae"]) == PAPER.vae
    visual = {f"visual.{key}": shape for key, shape in found["image_encoder"].items()}
    assert shapes.vision(visual, names.OPEN_CLIP_VISION) == PAPER.vision
    text = found["text_encoder"]
    pruned = {key: shape for key, shape in text.items() if "resblocks.23." not in key}
    assert len(pruned) == len(text) - 12
    assert shapes.open_clip_text(text) == shapes.open_clip_text(pruned) == PAPER.text


UNET = "model.diffusion_model."
OTHERS = {
    "a LoRA": ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"],
    "a LoRA by": ["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"],
    "VideoCrafter1's text-to-video": [
        f"{UNET}init_attn.0.norm.weight",
        f"{UNET}input_blocks.1.2.transformer_blocks.0.attn1.relative_position_k.embeddings_table",
    ],
    "ToonCrafter": [
        f"{UNET}input_blocks.1.0.temopral_conv.conv1.0.weight",
        "first_stage_model.decoder.attn_refinement.0.to_q.weight",
    ],
    "Stable Video Diffusion": [
        f"{UNET}input_blocks.1.0.time_stack.in_layers.0.weight",
        "conditioner.embedders.0.open_clip.model.visual.proj",
    ],
    "Stable Video Diffusion's": ["down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.weight"],
    "AnimateDiff": ["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"],
    "Wan": ["model.diffusion_model.blocks.0.self_attn.q.weight", "patch_embedding.weight"],
    "Wan's": ["blocks.0.attn1.norm_q.weight", "condition_embedder.text_embedder.linear_1.weight"],
    "Stable Diffusion XL": [f"{UNET}label_emb.0.0.weight", "conditioner.embedders.0.transformer.a"],
    "Stable Diffusion 1.x": [
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
        f"{UNET}input_blocks.0.0.weight",
    ],
    "the U-Net of a diffusers folder": ["down_blocks.0.resnets.0.conv1.weight"],
    "a U-Net without": [f"{UNET}input_blocks.0.0.weight"],
    "a VAE": ["encoder.conv_in.weight", "decoder.conv_in.weight"],
    "a VAE in a folder": ["encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.conv_in.weight"],
    "a CLIP tower": ["visual.conv1.weight", "logit_scale"],
    "not a UniVid checkpoint": ["some.weight"],
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_models_are_named(what):
    with pytest.raises(ValueError) as caught:
        kinds.recognise(OTHERS[what])
    words = what.split(" by")[0].split(" in a")[0].removesuffix("'s")
    assert f"is {words}" in str(caught.value) and str(caught.value).endswith(".")


def test_sources_are_none_of_them():
    assert kinds.recognise([f"{UNET}input_blocks.1.0.temopral_conv.conv1.0.weight"]) == "videocrafter"
    assert kinds.recognise(["input_blocks.1.0.temopral_conv.conv1.0.weight"]) == "modelscope"
    sd = ["cond_stage_model.model.ln_final.bias", f"{UNET}input_blocks.0.0.weight", "model_ema.decay"]
    assert kinds.recognise(sd) == "stable_diffusion"

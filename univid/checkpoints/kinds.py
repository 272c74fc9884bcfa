"""What a foreign file seems to be, by the names of its tensors alone."""

import re
from collections.abc import Collection

# Models that look like a source and are none, then the sources by their importers' names, then what else
# people have. The first that fits any tensor's name counts, so the narrow ones come first.
OTHERS = {
    "a LoRA": r"lora_(unet|te).*|.*[._](lora|hada|lokr)[._](A|B|down|up|w1|w2|w1_a)\b.*|.*\.lora\..*",
    "VideoCrafter1's text-to-video model": r".*\.relative_position_[kv]\.embeddings_table",
    "ToonCrafter": r"first_stage_model\..*\.attn_refinement\..*",
    "Stable Video Diffusion": r".*\.(time_stack|temporal_transformer_blocks|temporal_res_block)\..*",
    "AnimateDiff": r".*\bmotion_modules\..*",
    "Wan": r".*\bblocks\.0\.(self_attn\.(q|norm_q)|attn1\.norm_q)\..*",
    "Stable Diffusion XL": r"conditioner\.embedders\..*|.*\blabel_emb\..*|add_embedding\..*",
    "Stable Diffusion 1.x": r"cond_stage_model\.transformer\..*",
}
SOURCES = {
    "videocrafter": r"model\.diffusion_model\.(.*\.temopral_conv\..*|init_attn\..*)",  # theirs: "temopral"
    "modelscope": r"(input_blocks|middle_block|output_blocks)\..*\.temopral_conv\..*",
    "stable_diffusion": r"cond_stage_model\.model\..*",
}
REST = {
    "the U-Net of a diffusers folder by itself": r"(down_blocks|mid_block|up_blocks)\..*\.resnets\..*",
    "a U-Net without Stable Diffusion 2's text tower": r"(model\.diffusion_model\.)?input_blocks\..*",
    "a VAE by itself": r"(first_stage_model\.)?(encoder|decoder)\..*",
    "a CLIP tower by itself": r"(visual|vision_model|text_model|transformer\.resblocks)\..*",
}
TAKE = "take Stable Diffusion 2.1, ModelScope, ZeroScope, VideoCrafter2, VideoCrafter1-I2V or DynamiCrafter"


def recognise(names: Collection[str]) -> str:
    """Which of SOURCES the names of a file's tensors belong to.

    Raises:
        ValueError: none; the text says what it seems to be, after the file's name.
    """
    if any(name.startswith("model.diffusion_model.image_projection.") for name in names):
        raise ValueError(
            "is a UniVid checkpoint that lost its header when another program saved it; take the original."
        )
    if (what := _first(OTHERS, names)) is not None:
        raise ValueError(f"is {what}, which cannot be imported; {TAKE}.")
    if (source := _first(SOURCES, names)) is not None:
        return source
    what = _first(REST, names)
    if what is None:
        raise ValueError(f"is not a UniVid checkpoint, nor of any kind known here; {TAKE}.")
    if "diffusers" in what:
        raise ValueError(f"is {what}, without its config; give the folder that holds unet/.")
    raise ValueError(f"is {what}, which cannot be imported; {TAKE}.")


def is_image_model(names: Collection[str]) -> bool:
    """Whether they are those of Stable Diffusion 2.x, which has no temporal layers."""
    return _first(OTHERS, names) is None and _first(SOURCES, names) == "stable_diffusion"


def _first(kinds: dict[str, str], names: Collection[str]) -> str | None:
    for kind, pattern in kinds.items():
        matches = re.compile(pattern).fullmatch
        if any(map(matches, names)):
            return kind
    return None

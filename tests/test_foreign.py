"""What a foreign checkpoint is, read off its tensors' shapes."""

from univid.checkpoints import foreign, names
from univid.checkpoints.native import meta_modules
from univid.config import PAPER


def test_full_size_tensors_give_the_paper_s_config():
    shapes = {
        part: {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        for part, module in meta_modules(PAPER).items()
    }
    assert foreign._ldm_unet(shapes["unet"]) == PAPER.unet
    assert foreign._ldm_vae(shapes["vae"]) == PAPER.vae
    visual = {f"visual.{key}": shape for key, shape in shapes["image_encoder"].items()}
    assert foreign._vision(visual, names.OPEN_CLIP_VISION) == PAPER.vision
    text = shapes["text_encoder"]
    pruned = {key: shape for key, shape in text.items() if "resblocks.23." not in key}
    assert len(pruned) == len(text) - 12
    assert foreign._open_clip_text(text) == foreign._open_clip_text(pruned) == PAPER.text

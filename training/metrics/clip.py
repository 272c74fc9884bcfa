"""OpenAI's CLIP ViT-B/32 in open_clip's module: pictures and words as 512 numbers each, not normalised."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .extract import Extractor
from .towers import open_clip_model
from .weights import WeightFile

MODEL = "ViT-B-32"
SIZE = 224


class Clip:
    """Frames uint8 `[t h w 3]` to `[t 512]`, and by `texts` prompts to `[b 512]`, float32."""

    def __init__(self, path: Path, device: torch.device):
        self.network, self.preprocess, self.tokenizer = open_clip_model(
            f"{MODEL}-quickgelu", path, device, archive=path.suffix == ".pt"
        )
        self.device = device

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        pictures = torch.stack([self.preprocess(Image.fromarray(frame)) for frame in frames])
        return self.network.encode_image(pictures.to(self.device)).float().cpu().numpy()

    @torch.inference_mode()
    def texts(self, prompts: list[str]) -> np.ndarray:
        tokens = [self.tokenizer(prompts[start : start + 64]) for start in range(0, len(prompts), 64)]
        return torch.cat([self.network.encode_text(part.to(self.device)) for part in tokens]).cpu().numpy()


CLIP = Extractor(
    f"CLIP {MODEL} openai",
    512,
    f"{SIZE} x {SIZE}, centre of the frame, bicubic as Pillow's; the embedding",
    Clip,
    (
        WeightFile(
            f"{MODEL}.pt",
            "https://openaipublic.azureedge.net/clip/models/"
            "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
            "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        ),
        WeightFile(
            f"{MODEL}.safetensors",
            "open_clip_model.safetensors of https://huggingface.co/timm/vit_base_patch32_clip_224.openai",
        ),
    ),
)

"""Two towers that compare words and pictures: open_clip's with a file of weights, or a checkpoint's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from univid.encoders import preprocess
from univid.files.hashes import noted_sha256
from univid.messages import shown
from univid.model import UniVid
from univid.video import from_uint8

CHUNK = 32  # pictures at a time
UNREADABLE = (  # what open_clip, PyTorch and safetensors raise of a file that is another one
    SafetensorError, UnpicklingError, RuntimeError, LookupError, EOFError, OSError, ValueError,
    AttributeError, TypeError,
)  # fmt: skip


@dataclass(frozen=True)
class Towers:
    """name: which they are, in words. words: prompts to `[n e]`. pictures: uint8 `[n h w 3]` to `[n e]`.

    Both give float32 of length 1 on the CPU, so that a product of two is their cosine.
    """

    name: str
    words: Callable[[Sequence[str]], Tensor]
    pictures: Callable[[np.ndarray], Tensor]


def own_towers(model: UniVid) -> Towers:
    """The towers that a checkpoint holds, as CLIP compares them.

    Raises:
        ValueError: it lacks one, or they do not belong together, or lack the layers behind their tokens.
    """
    text, image = model.text_encoder, model.image_encoder
    if text is None or image is None:
        raise ValueError(
            f"expected a checkpoint with both of CLIP's towers, got one without its "
            f"{'text' if text is None else 'picture'} tower; name one with --clip MODEL FILE."
        )
    width, other = text.config.embed_dim, image.config.embed_dim
    if width != other or not text.text_projection.any():  # imported ones may lack what tokens do not need
        raise ValueError(
            "expected a checkpoint whose two towers compare words and pictures, got "
            + (f"widths {width} and {other}" if width != other else "a text tower without its last layer")
            + "; name one with --clip MODEL FILE."
        )

    @torch.inference_mode()
    def words(prompts: Sequence[str]) -> Tensor:
        return _unit(text.pooled(text.tokenize(list(prompts))))

    @torch.inference_mode()
    def pictures(frames: np.ndarray) -> Tensor:
        return torch.cat([_unit(image.pooled(_pixels(part, image))) for part in _parts(frames)])

    return Towers("the checkpoint's own towers", words, pictures)


def open_clip_towers(name: str, weights: Path, device: torch.device | str = "cpu") -> Towers:
    """An open_clip model with weights from a file: .safetensors, or PyTorch's without code in it.

    Frames are resized and cropped as that model has it. OpenAI's weights belong to the names that end in
    "-quickgelu", which no weight tells.

    Raises:
        ValueError: an unknown model, or a file that does not hold its weights.
    """
    import open_clip

    if name not in open_clip.list_models():
        raise ValueError(f"expected an open_clip model such as ViT-B-32, got {shown(name)}; see its list.")
    if not weights.is_file():
        raise ValueError(f"expected the weights of {name} in a file, got {shown(weights)}, which is none.")
    try:
        model, _, resize = open_clip.create_model_and_transforms(name, str(weights), device=device)
    except UNREADABLE as error:
        raise ValueError(
            f"{shown(weights)} does not hold the weights of {name} ({shown(str(error), 80)}); give the file "
            "that belongs to it."
        ) from error
    model.eval()
    tokenizer = open_clip.get_tokenizer(name)

    @torch.inference_mode()
    def words(prompts: Sequence[str]) -> Tensor:
        return _unit(model.encode_text(tokenizer(list(prompts)).to(device)))

    @torch.inference_mode()
    def pictures(frames: np.ndarray) -> Tensor:
        from PIL import Image

        parts = (torch.stack([resize(Image.fromarray(f)) for f in part]) for part in _parts(frames))
        return torch.cat([_unit(model.encode_image(part.to(device))) for part in parts])

    return Towers(f"open_clip {name}, sha256 {noted_sha256(weights)}", words, pictures)


def _parts(frames: np.ndarray) -> list[np.ndarray]:
    return [frames[start : start + CHUNK] for start in range(0, len(frames), CHUNK)]


def _pixels(frames: np.ndarray, image) -> Tensor:
    pictures = from_uint8(frames)[0].transpose(0, 1).to(image.proj.device)  # [n 3 h w]
    return preprocess(pictures, image.config.image_size)


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.float(), dim=-1).cpu()

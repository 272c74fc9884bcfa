"""Two towers that compare words and pictures: open_clip's with a file of weights, or a checkpoint's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from univid.encoders import preprocess
from univid.files.hashes import noted_sha256
from univid.messages import shown
from univid.model import UniVid
from univid.video import from_uint8

CHUNK = 32  # pictures at a time
NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # but in OpenAI's archives
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


def open_clip_model(
    name: str, weights: Path, device: torch.device | str = "cpu", archive: bool = False
) -> tuple[nn.Module, Callable, Callable]:
    """An open_clip model in float32 with weights from a file, its transform of pictures and its tokenizer.

    archive: the file is known to be OpenAI's own, which is TorchScript; others are opened without code.

    Raises:
        ValueError: an unknown model, or a file that does not hold its weights.
    """
    import open_clip

    if name not in open_clip.list_models():
        raise ValueError(f"expected an open_clip model such as ViT-B-32, got {shown(name)}; see its list.")
    if not weights.is_file():
        raise ValueError(f"expected the weights of {name} in a file, got {shown(weights)}, which is none.")
    try:
        # OpenAI's networks have the quick GELU, which no weight tells.
        model, _, transform = open_clip.create_model_and_transforms(
            name, None if archive else str(weights), device=device, force_quick_gelu=archive
        )
        if archive:
            state = torch.jit.load(weights, "cpu").state_dict()
            model.load_state_dict({key: value for key, value in state.items() if key not in NO_WEIGHTS})
    except UNREADABLE as error:
        raise ValueError(
            f"{shown(weights)} does not hold the weights of {name} ({shown(str(error), 80)}); give the file "
            "that belongs to it."
        ) from error
    return model.eval(), transform, open_clip.get_tokenizer(name)


def _is_openais(name: str, weights: Path) -> bool:
    """Whether a file has the checksum that stands in the address of OpenAI's."""
    import open_clip

    address = (open_clip.get_pretrained_cfg(name, "openai") or {}).get("url") or ""
    return weights.is_file() and noted_sha256(weights) in address.split("/")


def open_clip_towers(name: str, weights: Path, device: torch.device | str = "cpu") -> Towers:
    """An open_clip model with weights from a file: .safetensors, PyTorch's without code, or OpenAI's own.

    Frames are resized and cropped as that model has it. OpenAI's weights in another file belong to the names
    that end in "-quickgelu".

    Raises:
        ValueError: an unknown model, or a file that does not hold its weights.
    """
    model, resize, tokenizer = open_clip_model(name, weights, device, _is_openais(name, weights))

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

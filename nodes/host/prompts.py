"""Prompts and pictures to conditionings, through the host's CLIP and CLIP_VISION."""

import comfy.model_management as management
import torch
from einops import rearrange, repeat
from torch import Tensor

from ...univid import travel
from ...univid.encoders import preprocess
from . import conditioning as keys

CHUNK = 16  # pictures that the vision tower sees at once


def encode_dual(clip, clip_vision, prompt: str, negative: str, image: Tensor | None, frames: int) -> tuple:
    """Positive and negative conditioning of a prompt and a picture, each of which may be per frame.

    The negative gets zeros in the shape of the picture's tokens, so one call of the model serves both.

    Args:
        clip_vision: may be None without a picture.
        image: `[b h w c]` in 0..1, or None; more than one picture = one a frame.
        frames: of the clip; 0 = not known, which prompt travel does not allow.

    Raises:
        ValueError: encoders that do not belong together, a picture without its encoder, a wrong number of
            pictures, or prompt travel that makes no sense.
    """
    if image is not None and clip_vision is None:
        raise ValueError(
            "an image needs a CLIP_VISION that encodes it, got none; connect that of Load UniVid, or "
            "CLIPVisionLoader with CLIP ViT-H-14."
        )
    if image is not None and frames and len(image) not in (1, frames):
        raise ValueError(
            f"expected 1 image, or one for each of {frames} frames, got {len(image)}; pick or repeat images."
        )
    shown = {keys.HAS_IMAGE: image is not None, keys.HAS_TEXT: _says(prompt)}
    hidden = {keys.HAS_IMAGE: False, keys.HAS_TEXT: _says(negative)}
    positive, negative = (_encode_prompt(clip, text, frames) for text in (prompt, negative))
    if clip_vision is not None:
        _check_pair(positive[0][0].shape[-1], clip_vision)
        if image is None:
            tokens = _no_image(clip_vision)
        else:
            tokens = encode_image(clip_vision, image)
            # What some models were trained to see where there is no picture.
            grey = torch.full((1, clip_vision.image_size, clip_vision.image_size, 3), 0.5)
            shown[keys.NULL] = hidden[keys.NULL] = encode_image(clip_vision, grey)
        shown[keys.IMAGE], hidden[keys.IMAGE] = tokens, torch.zeros_like(tokens)
    hidden[keys.WEIGHTS] = torch.tensor([[[1.0, 0.0]]])
    return keys.extended(positive, shown), keys.extended(negative, hidden)


def _says(text: str) -> bool:
    return any(key.prompt.strip() for key in travel.parse(text))


def encode_image(clip_vision, images: Tensor) -> Tensor:
    """Pictures `[b h w c]` in 0..1 to image tokens `[b m d]`, float32: the last layer before ln_post.

    Raises:
        ValueError: another kind of vision tower than CLIP's, or pictures without colours.
    """
    if clip_vision.model_type != "clip_vision_model":
        raise ValueError(
            f"expected a CLIP vision tower, got a {clip_vision.model_type}; connect the CLIP_VISION of Load "
            "UniVid, or CLIPVisionLoader with CLIP ViT-H-14."
        )
    management.load_model_gpu(clip_vision.patcher)
    tokens = []
    for chunk in images.split(CHUNK):
        management.throw_exception_if_processing_interrupted()
        pixels = preprocess(2 * rearrange(rgb(chunk), "b h w c -> b c h w") - 1, clip_vision.image_size)
        out = clip_vision.model(pixel_values=pixels.to(clip_vision.load_device))[0]
        tokens.append(out.to(management.intermediate_device(), torch.float32))
    return torch.cat(tokens)


def _encode_prompt(clip, text: str, frames: int) -> list:
    """A conditioning whose text tokens are `[1 n d]`, or `[t n d]` where the prompt travels."""
    path = travel.parse(text)
    encoded = {key.prompt: clip.encode_from_tokens_scheduled(clip.tokenize(key.prompt)) for key in path}
    if len(encoded) == 1:
        return encoded[path[0].prompt]
    frames = frames or travel.length(text) or 0
    if frames < 1:
        raise ValueError(
            f"prompt travel to frame {path[-1].frame} needs the clip's number of frames, got {frames}; "
            "connect the frames of Empty UniVid Latent."
        )
    return [
        [travel.blend([tokens for tokens, _ in entries], [key.frame for key in path], frames), entries[0][1]]
        for entries in zip(*(encoded[key.prompt] for key in path), strict=True)  # one a scheduled hook
    ]


def _check_pair(text_width: int, clip_vision) -> None:
    """CLIP's towers project into one space, which in UniVid's is as wide as the text tokens."""
    projected = clip_vision.config.get("projection_dim", text_width)
    if text_width != projected:
        raise ValueError(
            f"the CLIP's text tokens have width {text_width}, but the CLIP_VISION belongs to text of width "
            f"{projected}; connect a pair, such as both outputs of Load UniVid."
        )


def _no_image(clip_vision) -> Tensor:
    side = clip_vision.image_size // clip_vision.config["patch_size"]
    return torch.zeros(1, 1 + side**2, clip_vision.config["hidden_size"])


def rgb(images: Tensor) -> Tensor:
    """Three channels of one, three or four; what is transparent becomes black."""
    channels = images.shape[-1]
    if channels == 1:
        return repeat(images, "b h w 1 -> b h w 3")
    if channels == 4:
        return images[..., :3] * images[..., 3:]
    if channels != 3:
        raise ValueError(f"expected images with 1, 3 or 4 channels, got {channels}; convert them to RGB.")
    return images

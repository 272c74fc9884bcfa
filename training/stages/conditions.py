"""What a stage trains, and under which conditions it shows a sample: the modes of text and picture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from training.rng import generator
from univid.encoders import ImageEncoder
from univid.unet import UNet

# (text given, modality weights (lambda_t, lambda_v))
Mode = tuple[bool, tuple[float, float]]
NONE, TEXT, BOTH = (False, (1.0, 0.0)), (True, (1.0, 0.0)), (True, (1.0, 1.0))
IMAGE, IMAGE_ONLY = (False, (1.0, 1.0)), (False, (0.0, 1.0))
# By the names that options give them. paper: I2V; we: half of those samples with the empty text and half
# without the text stream, so that both ends of the steering are trained.
NAMED: dict[str, tuple[Mode, ...]] = {
    "none": (NONE,),
    "text": (TEXT,),
    "image": (IMAGE, IMAGE_ONLY),
    "both": (BOTH,),
}


@dataclass(frozen=True)
class Stage:
    """One of the paper's three stages (IV-A), one of the cascade, or finetuning.

    trains: whether a parameter of this name is trained. modes: conditions and how often they are shown.
    begin: what is done once to a network that comes from an earlier stage. takes: kinds of joined latents, of
    which the network needs one; () = any. upscales: whether biased noise leads from a sample's poor copy, in
    a network without PSTAttn.
    """

    trains: Callable[[str], bool]
    modes: Mapping[Mode, float]
    begin: Callable[[UNet, ImageEncoder], None] = lambda unet, vision: None
    takes: tuple[str, ...] = ()
    upscales: bool = False


def is_image_stream(name: str) -> bool:
    """Whether a parameter belongs to the image projection, or to K_v and V_v."""
    return name.startswith("image_projection.") or ".to_k_image." in name or ".to_v_image." in name


def shares_of(named: Mapping[str, float]) -> dict[Mode, float]:
    """Shares by mode from shares by name: {"none": 0.1, "text": 0.9}; what is left out is not shown.

    Raises:
        ValueError: an unknown name, a negative share, or shares that do not add up to 1.
    """
    if unknown := sorted(named.keys() - NAMED.keys()):
        raise ValueError(f"modes are {', '.join(NAMED)}, got {', '.join(unknown)}.")
    if any(share < 0 for share in named.values()) or abs(sum(named.values()) - 1) > 1e-6:
        raise ValueError(f"the shares of modes must be at least 0 and add up to 1, got {dict(named)}.")
    return {
        mode: share / len(NAMED[name]) for name, share in named.items() if share > 0 for mode in NAMED[name]
    }


def draw_modes(shares: Mapping[Mode, float], size: int, seed: int, stream: str, step: int) -> list[Mode]:
    """The modes of all `size` samples of a step: every process knows those of the others too."""
    modes = list(shares)
    chances = torch.tensor([shares[mode] for mode in modes])
    drawn = torch.multinomial(chances, size, replacement=True, generator=generator(seed, stream, step))
    return [modes[index] for index in drawn.tolist()]

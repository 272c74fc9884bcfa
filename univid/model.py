"""A whole model: the parts that a checkpoint holds, and how it wants to be used."""

from dataclasses import dataclass, field

import torch

from .config import ModelConfig, SamplingProfile
from .diffusion import Denoiser, NoiseSchedule
from .encoders import ImageEncoder, TextEncoder
from .unet import UNet
from .vae import Autoencoder


@dataclass
class UniVid:
    """What `load` gives and `generate` takes. A part that is not there is None.

    info: words about the origin, as the checkpoint's metadata have them: source, training_step, licence ...
    """

    config: ModelConfig
    profile: SamplingProfile
    unet: UNet | None
    vae: Autoencoder | None = None
    text_encoder: TextEncoder | None = None
    image_encoder: ImageEncoder | None = None
    info: dict[str, str] = field(default_factory=dict)

    def denoiser(self, dtype: torch.dtype = torch.float32) -> Denoiser:
        """The U-Net as (x, sigma, cond) -> x0, on the noise levels that sampling goes through.

        dtype: of its weights.

        Raises:
            ValueError: a profile that starts where the schedule has no timestep.
        """
        config = self.config.schedule
        schedule = NoiseSchedule(config).starting(self.profile.start)
        return Denoiser(self.unet, schedule, config.prediction, dtype)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "UniVid":
        """Move every part, in place."""
        for part in (self.vae, self.text_encoder, self.image_encoder):
            if part is not None:
                part.to(device=device, dtype=dtype)
        if self.unet is not None:
            there = torch.device(device or next(self.unet.parameters()).device)
            # On an accelerator as the network's videos are: else each convolution copies its weights first.
            layout = torch.preserve_format if there.type == "cpu" else torch.channels_last
            self.unet.to(device=there, dtype=dtype, memory_format=layout)
            self.unet.dtype = dtype or self.unet.dtype
        return self

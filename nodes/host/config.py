"""UniVid's config in the words in which the host asks a model about itself."""

import comfy.latent_formats
import comfy.supported_models_base

from ...univid.config import ModelConfig, SamplingProfile
from ...univid.diffusion import NoiseSchedule
from .schedule import sampling_settings


class Config(comfy.supported_models_base.BASE):
    """What the host asks a model about itself. The unet_config has SD's words, so SD's LoRAs map onto it."""

    latent_format = comfy.latent_formats.SD15

    def __init__(self, config: ModelConfig, profile: SamplingProfile):
        unet, schedule = config.unet, config.schedule
        depths = [int(on) for on in unet.attention_levels]
        super().__init__(
            {
                "config": unet,
                "schedule": NoiseSchedule(schedule).starting(profile.start),
                "in_channels": unet.in_channels,
                "out_channels": unet.out_channels,
                "model_channels": unet.model_channels,
                "channel_mult": list(unet.channel_mult),
                "num_res_blocks": [unet.num_res_blocks] * len(depths),
                "transformer_depth": [d for d in depths for _ in range(unet.num_res_blocks)],
                "transformer_depth_output": [d for d in depths for _ in range(unet.num_res_blocks + 1)],
                "transformer_depth_middle": 1,
                "context_dim": unet.context_dim,
                "use_linear_in_transformer": True,
                "adm_in_channels": None,
            }
        )
        self.unet_config["num_head_channels"] = unet.head_channels
        self.sampling_settings = sampling_settings(schedule)
        if config.vae is not None:
            self.latent_format.scale_factor = config.vae.scale

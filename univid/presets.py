"""The architectures by name, and how each wants to be sampled."""

import dataclasses

from .config import (
    BetaConfig,
    GuidanceProfile,
    ImageStreamConfig,
    InputProfile,
    ModelConfig,
    PositionConfig,
    SamplingProfile,
    ScheduleConfig,
    StartProfile,
    TemporalConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
    VisionConfig,
)

SD21_SCHEDULE = ScheduleConfig(
    prediction="eps", betas=BetaConfig("scaled_linear", start=0.00085, end=0.012), num_timesteps=1000,
    zero_terminal_snr=False, x0_scale=1.0,
)  # fmt: skip

PAPER = ModelConfig(
    unet=UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=320,
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        attention_levels=(True, True, True, False),
        head_channels=64,
        context_dim=1024,
        norm_groups=32,
        numbers=(),
        temporal=TemporalConfig(
            kind="univid",
            conv_kernels=(3, 5, 7, 9),
            segment_frames=(8, 4, 2, 1),
            attention=True,
            input_heads=None,
            position=None,
        ),
        image_stream=ImageStreamConfig(width=1280, resampler=None),
    ),
    vae=VAEConfig(
        in_channels=3,
        latent_channels=4,
        channels=128,
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        norm_groups=32,
        scale=0.18215,
    ),
    text=TextConfig(width=1024, heads=16, layers=24, context_length=77, vocab_size=49408, embed_dim=1024),
    vision=VisionConfig(
        image_size=224, patch_size=14, width=1280, layers=32, head_width=80, mlp_ratio=4.0, embed_dim=1024
    ),
    schedule=SD21_SCHEDULE,
)

# ModelScope's text-to-video network as ZeroScope v2 has it: the relatives share it (design section 5). Its
# trunk, VAE and text tower are the paper's.
FAMILY = dataclasses.replace(
    PAPER,
    unet=dataclasses.replace(
        PAPER.unet,
        temporal=TemporalConfig(
            kind="family", conv_kernels=(3, 3, 3, 3), segment_frames=(), attention=True,
            input_heads=8, position=None,
        ),
        image_stream=None,
    ),
    vision=None,
)  # fmt: skip

# The built-in model: the paper's four levels, k_f and r_f at a width that trains on two CPU cores.
# paper: eps prediction; here: v with zero terminal SNR, because v weighs the noisy timesteps, where a
# clip's content is decided, and a small network then learns that content in far fewer samples.
TINY = ModelConfig(
    unet=UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=48,
        channel_mult=(1, 2, 2, 2),
        num_res_blocks=1,
        attention_levels=(True, True, True, False),
        head_channels=24,
        context_dim=64,
        norm_groups=16,
        numbers=(),
        temporal=TemporalConfig(
            kind="univid",
            conv_kernels=(3, 5, 7, 9),
            segment_frames=(8, 4, 2, 1),
            attention=True,
            input_heads=None,
            position=PositionConfig(scale=120.0, period=10000.0),
        ),
        image_stream=ImageStreamConfig(width=96, resampler=None),
    ),
    vae=VAEConfig(
        in_channels=3,
        latent_channels=4,
        channels=16,
        channel_mult=(1, 2, 4, 8),
        num_res_blocks=1,
        norm_groups=8,
        scale=0.18215,
    ),
    text=TextConfig(width=64, heads=2, layers=3, context_length=77, vocab_size=49408, embed_dim=64),
    vision=VisionConfig(
        image_size=64, patch_size=8, width=96, layers=4, head_width=32, mlp_ratio=4.0, embed_dim=64
    ),
    schedule=ScheduleConfig(
        prediction="v",
        betas=SD21_SCHEDULE.betas,
        num_timesteps=1000,
        zero_terminal_snr=True,
        x0_scale=1.0,
    ),  # fmt: skip
)

PRESETS = {"paper": PAPER, "family": FAMILY, "tiny": TINY}

NO_INPUTS = InputProfile(numbers=(), null_image="off", concat="none")
FROM_NOISE = StartProfile(timestep=None, denoise=1.0, biased_noise=None)
# The built-in model knows sigmas up to 4,519, and the next of ten steps is at 18: over that first step a
# sampler of second order, or a schedule that spends steps between the two (karras, exponential), ends in
# another picture (means of 229, 100 and 23 where 19 is right). From timestep 935, sigma 31, ten steps of all
# are within 4 levels and six of karras within 9; from 900 or 960 those six may end elsewhere.
#
# What it gets wrong in the noisiest steps stays in the clip under a sampler that carries it on: of
# neighbouring frames 78 % are steady after ten steps of dpmpp_2m under guidance of 3. lcm takes fresh noise
# in every step and so guesses anew: 94 % after twelve of them without guidance. More steps are steadier still
# with a picture alone and drift away from its place: 90 of 100 clips pass it in twelve, 17 of 24 in sixteen.
TINY_START = dataclasses.replace(FROM_NOISE, timestep=935)
PROFILES = {
    "paper": SamplingProfile(
        frames=24, height=320, width=576, fps=8.0, steps=50, sampler="ddim", sigma_schedule="ddim_uniform",
        eta=0.0, inputs=NO_INPUTS, start=FROM_NOISE,
        guidance=GuidanceProfile("joint", scale=7.5, text=7.5, image=2.0, rescale=0.0),
    ),
    "family": SamplingProfile(
        frames=24, height=320, width=576, fps=8.0, steps=50, sampler="ddim", sigma_schedule="ddim_uniform",
        eta=0.0, inputs=NO_INPUTS, start=FROM_NOISE,
        guidance=GuidanceProfile("joint", scale=9.0, text=9.0, image=1.0, rescale=0.0),
    ),
    "tiny": SamplingProfile(
        frames=12, height=64, width=64, fps=8.0, steps=12, sampler="lcm", sigma_schedule="sgm_uniform",
        eta=0.0, inputs=NO_INPUTS, start=TINY_START,
        guidance=GuidanceProfile("joint", scale=1.0, text=3.0, image=2.0, rescale=0.0),
    ),
}  # fmt: skip

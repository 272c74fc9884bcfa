"""UniVid's U-Net as a MODEL of the host: built from the host's operations, loaded and moved by its patcher.

In the host a clip is a batch of frames `[t 4 h w]`, and the batch of one call holds all branches of guidance
one after another, so the frames of a call are `x.shape[0] // len(cond_or_uncond)`, also in context windows.
"""

import logging
import math
from pathlib import Path

import comfy.conds
import comfy.model_base
import comfy.model_management as management
import comfy.model_patcher
import comfy.patcher_extension
import torch
from einops import rearrange
from torch import Tensor

from ...univid import curves, memory
from ...univid.asked import tile_cells
from ...univid.checkpoints.opened import Checkpoint, open_checkpoint
from ...univid.conditioning import Conditioning, streams_on, with_null_image
from ...univid.config import ModelConfig, SamplingProfile, UNetConfig
from ...univid.diffusion import NoiseSchedule
from ...univid.dtypes import dtype_of
from ...univid.layers import centers_by_level, even_places
from ...univid.tiles import Tile, blended
from ...univid.unet import UNet
from ...univid.vae import Autoencoder
from . import conditioning as keys
from .config import Config
from .control import check_control, check_whole
from .decode import FACTOR
from .patches import HostAttention, HostHook, Notices, check_windows
from .preview import draw_with
from .relatives import shared_conds
from .schedule import own_sampling
from .steered import acting, steering_of

REFERENCES = "univid_reference_frames"  # transformer option: {f: number of reference frames, 0 = off}
TILE = "univid_tile"  # transformer option: the side of the tiles that frames are seen in, in latent cells
MODEL_TYPES = {"eps": comfy.model_base.ModelType.EPS, "v": comfy.model_base.ModelType.V_PREDICTION}

logger = logging.getLogger(__name__)


class HostUNet(UNet):
    """The U-Net with the host's calling convention."""

    def __init__(
        self, *, config: UNetConfig, schedule: NoiseSchedule, dtype=None, device=None, operations=None, **_sd
    ):
        attention = HostAttention()
        super().__init__(config, operations=operations, attention=attention, device=device, dtype=dtype)
        self.attention, self.notices = attention, Notices()
        self.in_channels = config.in_channels  # what the host and other packs ask a network
        self.schedule = schedule

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, control=None, transformer_options=None, **extra
    ):
        options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options
        )
        return comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self._run_clips, self, wrappers
        ).execute(x, timesteps, context, control, options, **extra)

    def _run_clips(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: dict | None,
        transformer_options: dict,
        univid_image: Tensor,
        univid_weights: Tensor,
        univid_maps: Tensor,
        univid_told: tuple[keys.Told, ...],
        univid_places: Tensor,
        univid_null_image: Tensor | None = None,
        univid_concat: Tensor | None = None,
        **more: Tensor,
    ) -> Tensor:
        """x, concat `[(b t) c h w]`; context, image, null image `[(b t) n d]`; weights `[(b t) S 1+p]`; maps
        `[(b t) 1+p h w]`; places, and `more`, the numbers, `[(b t) 1]`.
        """
        clips = len(transformer_options["cond_or_uncond"])
        frames = x.shape[0] // clips

        def per_clip(tokens: Tensor, shared: bool) -> Tensor:
            """What all frames share is projected once: `[b n d]`; else `[b t n d]`."""
            return tokens[::frames] if shared else rearrange(tokens, "(b t) n d -> b t n d", b=clips)

        text_shared, image_shared = (all(told.shared[i] for told in univid_told) for i in (0, 1))
        streams = tuple(any(told.on[i] for told in univid_told) for i in (0, 1))
        progress = curves.progress(timesteps, self.schedule.last)
        weights = curves.at_progress(univid_weights, progress)  # [(b t) 1+p]
        weights, maps = keys.weights_and_maps(weights, univid_maps.float())
        cond = Conditioning(
            text=per_clip(context, text_shared),
            image=per_clip(univid_image, image_shared) if self.image_projection is not None else None,
            weights=rearrange(weights, "(b t) w -> b t w", b=clips),
            maps=rearrange(maps, "(b t) m h w -> b t m h w", b=clips),
            places=rearrange(univid_places, "(b t) 1 -> b t", b=clips),
            concat=None
            if univid_concat is None
            else rearrange(univid_concat, "(b t) c h w -> b c t h w", b=clips),
            numbers={name: more[keys.NUMBER[name]][::frames, 0] for name in self.config.numbers},
        )
        if univid_null_image is not None:
            cond, streams = with_null_image(cond, univid_null_image[:1]), (streams[0], True)
        counts, tile = transformer_options.get(REFERENCES, {}), transformer_options.get(TILE)
        check_whole(control, tile)
        references = centers_by_level(counts, steering_of(transformer_options).referable(frames), x.device)
        run, steered = super().forward, acting(transformer_options, progress)

        def part(tile: Tile) -> Tensor:
            seen = tile.of(x)
            hook = HostHook(control, transformer_options, seen.shape, self.attention, self.notices)
            out = run(
                rearrange(seen, "(b t) c h w -> b c t h w", b=clips),
                self.schedule.told(timesteps[::frames]),
                cond.within(tile),
                reference_frames=references,
                streams=streams,
                hook=hook,
                **steered(seen),
            )
            hook.end()
            return rearrange(out, "b c t h w -> (b t) c h w")

        with self.attention.under(transformer_options):
            return blended(part, *x.shape[-2:], tile)


class UniVidModel(comfy.model_base.BaseModel):
    """A BaseModel that knows its UniVid config and sampling profile."""

    def __init__(self, config: ModelConfig, profile: SamplingProfile, host_config: Config, device=None):
        super().__init__(host_config, MODEL_TYPES[config.schedule.prediction], device, unet_model=HostUNet)
        self.model_sampling = own_sampling(self.model_sampling, config.schedule, profile.start)
        self.univid_config, self.univid_profile = config, profile
        self._compiled = None, {}  # settings of the host, and the blocks by them

    def extra_conds(self, **kwargs) -> dict:
        """Text tokens, image tokens, weights, maps, places, and what a call decides by: always all six.

        Then what the relatives take: fps, a null image, concat latents.
        """
        text, noise, latents = kwargs.get("cross_attn"), kwargs["noise"], kwargs.get("latent_image")
        self.univid_profile.start.check_source(latents is not None and bool(latents.any()))
        frames = self.check_latents(noise)
        check_windows(self.current_patcher)
        check_control(kwargs.get("control"), frames)
        image, weights = kwargs.get(keys.IMAGE), keys.weights_of(kwargs)
        unet = self.univid_config.unet
        seen = unet.image_stream is not None
        if not seen:
            if kwargs.get(keys.HAS_IMAGE) and self.univid_profile.inputs.concat == "none":
                raise ValueError(
                    "this model makes videos from text alone, got a picture too; disconnect the image of "
                    "Encode Dual Prompt."
                )
            image, weights = torch.zeros(1, 1, 1), weights[..., :2] * torch.tensor([1.0, 0.0])
        elif image is None:
            image = torch.zeros(1, self._num_image_tokens(), unet.image_stream.width)
        for name, tokens, width in (
            ("text", text, unet.context_dim),
            ("image", image, unet.image_stream.width if seen else 1),
        ):
            if tokens.shape[-1] != width:
                raise ValueError(
                    f"expected {name} tokens of width {width}, which this model was trained with, got "
                    f"{tokens.shape[-1]}; encode with the encoders that Load UniVid gives."
                )
        if weights.shape[-1] > 2 and self.univid_profile.inputs.concat != "none":
            raise ValueError(
                f"this model takes one picture, got {weights.shape[-1] - 1}; remove Add Picture."
            )
        for name, value in (("prompts", text), ("images", image), ("modality weights", weights)):
            if value.shape[0] not in (1, frames):
                raise ValueError(
                    f"expected {name} for 1 or for all {frames} frames of the latent, got {value.shape[0]}; "
                    "give one, or as many as the clip has frames."
                )
        told = keys.Told((text.shape[0] == 1, image.shape[0] == 1), streams_on(weights))
        return {
            "c_crossattn": comfy.conds.CONDCrossAttn(text),
            keys.IMAGE: keys.CONDTokens(image),
            keys.WEIGHTS: keys.CONDWeights(curves.resample(weights)),
            keys.MAPS: keys.maps_of(kwargs, frames, *noise.shape[-2:]),
            keys.TOLD: keys.CONDTold((told,)),
            keys.PLACES: comfy.conds.CONDRegular(even_places(frames)[:, None]),  # of the clip, not the window
            **shared_conds(
                self.univid_config, self.univid_profile, self.latent_format.scale_factor, noise, kwargs
            ),
        }

    def _apply_model(self, *args, **kwargs) -> Tensor:
        """TorchCompileModel has put the network, to be translated as one, in its own place: that takes longer
        than anybody waits. So its blocks are translated, by the node's settings.
        """
        whole = self.diffusion_model
        network = getattr(whole, "_orig_mod", None)
        if network is None:
            return super()._apply_model(*args, **kwargs)
        settings = self.current_patcher.model_options["torch_compile_kwargs"]
        if settings is not self._compiled[0]:
            network.compile_blocks(**settings | {"dynamic": False})
            self._compiled = settings, network.compiled
        self.diffusion_model, network.compiled = network, self._compiled[1]
        try:
            return super()._apply_model(*args, **kwargs)
        finally:
            self.diffusion_model, network.compiled = whole, {}

    def progress(self, sigma: Tensor) -> Tensor:
        """How far the sampling is at sigma, 0..1, of its shape: where it is on curves over the steps."""
        timestep = self.model_sampling.timestep(sigma)
        return curves.progress(timestep, self.diffusion_model.schedule.last)

    def resize_cond_for_context_window(
        self, cond_key, cond_value, window, x_in, device, retain_index_list=()
    ):
        """Slice what is per frame; what all frames share stays one.

        retain_index_list: places of every window that are told what the clip's same places are told, as the
        host does with its own models' conditionings.
        """
        if cond_key not in keys.MODEL_CONDS:
            return None
        if cond_key == keys.TOLD:
            return cond_value
        if cond_value.cond.shape[0] == 1:
            return cond_value._copy_with(cond_value.cond.to(device))
        try:
            part = window.get_tensor(cond_value.cond, device, dim=0, retain_index_list=retain_index_list)
        except IndexError as error:
            raise ValueError(
                f"cond_retain_index_list must name places in a window of {len(window.index_list)} frames, "
                f"from 0 on, got {', '.join(map(str, retain_index_list))}; give smaller numbers."
            ) from error
        return cond_value._copy_with(part)

    def memory_required(self, input_shape, cond_shapes=None) -> float:
        """Bytes of one call; input_shape: `[b * t, c, h, w]`."""
        patcher = getattr(self, "current_patcher", None)
        options = patcher.model_options.get("transformer_options", {}) if patcher else {}
        tile = options.get(TILE)
        height, width = (min(side, tile or side) for side in input_shape[-2:])
        cells = input_shape[0] * height * width
        config, dtype = self.univid_config.unet, self.get_dtype_inference()
        kept = memory.kept(config, steering_of(options), input_shape[0] * math.prod(input_shape[-2:]), dtype)
        return memory.sampling(config, cells, dtype, management.get_torch_device()) + kept

    def check_latents(self, noise: Tensor) -> int:
        """The number of frames of latents or noise `[t 4 h w]`; ValueError for those of another model."""
        channels = self.univid_config.unet.out_channels  # in_channels has those of concat latents too
        if noise.dim() != 4 or noise.shape[1] != channels:
            raise ValueError(
                f"expected latents [frames {channels} height width], got {list(noise.shape)}; "
                "use Empty UniVid Latent, or VAE Encode on the frames of a video."
            )
        return noise.shape[0]

    def _num_image_tokens(self) -> int:
        vision = self.univid_config.vision
        return 1 if vision is None else 1 + (vision.image_size // vision.patch_size) ** 2


SD_VAE_CHANNELS = 128  # a narrower VAE is the checkpoint's own, whose latents the host cannot preview


def profile_of(model) -> SamplingProfile:
    """The sampling profile of a MODEL.

    Raises:
        ValueError: another model than UniVid.
    """
    if not isinstance(model.model, UniVidModel):
        raise ValueError(
            f"expected a UniVid model, got {type(model.model).__name__}; load one with Load UniVid."
        )
    return model.model.univid_profile


def load_model(
    path: str | Path, dtype: str = "auto", source: str | None = None, disable_dynamic: bool = False
):
    """A MODEL (ModelPatcher) from a UniVid checkpoint or a foreign one; Stable Diffusion's time is untrained.

    dtype: "auto" or a name of STORED_DTYPES, for the weights. source: the name that `open_checkpoint` takes.

    Raises:
        ValueError: not such a file, damaged, or weights that are not finite.
    """
    weights = open_checkpoint(path, source)
    weights.warn_if_untrained()
    host_config = Config(weights.config, weights.profile)
    device, storage = management.get_torch_device(), weights.dtype("unet")
    supported = list(host_config.supported_inference_dtypes)
    if dtype == "auto":
        parameters = sum(
            entry.num_bytes // entry.dtype.itemsize for entry in weights.entries("unet").values()
        )
        chosen = management.unet_dtype(
            model_params=parameters, supported_dtypes=supported, weight_dtype=storage
        )
    else:
        chosen = dtype_of(dtype)
    host_config.set_inference_dtype(chosen, management.unet_manual_cast(chosen, device, supported))
    offload = management.unet_offload_device()
    model = UniVidModel(weights.config, weights.profile, host_config, device=offload)
    Patcher = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = Patcher(model, load_device=device, offload_device=offload)
    _fill(model, weights, assign=patcher.is_dynamic())
    if weights.holds("vae") and weights.config.vae.channels < SD_VAE_CHANNELS:
        draw_with(_own_vae(weights), model.latent_format)
    patcher.cached_patcher_init = (load_model, (str(path), dtype, source))
    return patcher


def _own_vae(weights: Checkpoint) -> Autoencoder:
    vae = Autoencoder(weights.config.vae).eval().requires_grad_(False)
    vae.load_state_dict(weights.read("vae"))
    return vae


def _fill(model: UniVidModel, weights: Checkpoint, assign: bool) -> None:
    state = weights.read("unet")
    missing, unknown = model.diffusion_model.load_state_dict(state, strict=False, assign=assign)
    if missing or unknown:  # open_checkpoint has compared names and shapes with the config
        raise AssertionError(f"host module and checkpoint disagree: {missing}, {unknown}")


def with_reference_frames(model, counts: dict[int, int]):
    """A clone of a MODEL whose PSTAttn at level f attends to counts[f] reference frames; 0 = it is off.

    Raises:
        ValueError: another model than UniVid, one without PSTAttn, or a level that it does not have.
    """
    profile_of(model)
    unet = model.model.univid_config.unet
    factors = unet.factors
    if counts and not unet.temporal.segment_frames:
        raise ValueError(
            "this model has no PSTAttn, as imported ones that are not extended; set all levels to 0."
        )
    if unknown := sorted(set(counts) - set(factors)):
        raise ValueError(
            f"expected levels among {factors}, as this model has, got {unknown}; set those to 0."
        )
    return with_option(model, REFERENCES, dict(counts))


def with_tile(model, pixels: int):
    """A clone of a MODEL that sees larger frames in tiles of so many pixels a side.

    Raises:
        ValueError: another model than UniVid, or no multiple of 8 pixels.
    """
    profile_of(model)
    return with_option(model, TILE, tile_cells(pixels, FACTOR))


def with_option(model, name: str, value):
    """A clone of a MODEL with a transformer option."""
    clone = model.clone()
    options = clone.model_options.setdefault("transformer_options", {})
    clone.model_options["transformer_options"] = options | {name: value}
    return clone

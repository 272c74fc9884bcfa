"""Imported kinds of models through the nodes, against the library's pipeline on the same random weights."""

import dataclasses
import math

import pytest
import torch
from einops import rearrange

pytestmark = pytest.mark.usefixtures("inference")

FRAMES, SIZE, STEPS, SEED = 4, 64, 3, 7
PROMPT, NEGATIVE = "a red circle moves left", "blur"
OWN = "the checkpoint's own"
KINDS = ("modelscope", "videocrafter2", "videocrafter1_i2v", "dynamicrafter", "interpolation", "known")
JOINED = {"dynamicrafter": "first", "interpolation": "ends", "known": "known_blend"}


def configs(kind):
    """ModelConfig and SamplingProfile of a kind, with the built-in model's small towers and VAE."""
    from univid_pack.univid.config import ImageStreamConfig, InputProfile, NumberInput, ResamplerConfig
    from univid_pack.univid.presets import FAMILY, PROFILES, TINY

    pictures = kind not in ("modelscope", "videocrafter2")
    dynamic = kind in ("dynamicrafter", "interpolation")
    resampler = ResamplerConfig(
        width=24, depth=1, heads=3, head_channels=4, tokens=4, frames=FRAMES if dynamic else None
    )
    unet = dataclasses.replace(
        FAMILY.unet, model_channels=16, channel_mult=(1, 2, 2, 2), num_res_blocks=1, head_channels=8,
        context_dim=64, norm_groups=8, in_channels={"known": 9}.get(kind, 8 if dynamic else 4),
        numbers={"modelscope": (), "known": ("fps", "noise")}.get(kind, ("fps",)),
        image_stream=ImageStreamConfig(TINY.vision.width, resampler) if pictures else None,
    )  # fmt: skip
    schedule = dataclasses.replace(
        FAMILY.schedule, prediction="v" if dynamic else "eps", zero_terminal_snr=dynamic,
        x0_scale=1.0 if kind == "modelscope" else 0.7,
    )  # fmt: skip
    profile = dataclasses.replace(
        PROFILES["family"], frames=FRAMES, height=SIZE, width=SIZE, steps=STEPS,
        sigma_schedule="simple" if dynamic else "ddim_uniform", eta=0.0 if kind == "modelscope" else 1.0,
        inputs=InputProfile(
            numbers=tuple(
                NumberInput("fps", 24.0, "fps") if name == "fps" else NumberInput(name, 200.0, "permille")
                for name in unet.numbers
            ),
            null_image="grey" if pictures else "off",
            concat=JOINED.get(kind, "none"),
        ),
    )  # fmt: skip
    config = dataclasses.replace(TINY, unet=unet, schedule=schedule, vision=TINY.vision if pictures else None)
    return config, profile


class Lazy(dict):
    """What `make` gives of a kind, made when it is first asked for."""

    def __init__(self, make):
        self.make = make

    def __missing__(self, kind):
        self[kind] = self.make(kind)
        return self[kind]


@pytest.fixture(scope="module")
def paths(pack, tmp_path_factory):
    from univid_pack.univid.checkpoints.native import meta_modules, save
    from univid_pack.univid.model import UniVid

    def write(kind):
        config, profile = configs(kind)
        parts, generator = meta_modules(config), torch.Generator().manual_seed(0)
        for part in parts.values():
            for layer in part.to_empty(device="cpu").modules():
                for name, parameter in layer.named_parameters(recurse=False):
                    noise = torch.randn(parameter.shape, generator=generator)
                    if parameter.dim() > 1:
                        noise *= math.prod(parameter.shape[1:]) ** -0.5
                    else:
                        noise = 1 + 0.2 * noise if name == "weight" else 0.1 * noise
                    parameter.data.copy_(noise.half())  # the host keeps the towers so
        path = tmp_path_factory.mktemp("relative") / f"{kind}.safetensors"
        save(path, UniVid(config, profile, info={}, **parts))
        return path

    return Lazy(write)


@pytest.fixture(scope="module")
def loaded(paths):
    from univid_pack.nodes.host.encoders import load_encoders
    from univid_pack.nodes.host.model import load_model

    return Lazy(lambda kind: (load_model(paths[kind], "fp32"), *load_encoders(paths[kind])))


@pytest.fixture(scope="module")
def library(paths):
    from univid_pack.univid.checkpoints import load

    return Lazy(lambda kind: load(paths[kind], dtype=torch.float32))


def picture(seed=0, height=40, width=72):
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


def takes_picture(kind):
    return kind not in ("modelscope", "videocrafter2")


def conditionings(loaded, kind, image=None, last_image=None, latents=True, **inputs):
    from univid_pack.nodes.encode import UniVidEncodeDualPrompt
    from univid_pack.nodes.latents import UniVidEmptyLatent

    model, clip, vision, vae = loaded[kind]
    latent = UniVidEmptyLatent.execute(0, 0, 0, model).result[0]
    if takes_picture(kind):
        inputs |= {"clip_vision": vision, "image": picture() if image is None else image}
    if kind in JOINED and latents:
        inputs |= {"vae": vae, "latent": latent, "last_image": last_image}
    return UniVidEncodeDualPrompt.execute(clip, PROMPT, NEGATIVE, **inputs).result, latent


def sample(loaded, kind, guidance=("joint", 3.0, 3.0, 2.0, 0.0), conds=None, eta=-1.0, sampler=OWN, **inputs):
    """Latents of PST Sampler `[t c h w]`, as the library scales them."""
    from univid_pack.nodes.sample import UniVidPSTSampler

    (positive, negative), latent = conds or conditionings(loaded, kind, **inputs)
    mode, scale, text, image, rescale = guidance
    out = UniVidPSTSampler.execute(
        loaded[kind][0], positive, negative, latent, SEED, STEPS, sampler, OWN, mode, scale, text, image, 1.0,
        rescale=rescale, eta=eta,
    ).result[0]  # fmt: skip
    return out["samples"]


def expected(library, kind, guider=None, **options):
    """The library's clip, `[t h w c]` in 0..1."""
    from univid_pack.univid.guidance import Joint
    from univid_pack.univid.pipeline import Clip, Sampling, Source, generate

    options = {
        name: 2 * rearrange(value, "b h w c -> b c h w") - 1 if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
        if value is not None
    }
    for name, group in (("clip", Clip), ("source", Source), ("sampling", Sampling)):
        fields = group.__dataclass_fields__.keys() & options.keys()
        options[name] = group(**{field: options.pop(field) for field in fields})
    clip = generate(
        library[kind], PROMPT, negative=NEGATIVE, seed=SEED, guidance=guider or Joint(3.0), **options
    )
    return (rearrange(clip, "1 c t h w -> t h w c") + 1) / 2


def frames(library, kind, latents):
    """The host's latents through the library's VAE: frames `[t h w c]` in 0..1."""
    vae = library[kind].vae
    clip = vae.decode(rearrange(latents, "t c h w -> 1 c t h w") * vae.config.scale).clamp(-1, 1)
    return (rearrange(clip, "1 c t h w -> t h w c") + 1) / 2


def difference(a, b):
    return ((a - b).abs().max() / b.std()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_the_nodes_make_the_librarys_clip(loaded, library, kind):
    image = {"image": picture()} if takes_picture(kind) else {}
    ours = frames(library, kind, sample(loaded, kind))
    assert ours.shape == (FRAMES, SIZE, SIZE, 3)
    assert difference(ours, expected(library, kind, **image)) < 1e-3
    others = [{"eta": 0.5}]
    if kind != "modelscope":
        others.append({"fps_number": 3.0})
    if takes_picture(kind):
        others.append({"image": picture(1)})
    for other in others:
        assert difference(expected(library, kind, **image | other), ours) > 3e-3, other


@pytest.mark.parametrize(
    "guidance",
    [("separate", 1.0, 3.0, 2.0, 0.5), ("nested", 1.0, 3.0, 2.0, 0.0), ("joint", 3.0, 0.0, 0.0, 0.7)],
)
@pytest.mark.parametrize("kind", ["videocrafter1_i2v", "dynamicrafter"])
def test_every_guider_shows_grey_for_no_picture(loaded, library, kind, guidance):
    from univid_pack.nodes.guide import build

    ours = frames(library, kind, sample(loaded, kind, guidance))
    assert difference(ours, expected(library, kind, build(*guidance), image=picture())) < 1e-3


def test_options_arrive(loaded, library):
    ours = frames(library, "dynamicrafter", sample(loaded, "dynamicrafter", fps_number=5.0, eta=0.3))
    assert (
        difference(ours, expected(library, "dynamicrafter", image=picture(), fps_number=5.0, eta=0.3)) < 1e-3
    )
    last = picture(3, 70, 30)
    for kind in ("interpolation", "known"):
        ours = frames(library, kind, sample(loaded, kind, last_image=last))
        theirs = expected(library, kind, image=picture(), last_image=last)
        assert difference(ours, theirs) < 1e-3
        assert difference(expected(library, kind, image=picture()), theirs) > 3e-3


@pytest.mark.parametrize(("kind", "sampler"), [("dynamicrafter", "dpmpp_2m"), ("videocrafter1_i2v", "euler")])
def test_plain_ksampler_takes_the_same_conditions(loaded, library, kind, sampler):
    """The factor of x0 and the null image are the model's, not PST Sampler's."""
    import nodes

    (positive, negative), latent = conditionings(loaded, kind)
    out = nodes.common_ksampler(
        loaded[kind][0], SEED, STEPS, 3.0, sampler, "simple", positive, negative, latent
    )[0]["samples"]
    theirs = expected(library, kind, image=picture(), sampler=sampler, sigma_schedule="simple")
    assert difference(frames(library, kind, out), theirs) < 1e-3


def test_weight_0_is_grey(loaded, library):
    from univid_pack.nodes.host.conditioning import with_weights

    kind = "videocrafter1_i2v"
    (positive, negative), latent = conditionings(loaded, kind)
    conds = (with_weights(positive, torch.tensor([[[1.0, 0.0]]])), negative), latent
    ours = frames(library, kind, sample(loaded, kind, conds=conds))
    assert difference(ours, expected(library, kind, image=picture(), image_weight=0.0)) < 1e-3


def test_context_windows_slice_what_is_per_frame(loaded):
    from comfy.context_windows import IndexListContextWindow
    from univid_pack.nodes.host import conditioning as keys

    (positive, _), latent = conditionings(loaded, "interpolation")
    text, extras = positive[0]
    conds = loaded["interpolation"][0].model.extra_conds(cross_attn=text, noise=latent["samples"], **extras)
    assert set(conds) == set(keys.MODEL_CONDS) - {keys.NUMBER["noise"]}
    assert conds[keys.CONCAT].cond.shape == (FRAMES, 4, SIZE // 8, SIZE // 8)
    assert (conds[keys.CONCAT].cond[1:-1] == 0).all() and conds[keys.NUMBER["fps"]].cond.tolist() == [[24.0]]

    window = IndexListContextWindow([1, 2], dim=0, total_frames=FRAMES)
    for key, value in conds.items():
        sliced = loaded["interpolation"][0].model.resize_cond_for_context_window(
            key, value, window, None, "cpu"
        )
        assert len(sliced.cond) == (1 if len(value.cond) == 1 else 2), key


@pytest.mark.parametrize(
    ("kind", "inputs", "words"),
    [
        ("modelscope", {"fps_number": 8.0}, "trained without fps_number"),
        ("videocrafter2", {"fps_number": -1.0}, "fps_number must be from 0"),
        ("dynamicrafter", {"latents": False}, "connect vae and latent"),
        ("dynamicrafter", {"last_image": picture()}, "does not go from one picture to another"),
    ],
)
def test_what_a_model_does_not_take_is_refused(loaded, kind, inputs, words):
    with pytest.raises(ValueError, match=words):
        sample(loaded, kind, **inputs)


def test_a_model_that_needs_a_picture_says_so(loaded):
    (positive, negative), latent = conditionings(loaded, "videocrafter2")
    with pytest.raises(ValueError, match="animates a picture and got none"):
        sample(loaded, "videocrafter1_i2v", conds=((positive, negative), latent))
    (positive, negative), latent = conditionings(loaded, "dynamicrafter")
    small = {"samples": latent["samples"][..., :-1]}
    with pytest.raises(ValueError, match="for 56 x 64, the size of the clip, got 64 x 64"):
        sample(loaded, "dynamicrafter", conds=((positive, negative), small))
    with pytest.raises(ValueError, match="does not join a picture's latents"):
        sample(loaded, "videocrafter1_i2v", conds=((positive, negative), latent))
    with pytest.raises(ValueError, match="from text alone"):
        (positive, negative), latent = conditionings(loaded, "videocrafter1_i2v")
        sample(loaded, "modelscope", conds=((positive, negative), latent))


def test_latents_need_all_three_inputs(loaded):
    from univid_pack.nodes.host.relatives import shared_inputs

    with pytest.raises(ValueError, match="got no vae and no image; connect all three"):
        shared_inputs(0.0, None, {"samples": torch.zeros(1, 4, 8, 8)}, None, None)


def test_eta_out_of_range_is_refused(loaded):
    with pytest.raises(ValueError, match="eta must be from 0 to 1"):
        sample(loaded, "modelscope", eta=1.5)


def test_a_model_without_pst_attention_takes_no_reference_frames(loaded):
    from univid_pack.nodes.options import UniVidPSTOptions

    model = loaded["modelscope"][0]
    with pytest.raises(ValueError, match="has no PSTAttn"):
        UniVidPSTOptions.execute(model, 0, 0, 0, 4)
    assert UniVidPSTOptions.execute(model, 0, 0, 0, 0).result[0].model is model.model

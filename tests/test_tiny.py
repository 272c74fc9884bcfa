"""The recipes of the built-in model, end to end at two steps each, and what every stage may move."""

import dataclasses

import pytest
import torch

from training.__main__ import main
from training.config import LogsConfig
from training.loop import train
from training.saved import load
from training.stages.conditions import is_image_stream
from training.tiny import shapes
from training.tiny.export import lineage
from training.tiny.options import ShapesOptions, ShownOptions
from training.tiny.recipes import RECIPES, TINY
from training.tiny.tasks import build
from training.tiny.vae import fold_scale
from univid import checkpoints
from univid.pipeline import Clip, Sampling, generate
from univid.presets import PRESETS
from univid.vae import Autoencoder


def short(name: str, **options):
    recipe = RECIPES[name]()
    batch = {modality: 2 for modality in recipe.batch}
    if isinstance(recipe.options, ShapesOptions):
        recipe = dataclasses.replace(
            recipe, options=dataclasses.replace(recipe.options, **({"clips": 4} | options))
        )
    return dataclasses.replace(recipe, steps=2, batch=batch, logs=LogsConfig())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with every run of the built-in model, two steps each."""
    root = tmp_path_factory.mktemp("runs")
    for name in TINY:
        recipe = short(name)
        train(recipe, build(recipe, root), root / name, progress=False)
    return root


def test_a_run_is_recorded_as_it_always_was():
    """Otherwise runs that earlier versions began could not go on: see `folder.compare`."""
    recorded = {name: RECIPES[name]().to_dict() for name in RECIPES}
    assert [recorded[name]["task"] for name in TINY] == (
        "vae towers t2v t2v t2v adapters joint joint pictures vision steering steering".split()
    )
    assert recorded["tiny_vae"]["options"] == {"kl_weight": 3e-4}
    assert recorded["tiny_towers"]["options"] is None
    assert set(recorded["tiny_whole"]["options"]) == set(
        "preset vae towers start start_spatial_only data_seed clips frames frame_stride loss_weights "
        "timestep_shift shown".split()
    )


def is_temporal(name: str) -> bool:
    return "temporal" in name or "pst" in name


def test_single_frames_move_spatial_parameters_only(root):
    recipe = short("tiny_images")
    task = build(recipe, root)
    before = task.module.state_dict()
    saved = load(root / "tiny_images" / "final.pt")
    for weights in (saved["model"], saved["ema"]):
        changed = {key for key in before if not torch.equal(before[key], weights[key])}
        assert changed and not any(is_temporal(key) or is_image_stream(key) for key in changed)


@pytest.mark.parametrize(
    "name, allowed",
    [
        ("tiny_t2v", lambda key: not is_image_stream(key)),
        ("tiny_adapters", lambda key: key.startswith("image_projection.") or ".attn2." in key),
        ("tiny_joint", lambda key: True),
        ("tiny_whole", lambda key: True),
    ],
)
def test_each_stage_trains_exactly_its_parameters(root, name, allowed):
    recipe = short(name)
    task = build(recipe, root)  # with what the stage does at its beginning
    before = {key: value.clone() for key, value in task.module.named_parameters()}
    assert {key for key, value in task.module.named_parameters() if value.requires_grad} == set(
        filter(allowed, before)
    )
    after = load(root / name / "final.pt")["model"]
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(map(allowed, changed))
    assert any("attn2.to_k_image" in key for key in changed) == (name != "tiny_t2v")
    assert any("temporal.proj_out" in key for key in changed) == (name != "tiny_adapters")


def test_adapters_start_from_the_vision_tower_and_the_text_stream(root):
    recipe = short("tiny_adapters")
    task = build(recipe, root)
    state = task.module.state_dict()
    vision = task.towers.vision
    assert torch.equal(state["image_projection.proj.weight"], vision.proj.T)
    assert torch.equal(state["image_projection.norm.weight"], vision.ln_post.weight)
    copies = [key for key in state if key.endswith("to_k_image.weight")]
    assert copies and all(torch.equal(state[key], state[key.replace("_image", "")]) for key in copies)


def test_the_vision_tower_learns_on_and_the_text_tower_stays(root):
    before, after = (load(root / name / "final.pt")["ema"] for name in ("tiny_towers", "tiny_vision"))
    vision = {key for key in before if key.startswith("vision.")}
    text = {key for key in before if key.startswith("text.")}
    assert all(not torch.equal(before[key], after[key]) for key in vision)
    assert text and all(torch.equal(before[key], after[key]) for key in text)


def test_a_frame_at_its_place_may_have_the_picture_of_another_frame(root):
    def pictures_that_differ(own_picture: bool) -> float:
        shown = ShownOptions(places=True, picture_of_clip=not own_picture, still_share=0.0)
        task = build(short("tiny_pictures", shown=shown), root)
        samples = task.samples("image", range(200), 200)
        tokens = task.data.image_tokens.float()  # [n t m d]
        shown = [
            (task.data.latents.float() == frame).flatten(3).all(-1).all(1).nonzero()[0].tolist()
            for frame in samples.latents  # [c 1 h w] against [n c t h w]
        ]
        return sum(
            not torch.equal(tokens[clip, frame], image)
            for (clip, frame), image in zip(shown, samples.cond.image, strict=True)
        ) / len(shown)

    assert pictures_that_differ(own_picture=True) == 0
    assert 0.8 < pictures_that_differ(own_picture=False) < 1  # 11 of 12 frames


def test_samples_depend_on_their_position_alone(root):
    recipe = short("tiny_joint")
    task = build(recipe, root)
    whole = task.samples("video", range(8, 16), 8)
    half = task.samples("video", range(8, 16)[1::2], 8)
    assert torch.equal(whole.latents[1::2], half.latents) and torch.equal(whole.noise[1::2], half.noise)
    assert torch.equal(whole.timesteps[1::2], half.timesteps)
    assert torch.equal(whole.cond.weights[1::2], half.cond.weights)
    assert not torch.equal(whole.noise, task.samples("video", range(16, 24), 8).noise)


def test_modes_come_in_the_stated_shares(root):
    recipe = short("tiny_joint")
    task = build(recipe, root)
    cond = task.samples("video", range(1000), 1000).cond
    empty = (cond.text == task.text([""])).flatten(1).all(1)
    modes = [(not e, *w) for e, w in zip(empty.tolist(), cond.weights.tolist(), strict=True)]
    for mode, share in task.stage.modes.items():
        assert abs(modes.count((mode[0], *mode[1])) / 1000 - share) < 0.05, mode


def test_folding_the_scale_normalises_latents_and_keeps_the_picture():
    torch.manual_seed(0)
    vae = Autoencoder(dataclasses.replace(PRESETS["tiny"].vae, channels=8))
    frames, _ = shapes.batch(range(16), seed=0, stills=True)
    video = shapes.to_video(frames)
    before = vae.decode(vae.encode(video))
    _, logvar = vae.encode_moments(video[:, :, 0])
    deviation = vae.encode(video).std((0, 2, 3, 4))
    fold_scale(vae, video[:, :, 0])
    latents = vae.encode(video)
    assert latents.mean((0, 2, 3, 4)).abs().max() < 1e-3
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 0.01
    torch.testing.assert_close(vae.decode(latents), before, atol=1e-4, rtol=1e-4)
    _, folded = vae.encode_moments(video[:, :, 0])  # the posterior's deviation scales with the latents
    change = (folded - logvar).mean((0, 2, 3))
    torch.testing.assert_close(change, -2 * deviation.log(), atol=1e-3, rtol=1e-3)


def test_export_loads_and_generates(root, tmp_path):
    path = tmp_path / "tiny.safetensors"
    main(["--root", str(root), "export", "--out", str(path)])
    model = checkpoints.load(path)
    video = generate(
        model,
        "a red circle moves left on a black background",
        clip=Clip(frames=3),
        sampling=Sampling(steps=2),
    )
    assert video.shape == (1, 3, 3, 64, 64)
    assert model.info["source"].endswith(" -> ".join(TINY)) and set(lineage(root, TINY[-1])) == set(TINY)
    saved = load(root / TINY[-1] / "final.pt")["ema"]
    assert torch.equal(model.unet.state_dict()["out.2.weight"], saved["out.2.weight"].half().float())

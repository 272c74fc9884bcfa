"""The recipes of the built-in model, end to end at two steps each, and what every stage may move."""

import dataclasses

import pytest
import torch

from training.__main__ import main
from training.config import LogsConfig
from training.loop import train
from training.saved import load
from training.stages.conditions import is_image_stream
from training.tiny import commands, enlarging, shapes
from training.tiny.commands import recipe
from training.tiny.draws import PICTURED
from training.tiny.export import lineage
from training.tiny.options import ShapesOptions, ShownOptions
from training.tiny.recipes import RECIPES, TINY
from training.tiny.tasks import build
from training.tiny.vae import fold_scale
from univid import checkpoints
from univid.pipeline import Clip, Sampling, Source, generate
from univid.presets import PRESETS
from univid.roles import role
from univid.vae import Autoencoder

SMALL = {"clips": 4, "moments": 13, "lengths": {5: 0.5, 12: 0.5}}


def short(name: str, **options):
    recipe = RECIPES[name]()
    batch = {modality: 2 for modality in recipe.batch}
    if isinstance(recipe.options, ShapesOptions):
        recipe = dataclasses.replace(recipe, options=dataclasses.replace(recipe.options, **(SMALL | options)))
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
        "vae towers vision t2v t2v t2v adapters joint pictures steering steering".split()
    )
    assert recorded["tiny_vae"]["options"] == {"kl_weight": 3e-4}
    assert recorded["tiny_towers"]["options"] is None
    assert set(recorded["tiny_steady"]["options"]) == set(
        "preset vae towers start start_spatial_only data_seed clips moments lengths loss_weights "
        "timestep_shift shown".split()
    )


def test_a_device_has_its_own_budget():
    """256 clips and 512 single frames a step, in bfloat16."""
    for name in TINY:
        cpu, gpu = recipe(name, "cpu"), recipe(name, torch.device("cuda", 1))
        assert (cpu.dtype, gpu.dtype) == ("float32", "bfloat16")
        assert cpu.batch.keys() == gpu.batch.keys()
        assert all(gpu.batch[modality] > size for modality, size in cpu.batch.items())
        assert type(gpu.options) is type(cpu.options) and gpu.seed == cpu.seed
    assert recipe("tiny_lengths", "cuda").batch == {"image": 512, "video": 256}


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
        ("tiny_steady", lambda key: True),
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


def test_the_expert_on_known_frames_learns_what_it_is_shown(root, tmp_path):
    recipe = short("tiny_known")
    task = build(recipe, root)
    first = "input_blocks.0.0.weight"
    before = {key: value.clone() for key, value in task.module.named_parameters()}
    base = load(root / "tiny_steady" / "final.pt")["ema"]
    assert before[first].shape[1] == 9 and not before[first][:, 4:].any()
    assert torch.equal(before[first][:, :4], base[first])
    (batch,) = task.micro_batches(0)
    concat, latents = batch.batch.cond.concat, batch.batch.latents
    mask = concat[:, 4:]
    assert concat.shape[1] == 5 and 0 < mask.mean() < 1
    assert torch.equal(concat[:, :4], latents * mask)
    assert not torch.equal(next(task.micro_batches(1)).batch.cond.concat[:, 4:].mean(), mask.mean())
    assert task.validate(task.module).keys() == {"video_loss", "long_loss"}
    train(recipe, task, root / "tiny_known", progress=False)
    after = load(root / "tiny_known" / "final.pt")["model"]
    assert after[first][:, 4:].any()

    main(["--root", str(root), "export", "--run", "tiny_known", "--out", str(tmp_path / "k.safetensors")])
    model = checkpoints.load(tmp_path / "k.safetensors", dtype=torch.float32)
    assert model.profile.inputs.concat == "known"
    video = torch.zeros(1, 3, 5, 64, 64)
    made = generate(model, source=Source(video, known=(0, 4)), sampling=Sampling(steps=1))
    assert torch.equal(made[:, :, [0, 4]], video[:, :, [0, 4]]) and made[:, :, 1:4].abs().max() > 0


def test_the_larger_decoder_learns_alone(tmp_path):
    recipe = dataclasses.replace(enlarging.decoder(), steps=2, batch={"image": 2}, logs=LogsConfig())
    task = build(recipe, tmp_path)
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    train(recipe, task, tmp_path / recipe.name, progress=False)
    after = load(tmp_path / recipe.name / "final.pt")["model"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    (batch,) = task.micro_batches(0)
    assert batch.batch[0].shape == (2, 3, 128, 128)


def test_the_experts_are_trained_from_what_ships(tmp_path, monkeypatch):
    """Two steps each, on few clips: the command as it is run, and files that hold what is new."""
    known = short("tiny_known")
    monkeypatch.setitem(commands.RECIPES, "tiny_known", lambda gpu=False: known)
    few = {"CLIPS": 2, "FRAMES": 3, "SHOWN": 2}
    for name, value in few.items():
        monkeypatch.setattr(enlarging, name, value)
    for name in ("decoder", "recipe"):
        make = getattr(enlarging, name)
        monkeypatch.setattr(
            enlarging,
            name,
            lambda *given, make=make: dataclasses.replace(
                recipe := make(*given), steps=2, batch=dict.fromkeys(recipe.batch, 2), logs=LogsConfig()
            ),
        )
    main(["--root", str(tmp_path), "experts"])
    main(["--root", str(tmp_path), "experts"])  # and what is there stays
    sizes = {}
    for run, role_of in (("tiny_known", "known"), ("tiny_upscale", "upscale")):
        out = tmp_path / f"{run}.safetensors"
        main(["--root", str(tmp_path), "export", "--run", run, "--out", str(out), "--beside-built-in"])
        model = checkpoints.load(out)
        assert role(model.profile) == role_of and model.info["base"] == "built-in"
        sizes[run] = out.stat().st_size
    assert model.profile.height == model.profile.width == 128 and model.profile.steps == 7
    assert model.profile.frames == 2 and model.profile.start.biased_noise.t_n == 60
    built_in = checkpoints.load()
    pairs = zip(built_in.vae.encoder.parameters(), model.vae.encoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(built_in.vae.decoder.conv_out.bias, model.vae.decoder.conv_out.bias)
    assert sum(sizes.values()) < 36e6


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
        samples = task.samples("image", 0, 200, 1, range(200))
        frames = task.data.latents.float()  # [n m c h w]
        tokens = task.data.image_tokens.float()  # [n p k d]
        shown = [
            (frames == latents[:, 0]).flatten(2).all(-1).nonzero()[0].tolist() for latents in samples.latents
        ]
        assert {moment % PICTURED for _, moment in shown} == {0}
        return sum(
            not torch.equal(tokens[clip, moment // PICTURED], image)
            for (clip, moment), image in zip(shown, samples.cond.image, strict=True)
        ) / len(shown)

    assert pictures_that_differ(own_picture=True) == 0
    assert 0.6 < pictures_that_differ(own_picture=False) < 0.9  # 3 of 4 frames


def test_a_clip_is_shown_at_its_places_with_a_picture_of_it(root):
    """Held against the clip itself, drawn and encoded by itself."""
    task = build(short("tiny_joint"), root)
    samples = task.samples("video", 3, 4, 5, range(4))
    assert samples.latents.shape == (4, 4, 5, 8, 8) and samples.cond.places.shape == (4, 5)
    for index in range(SMALL["clips"]):
        pixels, scene = shapes.clip(index, seed=task.recipe.options.data_seed, frames=SMALL["moments"])
        video = shapes.to_video(torch.from_numpy(pixels)[None])
        with torch.inference_mode():
            latents, tokens = task.vae.encode(video)[0], task.towers.vision(video[0].transpose(0, 1))
        texts = task.text([scene.caption, ""])
        for k in range(4):
            moments = (samples.cond.places[k] * SMALL["moments"]).long()
            if (samples.latents[k] - latents[:, moments]).abs().max() < 0.02:
                assert any(torch.equal(samples.cond.text[k], text) for text in texts)
                apart = (tokens - samples.cond.image[k]).abs().amax((1, 2))
                assert apart.min() < 0.02 and int(apart.argmin()) % PICTURED == 0
                break
    else:
        return
    raise AssertionError("no clip of the step was found in the set")


def test_processes_share_the_samples_of_a_step(root):
    task = build(short("tiny_joint"), root)
    whole = task.samples("video", 1, 8, 12, range(8))
    half = task.samples("video", 1, 8, 12, range(8)[1::2])
    assert torch.equal(whole.latents[1::2], half.latents) and torch.equal(whole.noise[1::2], half.noise)
    assert torch.equal(whole.timesteps[1::2], half.timesteps)
    assert torch.equal(whole.cond.weights[1::2], half.cond.weights)
    assert torch.equal(whole.cond.text[1::2], half.cond.text)
    assert not torch.equal(whole.noise, task.samples("video", 2, 8, 12, range(8)).noise)


def test_a_step_has_one_length_and_as_many_frames_as_any_other(root):
    task = build(short("tiny_joint"), root)
    lengths = [task.frames_at(step) for step in range(400)]
    assert abs(lengths.count(5) / 400 - 0.5) < 0.1 and set(lengths) == {5, 12}
    assert [task.frames_at(step) for step in range(400)] == lengths
    task.recipe = dataclasses.replace(task.recipe, batch={"image": 3, "video": 16})
    sizes = {frames: task.size("video", frames) for frames in (5, 12, 24, 45, 200)}
    assert sizes == {5: 38, 12: 16, 24: 8, 45: 4, 200: 2} and task.size("image", 1) == 3
    modality, _, samples = list(task.micro_batches(0))[1]
    assert modality == "video" and samples.latents.shape[:3] == (
        task.size("video", lengths[0]),
        4,
        lengths[0],
    )


def test_modes_come_in_the_stated_shares(root):
    task = build(short("tiny_joint"), root)
    cond = task.samples("image", 0, 1000, 1, range(1000)).cond
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


def test_training_goes_on_from_a_checkpoint(root, tmp_path, monkeypatch):
    """`tiny --adopt`: its weights are where the last runs start, and its history is told before theirs."""
    shipped = tmp_path / "shipped.safetensors"
    main(["--root", str(root), "export", "--out", str(shipped)])
    trained = []
    monkeypatch.setattr("training.tiny.commands.run", lambda recipe, *_: trained.append(recipe.name))
    again = tmp_path / "again"
    main(["--root", str(again), "tiny", "--adopt", str(shipped)])
    assert trained == ["tiny_lengths", "tiny_steady"]
    before = load(root / TINY[-1] / "final.pt")["ema"]
    adopted = load(again / "tiny_pictures" / "final.pt")
    assert all(torch.equal(adopted["ema"][key], weights.half().float()) for key, weights in before.items())
    recipe = short("tiny_lengths")
    train(recipe, build(recipe, again), again / "tiny_lengths", progress=False)
    assert set(lineage(again, "tiny_lengths")) == set(TINY)
    model = checkpoints.load(shipped)
    video = shapes.to_video(shapes.batch(range(2), seed=0, frames=2)[0])
    folded = build(recipe, again).vae.encode(video)
    assert (folded - model.vae.to(torch.float32).encode(video)).abs().max() < 0.01

"""Training on real clips: from run to run and into a file, other models, prepared data, the recipes."""

import dataclasses

import pytest
import torch
from denoise_runs import Maker, gradients, relative

from training.config import LogsConfig
from training.data.config import SourceConfig
from training.loop import train
from training.lora import LoraConfig
from training.options import NoiseOptions, SampleOptions
from training.prepare import PrepareConfig, prepare
from training.recipes_univid import finetune, univid_adapters, univid_joint, univid_t2v
from training.report import read
from training.saved import load
from training.stages.conditions import BOTH, NONE, TEXT
from training.stages.denoise import DenoiseTask
from univid import checkpoints
from univid.config import ImageStreamConfig, NumberInput, ResamplerConfig
from univid.pipeline import Clip, Sampling, generate
from univid.video import read_video

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def make(media, small_checkpoint, tmp_path_factory):
    return Maker(media, small_checkpoint, tmp_path_factory.mktemp("runs"))


# From run to run, and out of it


def test_stage_two_begins_where_stage_one_ended(make, tmp_path):
    recipe = make.recipe(name="first", stage="t2v")
    train(recipe, DenoiseTask(recipe, make.root), make.root / "first", progress=False)
    saved = load(make.root / "first" / "final.pt")["ema"]
    task = make(name="second", stage="adapters", start="first")
    state, vision = task.module.state_dict(), task.encoders.part("image_encoder")
    for key, tensor in state.items():
        if key.endswith("to_k_image.weight") or key.endswith("to_v_image.weight"):
            assert torch.equal(tensor, saved[key.replace("_image", "")])
        elif not key.startswith("image_projection."):
            assert torch.equal(tensor, saved[key])
    assert torch.equal(state["image_projection.proj.weight"], vision.proj.T)
    with pytest.raises(ValueError, match="expected the finished run"):
        make(stage="joint", start="nobody")
    with pytest.raises(ValueError, match="does not fit"):
        make(stage="joint", start="first", base="built-in")


def test_validation_is_always_the_same_and_moves_with_the_weights(make):
    task = make(samples=SampleOptions(validation=3))
    task.module.eval()
    with torch.no_grad():
        first = task.validate(task.module)
        list(task.micro_batches(0))
        assert (
            task.validate(task.module)
            == first
            == make(samples=SampleOptions(validation=3)).validate(task.module)
        )
        task.module.out[2].weight.mul_(2)
        assert task.validate(task.module) != first
    assert set(first) == {"image_loss", "frame_loss", "video_loss"}


def test_it_draws_samples_and_writes_a_checkpoint(make, tmp_path):
    samples = SampleOptions(prompts=("a man", "bikes"), steps=1, validation=2)
    recipe = make.recipe(samples=samples, batch={"video": 2})
    recipe = dataclasses.replace(recipe, logs=LogsConfig(sample_every=2, validate_every=2))
    task = DenoiseTask(recipe, make.root)
    saved = load(train(recipe, task, tmp_path / "run", progress=False))
    names = {path.name for path in (tmp_path / "run" / "samples").iterdir()}
    assert names == {"step_00000002.png", "step_00000002_1.mp4", "step_00000002_2.mp4"}
    video, fps = read_video(tmp_path / "run" / "samples" / "step_00000002_1.mp4")
    assert video.shape == (1, 3, 4, 64, 64) and fps == 8
    assert "valid/video_loss" in read(tmp_path / "run" / "metrics.jsonl")[-1]
    path = tmp_path / "out.safetensors"
    task.export(saved["ema"], saved["step"], path)
    model = checkpoints.load(path)
    weight = model.unet.state_dict()["out.2.weight"]
    assert torch.equal(weight, saved["ema"]["out.2.weight"].half())
    assert model.info["training_step"] == "2" and "joint of" in model.info["source"]
    assert generate(
        model.to(dtype=torch.float32), "a man", clip=Clip(frames=2), sampling=Sampling(steps=1)
    ).shape == (1, 3, 2, 32, 32)


def test_a_lora_comes_out_as_a_lora(make, tmp_path, small_checkpoint):
    recipe = make.recipe(stage="lora", lora=LoraConfig(rank=2), batch={"video": 2})
    task = DenoiseTask(recipe, make.root)
    saved = load(train(recipe, task, tmp_path / "run", progress=False))
    path = tmp_path / "lora.safetensors"
    task.export(saved["ema"], saved["step"], path)
    model, plain = checkpoints.load(small_checkpoint), checkpoints.load(small_checkpoint)
    checkpoints.apply_lora(model, path)
    task.module.load_state_dict(saved["ema"])
    task.module.eval()
    (part,) = task.micro_batches(0)
    samples = task.samples(part.batch)
    with torch.no_grad():
        adapted, folded, before = (
            task._losses(unet.eval(), samples) for unet in (task.module, model.unet, plain.unet)
        )
    torch.testing.assert_close(adapted, folded, rtol=1e-3, atol=1e-4)
    assert (adapted - before).abs().max() > 10 * (adapted - folded).abs().max()


# Other models, and what is refused


def test_a_model_like_modelscope_trains_on_clips(make, small_checkpoint, tmp_path):
    base = relative(small_checkpoint, tmp_path / "m.safetensors", ((), "off", "none"), image_stream=None)
    task, before, saved = make.run(tmp_path, base=base, stage="full", batch={"video": 2})
    changed = {name for name in before if not torch.equal(before[name], saved["model"][name])}
    assert changed == set(before) and set(task.modes) == {NONE, TEXT}
    assert all(row["loss"] is not None for row in read(tmp_path / "metrics.jsonl"))
    with pytest.raises(ValueError, match="set batch.image and batch.frame to 0"):
        make(base=base, stage="full")
    with pytest.raises(ValueError, match="has no image stream"):
        make(base=base, stage="joint", batch={"video": 2})


def test_a_model_like_dynamicrafter_trains_on_clips(make, small_checkpoint, tmp_path):
    stream = ImageStreamConfig(32, ResamplerConfig(16, 1, 2, 8, tokens=2, frames=3))
    path, inputs = tmp_path / "d.safetensors", ((NumberInput("fps", 24.0, "fps"),), "grey", "first")
    base = relative(small_checkpoint, path, inputs, image_stream=stream, in_channels=8, numbers=("fps",))
    options = {"base": base, "stage": "full", "batch": {"video": 2}}
    task = make(**options, data={"reference": "first", "fps": 6.0}, modes={"text": 0.5, "both": 0.5}, seed=3)
    shown = set()
    for step in range(4):
        (part,) = task.micro_batches(step)
        samples = task.samples(part.batch)
        cond, latents = samples.cond, samples.latents
        assert cond.numbers["fps"].tolist() == [6.0, 6.0] and samples.streams == (True, True)
        assert torch.equal(cond.concat, latents[:, :, :1].expand_as(latents))
        assert (cond.weights == 1).all()  # without a picture it is shown a grey one
        for tokens, mode in zip(cond.image, task.step_modes("video", step), strict=True):
            assert torch.equal(tokens, task.encoders.null_image()[0]) == (mode == TEXT)
            shown.add(mode)
    assert shown == {TEXT, BOTH}
    found = gradients(task)
    assert all(g is not None and g.isfinite().all() for g in found.values())
    with pytest.raises(ValueError, match='set it to "first"'):
        make(**options)
    task.draw_samples(task.module.eval(), tmp_path / "samples", 1)  # a clip's own first frame is its picture
    assert (tmp_path / "samples" / "step_00000001.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "nowhere.safetensors"}, "expected a checkpoint at nowhere.safetensors"),
        ({"batch": {"video": 2, "audio": 1}}, "modalities of a batch are"),
        ({"batch": {"video": 2}, "loss_weights": {"video": 0.0}}, "samples whose loss counts"),
        ({"stage": "lora"}, "expected a LoRA with stage"),
        ({"stage": "everything"}, "stage must be one of"),
        ({"noise": {"offset": -1.0}}, "noise.offset must be at least 0"),
        ({"noise": {"shift": {"video": 0.0}}}, "noise.shift must be above 0 and at most 1000"),
        ({"noise": {"shift": {"video": float("nan")}}}, "noise.shift must be above 0"),
        ({"noise": {"shift": {"video": 1e300}}}, "noise.shift must be above 0"),
        ({"noise": {"offset": float("inf")}}, "expected finite numbers, got others for options.noise.offset"),
        ({"samples": {"count": 0}}, "samples.count must be from 1"),
        ({"seed": 2**64}, "seed must be a number of 64 bits"),
        ({"batch": {"video": -1}}, "batch must be 0 to 1,000,000 samples"),
        ({"name": "../x"}, "name must be a folder's"),
        ({"samples": {"pictures": ("a.png",)}}, "one of samples.pictures for each"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(make, options, message):
    with pytest.raises(ValueError, match=message) as error:
        kinds = {"noise": NoiseOptions, "samples": SampleOptions}
        make(**{name: kinds[name](**v) if name in kinds else v for name, v in options.items()})
    assert str(error.value).count(". ") == 0


def test_a_base_without_a_text_encoder_is_refused(make, small_checkpoint, tmp_path):
    model = checkpoints.load(small_checkpoint, parts=("unet", "vae"))
    checkpoints.save(tmp_path / "part.safetensors", model)
    with pytest.raises(ValueError, match="expected a base with a text encoder"):
        make(base=str(tmp_path / "part.safetensors"))


def test_a_preset_starts_from_random_weights_of_the_seed(make):
    """The same ones on every process; the global generator is left alone."""
    state = torch.get_rng_state()
    a, b, c = (make(base="tiny", batch={"video": 1}, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(state, torch.get_rng_state())
    for part in ("vae", "text_encoder", "image_encoder"):
        first, same, other = (list(task.encoders.part(part).parameters())[0] for task in (a, b, c))
        assert torch.equal(first, same) and not torch.equal(first, other)
    weights = [task.module.input_blocks[0][0].weight for task in (a, b, c)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


# Prepared data


def test_prepared_data_gives_the_losses_of_raw_data(make, media, small_checkpoint, tmp_path):
    sources = {kind: SourceConfig((str(media / kind),)) for kind in ("images", "clips")}
    prepare(
        PrepareConfig(
            base=str(small_checkpoint), out=tmp_path / "prepared", buckets=((64, 64),), frames=4,
            min_frames=2, references=2, dtype="float32", **sources,
        ),
        progress=False,
    )  # fmt: skip
    raw = make(data={"augment": False})
    data = dataclasses.replace(
        raw.options.data,
        **{kind: SourceConfig((str(tmp_path / "prepared" / kind),)) for kind in ("images", "clips")},
    )
    recipe = dataclasses.replace(raw.recipe, options=dataclasses.replace(raw.options, data=data))
    prepared = DenoiseTask(recipe, make.root)
    for step in range(3):
        pairs = list(zip(raw.micro_batches(step), prepared.micro_batches(step), strict=True))
        assert [a.name for a, _ in pairs] == ["image", "frame", "video"]
        for a, b in pairs:
            assert type(a.batch.examples[0]) is not type(b.batch.examples[0])
            assert [e.caption for e in a.batch.examples] == [e.caption for e in b.batch.examples]
            losses = [task.loss(part.batch)[0].item() for task, part in ((raw, a), (prepared, b))]
            assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    another = dataclasses.replace(recipe, options=dataclasses.replace(recipe.options, base="tiny"))
    with pytest.raises(ValueError, match="prepare the data with the checkpoint that is trained"):
        DenoiseTask(another, make.root)


# The recipes


@pytest.mark.parametrize("recipe", [univid_t2v(), univid_adapters(), univid_joint()], ids=lambda r: r.name)
def test_full_size_recipes_are_the_papers(recipe):
    options = recipe.options
    assert recipe.batch["image"] == recipe.batch["frame"] == recipe.batch["video"]  # UniVG: 1 : 1 : 1
    assert (options.data.min_frames, options.data.max_frames) == (8, 24) and options.noise.offset == 0.1
    assert (320, 576) in options.data.buckets and recipe.optim.lr == 1e-5
    assert recipe.engine.checkpointing and recipe.dtype == "bfloat16"
    assert all(recipe.batch[m] % (8 * micro) == 0 for m, micro in recipe.engine.micro_batch.items())


def test_finetune_takes_its_sizes_from_the_base(small_checkpoint):
    recipe = finetune("paper", "clips")
    assert recipe.options.stage == "lora" and recipe.options.lora == LoraConfig()
    assert recipe.options.data.max_frames == 24 and (320, 576) in recipe.options.data.buckets
    assert recipe.dtype == "bfloat16" and recipe.engine.checkpointing
    small = finetune(str(small_checkpoint), "clips", full=True)
    assert small.options.stage == "full" and small.options.data.buckets == ((64, 64),)
    assert small.options.data.max_frames == 3 and small.optim.lr == 1e-5
    with pytest.raises(ValueError, match="got both"):
        finetune(full=True, lora=LoraConfig())
    with pytest.raises(ValueError, match="expected a checkpoint at none.ckpt"):
        finetune("none.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_finetuning_lowers_the_loss_on_its_own_clips(media, tmp_path, full):
    recipe = finetune(
        data=str(media / "clips"), full=full, lora=None if full else LoraConfig(rank=8), steps=40
    )
    optim = dataclasses.replace(recipe.optim, lr=1e-4 if full else 1e-3, warmup_steps=5, ema_decay=0.8)
    data = dataclasses.replace(recipe.options.data, workers=0)
    options = dataclasses.replace(recipe.options, data=data)
    recipe = dataclasses.replace(recipe, optim=optim, options=options, logs=LogsConfig(validate_every=40))
    task = DenoiseTask(recipe, tmp_path)
    with torch.no_grad():
        before = task.validate(task.module.eval())["video_loss"]
    train(recipe, task, tmp_path / recipe.name, progress=False)
    after = read(tmp_path / recipe.name / "metrics.jsonl")[-1]["valid/video_loss"]
    assert after < 0.9 * before

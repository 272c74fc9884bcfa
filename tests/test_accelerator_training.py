"""Training on an accelerator, pretended: no operation over two devices, and one wait for it a step."""

import dataclasses

import pytest
import safetensors.torch
import torch
from accelerator import DEVICE
from denoise_runs import Maker, relative
from preparing import make_config, make_raw
from pretended_training import backward, training_accelerator, watch_steps
from torch.utils.checkpoint import checkpoint

from training import loop
from training.config import EngineConfig, LogsConfig
from training.data.config import SourceConfig
from training.data.samples import PreparedExample
from training.lora import LoraConfig
from training.options import DistillOptions, NoiseOptions, SampleOptions
from training.prepare import WorkConfig, prepare
from training.recipes_univid import univid_adapters, univid_joint, univid_t2v
from training.runs import task_of
from univid import checkpoints
from univid.config import ImageStreamConfig, NumberInput, ResamplerConfig
from univid.unet import UNet

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
READ = "a value was read back"
# Every kind of layer, and attention in the middle alone: pretended operations are slow.
SHALLOW = {"channel_mult": (1, 2), "attention_levels": (False, False)}


@pytest.fixture(scope="module")
def make(media, small_checkpoint, tmp_path_factory):
    """Recipes for the small checkpoint with few of its layers."""
    root = tmp_path_factory.mktemp("runs")
    model = checkpoints.load(small_checkpoint)
    temporal = dataclasses.replace(model.config.unet.temporal, conv_kernels=(3, 5), segment_frames=(2, 1))
    config = dataclasses.replace(model.config.unet, temporal=temporal, **SHALLOW)
    model.config, model.unet = dataclasses.replace(model.config, unet=config), UNet(config)
    checkpoints.save(root / "base.safetensors", model)
    return Maker(media, root / "base.safetensors", root)


@pytest.fixture
def modelscope(small_checkpoint, tmp_path):
    inputs = (), "off", "none"
    return relative(small_checkpoint, tmp_path / "m.safetensors", inputs, image_stream=None, **SHALLOW)


@pytest.fixture
def dynamicrafter(small_checkpoint, tmp_path):
    stream = ImageStreamConfig(32, ResamplerConfig(16, 1, 2, 8, tokens=2, frames=3))
    inputs = (NumberInput("fps", 24.0, "fps"),), "grey", "first"
    config = {"image_stream": stream, "in_channels": 8, "numbers": ("fps",)} | SHALLOW
    return relative(small_checkpoint, tmp_path / "d.safetensors", inputs, **config)


def check_run(recipe, root, monkeypatch):
    """Train: the loss must not wait for the device, and a step once, for whether it is finite."""
    task = task_of(recipe, root)
    with training_accelerator() as seen:
        waits = watch_steps(monkeypatch, seen)
        task.encoders.device = DEVICE
        task.encoders.whole(task.module)  # or the first loss would bring them there
        if recipe.options.noise.distill:
            task.teacher.to(DEVICE)
        final = loop.train(recipe, task, root / recipe.name, device=DEVICE, progress=False)
    assert final.parent == root / recipe.name
    assert waits == [[READ]] * recipe.steps
    modules = [task.module, *task.encoders.parts.values()]
    assert all(parameter.device == DEVICE for module in modules for parameter in module.parameters())
    assert any(parameter.grad is not None for parameter in task.module.parameters())


@pytest.mark.parametrize(
    "recipe, batch",
    [
        (univid_t2v(), {"image": 1, "video": 1}),
        (univid_adapters(), {"video": 1}),
        (univid_joint(), {"video": 1}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_recipes_run_there_and_wait_once_a_step(make, tmp_path, monkeypatch, recipe, batch):
    """As at full size, but for the network's, the data's and the batch's."""
    assert recipe.dtype == "bfloat16" and recipe.engine.checkpointing
    small = make.recipe().options
    samples = SampleOptions(validation=1)
    options = {"base": small.base, "data": small.data, "start": None, "samples": samples}
    recipe = dataclasses.replace(
        recipe,
        options=dataclasses.replace(recipe.options, **options),
        batch=batch,
        steps=1,
        logs=LogsConfig(validate_every=1),
    )
    check_run(recipe, tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", ["lora", "full", "modelscope", "dynamicrafter", "distill"])
def test_finetuning_runs_there_and_waits_once_a_step(make, tmp_path, monkeypatch, request, kind):
    options = {"stage": "full", "engine": EngineConfig(checkpointing=True), "batch": {"video": 1}}
    if kind == "lora":
        options |= {"stage": "lora", "lora": LoraConfig(rank=2), "frozen_dtype": "bfloat16"}
    elif kind == "distill":
        options |= {
            "stage": "distill",
            "lora": LoraConfig(rank=2),
            "noise": NoiseOptions(distill=DistillOptions()),
        }
    elif kind != "full":
        options |= {"base": request.getfixturevalue(kind)}
    if kind == "dynamicrafter":
        options |= {"data": {"reference": "first"}}
    check_run(dataclasses.replace(make.recipe(**options), dtype="bfloat16", steps=1), tmp_path, monkeypatch)


@pytest.mark.parametrize("prepared", [False, True])
def test_samples_are_brought_there_without_waiting(make, prepared):
    task = make(batch={"video": 2})
    batch = next(task.feed(0))
    if prepared:
        batch.examples[:] = [
            PreparedExample(
                example.key, example.caption, latents=torch.randn(4, 3, 8, 8).half(),
                text=torch.randn(77, 32).half(), image=torch.randn(65, 32).half(),
            )
            for example in batch.examples
        ]  # fmt: skip
    with training_accelerator() as seen:
        task.encoders.device = DEVICE
        task.encoders.whole(task.module.to(DEVICE))
        with seen.without_waiting():
            samples = task.samples(batch)
    cond = samples.cond
    for tensor in (samples.latents, samples.noise, samples.timesteps, cond.text, cond.image):
        assert tensor.device == DEVICE
    assert cond.text.shape == (2, 77, 32) and cond.image.shape == (2, 65, 32)
    assert cond.weights.is_cpu  # which say what is computed


def test_encoding_runs_there(small_checkpoint, tmp_path, monkeypatch):
    """Raw shards to prepared ones; of the encoders' answers there are only sizes, so no bytes."""
    stored = []
    monkeypatch.setattr(safetensors.torch, "save", lambda tensors: stored.append(tensors) or b"")
    config = make_config(small_checkpoint, tmp_path / "out", make_raw(tmp_path) / "clips" / "part-0.tar")
    config = dataclasses.replace(
        config,
        images=SourceConfig((str(tmp_path / "pictures"),)),
        work=WorkConfig(device=str(DEVICE), precision="bfloat16"),
    )
    with training_accelerator() as seen:
        summary = prepare(config, progress=False)
    assert (summary.samples, summary.bad) == (16, 0) and len(stored) == 16
    assert {tensor.device.type for tensors in stored for tensor in tensors.values()} == {"cpu"}
    assert {tuple(tensors["latents"].shape) for tensors in stored} == {
        (4, frames, 8, width) for frames in (1, 12) for width in (8, 16)
    }
    assert {tuple(tensors["text"].shape) for tensors in stored} == {(77, 32)}
    assert {len(tensors["image"]) for tensors in stored} == {1, 3}  # of a picture, of a clip
    assert any("to cpu" in wait for wait in seen.waits)


def test_the_pretended_backward_pass_is_pytorchs():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    )
    x = torch.randn(2, 3, 8, 8)

    def gradients(differentiate):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = checkpoint(network, x, use_reentrant=False)
            loss = (y.float() * torch.arange(1, 6) + y.mean()).square().mean()
        differentiate(loss)
        return [parameter.grad.clone() for parameter in network.parameters()]

    for ours, theirs in zip(gradients(backward), gradients(torch.autograd.backward), strict=True):
        assert torch.equal(ours, theirs)

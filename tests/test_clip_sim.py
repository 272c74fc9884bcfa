"""CLIP-SIM and CLIP-FID: embeddings against open_clip by hand; shuffled captions agree less."""

import json

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from metric_weights import replace, unchecked, write_clips
from PIL import Image
from torch.nn.functional import normalize

from training.__main__ import main
from training.metrics.extract import load
from training.metrics.registry import METRICS
from training.tiny import shapes
from univid import checkpoints
from univid.checkpoints import built_in_path
from univid.encoders import preprocess
from univid.video import from_uint8

CPU = torch.device("cpu")
CLIPS = 12


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Clips of the built-in world with their captions."""
    folder = tmp_path_factory.mktemp("scenes")
    videos, captions = shapes.batch(range(CLIPS), frames=12, size=64, seed=3)
    videos = videos.numpy()
    return write_clips(folder / "clips", videos, prompt=captions.__getitem__), captions, videos


def score(folder, metrics, weights, out, *words):
    main(["score", str(folder), "--metrics", metrics, "--weights", str(weights), "--out", str(out),
          "--cache", str(out.parent / "features"), "--resamples", "50", *map(str, words)])  # fmt: skip
    return json.loads(out.read_text())


class BuiltIn:
    """The built-in checkpoint's own towers as CLIP."""

    def __init__(self, path, device):
        model = checkpoints.load(path, parts=("text_encoder", "image_encoder"))
        self.text, self.vision = model.text_encoder.float(), model.image_encoder.float()
        self.size = model.config.vision.image_size

    def __call__(self, frames):
        pixels = from_uint8(frames)[0].transpose(0, 1)
        return self.vision.pooled(preprocess(pixels, self.size)).numpy()

    @torch.inference_mode()
    def texts(self, prompts):
        return self.text.pooled(self.text.tokenize(prompts)).numpy()


def test_shuffled_captions_agree_less(scenes, tmp_path, monkeypatch):
    """By towers that know what they see: those of the built-in checkpoint."""
    folder, captions, _ = scenes
    width = checkpoints.load(built_in_path(), parts=()).config.text.embed_dim
    replace(monkeypatch, "clip-sim", load=lambda path, device: BuiltIn(built_in_path(), device), width=width,
            name="built-in", files=())  # fmt: skip
    true = score(folder, "clip-sim", tmp_path, tmp_path / "true.json")["metrics"]["clip-sim"]
    others = np.roll(captions, 1)
    for number, caption in enumerate(others):
        (folder / f"clip {number:03d}.txt").write_text(caption, encoding="utf-8")
    shuffled = score(folder, "clip-sim", tmp_path, tmp_path / "false.json")["metrics"]["clip-sim"]
    for number, caption in enumerate(captions):
        (folder / f"clip {number:03d}.txt").write_text(caption, encoding="utf-8")
    assert true["low"] > shuffled["high"] and true["n"] == CLIPS == shuffled["n"]


@pytest.fixture(scope="module")
def random_clip(tmp_path_factory):
    """open_clip's ViT-B-32 with OpenAI's activation and random weights, and a folder of them."""
    torch.manual_seed(0)
    network = open_clip.create_model("ViT-B-32-quickgelu").eval()
    folder = tmp_path_factory.mktemp("clip")
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(state, folder / "ViT-B-32.safetensors")
    return network, folder


@torch.inference_mode()
def test_figures_are_open_clips(random_clip, scenes, tmp_path):
    network, weights = random_clip
    folder, captions, videos = scenes
    videos = videos[:2]
    small = write_clips(tmp_path / "two", videos, prompt=captions.__getitem__)
    result = score(small, "clip-sim", weights, tmp_path / "out.json")
    _, _, transform = open_clip.create_model_and_transforms("ViT-B-32-quickgelu", load_weights=False)
    tokens = open_clip.get_tokenizer("ViT-B-32")(captions[:2])
    texts = normalize(network.encode_text(tokens), dim=-1)
    cosines = []
    for frames, text in zip(videos, texts, strict=True):
        pictures = torch.stack([transform(Image.fromarray(frame)) for frame in frames])
        cosines.append((normalize(network.encode_image(pictures), dim=-1) @ text).mean())
    figure = result["metrics"]["clip-sim"]
    assert figure["value"] == pytest.approx(float(sum(cosines)) / 2, abs=1e-5)
    assert figure["weights"]["file"] == "ViT-B-32.safetensors" and figure["network"] == "CLIP ViT-B-32 openai"
    # a control: without the quick GELU, which no file names, the numbers are others
    other = open_clip.create_model("ViT-B-32").eval()
    other.load_state_dict(network.state_dict())
    assert (normalize(other.encode_text(tokens), dim=-1) - texts).abs().max() > 1e-3


@pytest.mark.slow
@torch.no_grad()
def test_openais_own_file_is_read(random_clip, tmp_path, monkeypatch):
    """An archive of TorchScript, in half precision and with three numbers that are no weights."""
    network, _ = random_clip
    half = open_clip.create_model("ViT-B-32-quickgelu").eval()
    half.load_state_dict(network.state_dict())
    for name in ("input_resolution", "context_length", "vocab_size"):
        vars(half).pop(name, None)
        half.register_buffer(name, torch.tensor(7))
    given = torch.rand(1, 3, 224, 224), torch.ones(1, 77, dtype=torch.long)
    archive = torch.jit.trace(half, given, check_trace=False)
    archive.half().save(tmp_path / "ViT-B-32.pt")
    unchecked(monkeypatch, "clip-fid")
    ours = load(METRICS["clip-fid"].extractor, tmp_path, CPU).features
    frames = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    expected = network.half().float().encode_image(ours.preprocess(Image.fromarray(frames[0]))[None])
    np.testing.assert_allclose(ours(frames), expected.detach(), atol=1e-4)


def test_videos_without_prompts_are_said(scenes, tmp_path):
    folder = write_clips(tmp_path / "mute", scenes[2][:2])
    with pytest.raises(ValueError, match="clip-sim: 2 of 2 videos have no prompt; name each in a manifest"):
        score(folder, "clip-sim", tmp_path, tmp_path / "out.json")

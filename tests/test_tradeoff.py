"""The curve of text agreement against picture agreement, its towers and its picture."""

import dataclasses
import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from training.metrics import charts, tradeoff
from training.metrics.towers import open_clip_towers, own_towers
from training.metrics.tradeoff import Pair, Plan, check_model, measure, own_pairs
from training.tiny import shapes
from training.tiny.evaluate import PROTOCOL
from univid import checkpoints
from univid.files.hashes import noted_sha256
from univid.pipeline import generate
from univid.video import to_uint8

PROMPTS = ["a red circle on a white background", "a blue square on a black background", "a green cross"]


@pytest.fixture(scope="module")
def model(small_checkpoint):
    return checkpoints.load(small_checkpoint, dtype=torch.float32)


@pytest.fixture(scope="module")
def built_in():
    return checkpoints.load("built-in", dtype=torch.float32)


def pictures(count, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_the_way_of_the_weights():
    steering = [tuple(row["weights"]) for row in PROTOCOL["rows"] if row["group"] == "steering"]
    assert Plan().weights() == steering
    assert Plan(points=2).weights() == [(1, 0), (0, 1)]
    assert all(max(pair) == 1 for pair in Plan(points=8).weights())
    for wrong in ({"points": 1}, {"batch": 0}):
        with pytest.raises(ValueError, match="at least"):
            Plan(**wrong)


def test_own_towers_tell_what_is_shown(built_in):
    towers = own_towers(built_in)
    drawn = [shapes.clip(index, seed=7, frames=2) for index in range(40)]
    captions = sorted({scene.still_caption for scene in shapes.SCENES})
    seen, words = towers.pictures(np.stack([frames[0] for frames, _ in drawn])), towers.words(captions)
    assert seen.norm(dim=1).numpy() == pytest.approx(1) and words.norm(dim=1).numpy() == pytest.approx(1)
    right = [captions.index(scene.still_caption) for _, scene in drawn]
    assert ((seen @ words.T).argmax(1) == torch.tensor(right)).float().mean() > 0.9  # of 72
    assert ((seen.roll(1, 0) @ words.T).argmax(1) == torch.tensor(right)).float().mean() < 0.2
    together, alone = towers.pictures(drawn[0][0])[0], towers.pictures(drawn[0][0][:1])[0]
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.fixture
def small(tmp_path):
    """The name of a small model of open_clip's kind."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "small-of-a-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    return "small-of-a-test"


def test_open_clip_towers_are_open_clips(small, tmp_path):
    reference = open_clip.create_model(small).eval()
    weights = tmp_path / "small.safetensors"
    save_file(reference.state_dict(), weights)
    towers = open_clip_towers(small, weights)
    frames = pictures(3, 40)
    resize = open_clip.image_transform(32, is_train=False)
    with torch.inference_mode():
        images = reference.encode_image(torch.stack([resize(Image.fromarray(f)) for f in frames]))
        texts = reference.encode_text(open_clip.get_tokenizer("small-of-a-test")(PROMPTS))
    by_hand = torch.cosine_similarity(images[:, None], texts[None], dim=-1)
    found = towers.pictures(frames) @ towers.words(PROMPTS).T
    assert torch.allclose(found, by_hand, atol=1e-5) and not torch.allclose(found.T, by_hand, atol=1e-3)

    wrong = "does not hold the weights of small-of-a-test"
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "text.pt").write_text("no weights")
    save_file({"logit_scale": torch.zeros(())}, tmp_path / "part.safetensors")
    torch.save(Pair, tmp_path / "code.pt")
    for path, words in (
        (tmp_path / "cut.safetensors", wrong),
        (tmp_path / "text.pt", wrong),
        (tmp_path / "part.safetensors", wrong),
        (tmp_path / "code.pt", wrong),
        (tmp_path / "none.pt", "which is none"),
    ):
        with pytest.raises(ValueError, match=words):
            open_clip_towers(small, path)
    with pytest.raises(ValueError, match="expected an open_clip model such as ViT-B-32"):
        open_clip_towers("ViT-nothing", weights)


@pytest.mark.filterwarnings("ignore")  # of tracing
def test_openais_archive_is_opened_by_its_checksum_alone(small, tmp_path, monkeypatch):
    """TorchScript can run code, so no other one is; the network has OpenAI's quick GELU."""
    network = open_clip.create_model(small, force_quick_gelu=True).eval()
    given = torch.rand(1, 3, 32, 32), torch.ones(1, 77, dtype=torch.long)
    path = tmp_path / "openai.pt"
    torch.jit.trace(network, given, check_trace=False).save(path)
    with pytest.raises(ValueError, match="openai.pt does not hold the weights of small-of-a-test"):
        open_clip_towers(small, path)
    address = f"https://nowhere/{noted_sha256(path)}/openai.pt"
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"url": address})
    with torch.inference_mode():
        expected = network.encode_text(open_clip.get_tokenizer(small)(PROMPTS))
    words = open_clip_towers(small, path).words(PROMPTS)
    assert torch.allclose(words, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5)


def test_agreements_are_mean_cosines(model):
    pairs = [Pair(p, picture, "drawn") for p, picture in zip(PROMPTS, pictures(3, 48), strict=True)]
    plan, towers = Plan(points=3, seed=4, batch=2), own_towers(model)
    found, examples = measure(model, pairs, towers, plan)
    assert [(p["text_weight"], p["image_weight"]) for p in found["points"]] == [(1, 0), (1, 1), (0, 1)]
    sized = examples[1][0]  # of 32 x 32, as the model makes them
    image = torch.from_numpy(sized)[None].permute(0, 3, 1, 2) / 127.5 - 1
    clip = to_uint8(generate(model, PROMPTS[1], image, text_weight=1, image_weight=1, seed=4 + 1))
    assert np.abs(clip[1].astype(int) - examples[1][2]).max() <= 2
    frames = towers.pictures(clip).mean(0)
    point = found["points"][1]
    assert point["clips"]["text"][1] == pytest.approx(float(towers.words([PROMPTS[1]])[0] @ frames), abs=2e-3)
    assert point["clips"]["picture"][1] == pytest.approx(
        float(towers.pictures(sized[None])[0] @ frames), abs=2e-3
    )
    values = point["clips"]["text"]
    assert point["text"]["value"] == pytest.approx(np.mean(values))
    half = 4.302653 * np.std(values, ddof=1) / 3**0.5  # Student's t, two degrees of freedom
    assert point["text"]["high"] - point["text"]["value"] == pytest.approx(half, rel=1e-4)
    assert found["unrelated"].keys() == {"text", "picture"} and json.dumps(found)
    again, _ = measure(model, pairs, towers, dataclasses.replace(plan, batch=1))
    for one, other in zip(found["points"], again["points"], strict=True):
        assert one["clips"]["text"] == pytest.approx(other["clips"]["text"], abs=2e-3)


def test_one_pair_has_no_interval_and_nothing_unrelated(model):
    found, _ = measure(model, [Pair("a cat", pictures(1)[0], "drawn")], own_towers(model), Plan(points=2))
    assert found["points"][0]["text"]["low"] is None and found["unrelated"] == {"text": None, "picture": None}
    assert "unrelated" not in tradeoff.report(found)


def test_a_prompts_picture_is_of_another_prompt(model):
    pairs = own_pairs(model, [*PROMPTS, PROMPTS[0]], Plan(batch=3, seed=2))
    assert [pair.source for pair in pairs] == [f"made of: {PROMPTS[i]}" for i in (1, 2, 0, 1)]
    made = to_uint8(generate(model, PROMPTS[1], seed=2 + 1))
    assert np.abs(made[1].astype(int) - pairs[0].picture).max() <= 2
    assert (pairs[0].picture == pairs[3].picture).all() and (pairs[0].picture != pairs[1].picture).any()
    for prompts in ([], ["a cat"], ["a cat", "a cat"]):
        with pytest.raises(ValueError, match="at least 2 different prompts"):
            own_pairs(model, prompts, Plan())


@pytest.mark.slow
def test_the_built_in_model_goes_from_text_to_picture(built_in):
    prompts = [
        "a red circle moves right on a white background",
        "a blue square moves up on a black background",
    ]
    prompts += ["a green triangle moves left on a gray background"]
    plan = Plan(points=3, batch=3)
    found, _ = measure(built_in, own_pairs(built_in, prompts, plan), own_towers(built_in), plan)
    text, picture = ([point[of]["value"] for point in found["points"]] for of in ("text", "picture"))
    assert text[0] > text[1] > text[2] and picture[0] < picture[1] < picture[2]
    assert text[0] > 0.4 > 0.2 > found["unrelated"]["text"]
    assert picture[2] > 0.7 > 0.3 > found["unrelated"]["picture"]


def test_the_picture_shows_the_curve(tmp_path):
    def point(text, picture, agreement):
        figures = {"value": agreement, "low": agreement - 0.1, "high": agreement + 0.1}
        other = figures | {"value": -agreement, "low": None, "high": None}
        return {"text_weight": text, "image_weight": picture, "text": figures, "picture": other}

    found = {
        "clip": "a test's towers, sha256 abc",
        "points": [point(1, 0, 0.8), point(0, 1, 0.2)],
        "unrelated": {"text": 0.1, "picture": None},
        "rows": [{"prompt": "a $^cat" * 100, "picture": "drawn"}] * 5,
    }
    examples = [list(pictures(3, 16, seed)) for seed in range(5)]
    charts.tradeoff(found, examples, "title", tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.format == "PNG" and image.width > 900
        drawn = np.asarray(image.convert("RGB"))
    found["points"].reverse()
    charts.tradeoff(found, examples, "title", tmp_path / "again.png")
    with Image.open(tmp_path / "again.png") as image:
        assert (np.asarray(image.convert("RGB")) != drawn).any()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["again.png", "curve.png"]


def test_refusals(model):
    check_model(model)
    with pytest.raises(ValueError, match="expected prompts, got none"):
        measure(model, [], own_towers(model), Plan())
    with pytest.raises(ValueError, match="without its picture tower; name one with --clip"):
        own_towers(dataclasses.replace(model, image_encoder=None))
    with pytest.raises(ValueError, match="without its text tower"):
        own_towers(dataclasses.replace(model, text_encoder=None))
    with pytest.raises(ValueError, match="holds all parts"):
        check_model(dataclasses.replace(model, vae=None))
    unet = dataclasses.replace(model.config.unet, image_stream=None)
    with pytest.raises(ValueError, match="steer by their weights, got one that does without"):
        check_model(dataclasses.replace(model, config=dataclasses.replace(model.config, unet=unet)))


def test_imported_towers_may_lack_what_tokens_do_not_need(small_checkpoint):
    model = checkpoints.load(small_checkpoint, dtype=torch.float32)
    torch.nn.init.zeros_(model.text_encoder.text_projection)
    with pytest.raises(ValueError, match="a text tower without its last layer"):
        own_towers(model)

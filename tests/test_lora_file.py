"""A LoRA's file: what it says, what is refused, and its use in the library and on the command line."""

import copy
import dataclasses
import resource

import pytest
import torch
from adapters import CONFIG, KINDS, adapted, joined, network, teach
from reference import difference, randn, randomize
from safetensors import safe_open
from safetensors.torch import save_file

from training.lora import LoraConfig, add_lora, lora_of, save_lora
from univid import __main__ as command_line
from univid import generate, load
from univid.checkpoints.lora import apply_lora, merge, read_lora
from univid.unet import UNet
from univid.video import read_video


@pytest.fixture(scope="module")
def trained():
    return adapted("univid")


@pytest.fixture
def saved(trained, tmp_path):
    path = tmp_path / "motion.safetensors"
    save_lora(path, trained, CONFIG, base="univid-tiny", steps=400, info={"caption": "a cat"})
    return path, lora_of(trained)


def test_the_file_says_what_it_is(saved):
    path, lora = saved
    with safe_open(path, "pt") as file:
        words, names = file.metadata(), set(file.keys())
        down = file.get_tensor("diffusion_model.middle_block.1.proj_in.lora_A.weight")
        alpha = file.get_tensor("diffusion_model.middle_block.1.proj_in.alpha")
    assert words == {
        "format": "univid-lora", "format_version": "1", "base": "univid-tiny", "rank": "3", "alpha": "2",
        "parts": "all", "steps": "400", "caption": "a cat",
    }  # fmt: skip
    assert names == joined(
        "diffusion_model.", sorted(lora.layers), (".lora_A.weight", ".lora_B.weight", ".alpha")
    )
    assert down.dtype == torch.float16 and down.shape == (3, 32) and alpha.item() == 2.0
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_read_is_what_was_written(trained, tmp_path, dtype):
    path = tmp_path / "new folder" / "lora.safetensors"
    save_lora(path, trained, CONFIG, base="univid-tiny", steps=1, dtype=dtype)
    found, lora = read_lora(path), lora_of(trained)
    assert found.layers.keys() == lora.layers.keys() and found.info["parts"] == "all"
    for name, layer in found.layers.items():
        assert torch.equal(layer.up, lora.layers[name].up.to(dtype)) and layer.alpha == 2.0
        assert torch.equal(layer.down, lora.layers[name].down.to(dtype))


def test_a_file_without_alpha_acts_in_full(tmp_path):
    """As peft writes them, and as the host reads them: alpha is the rank."""
    path, name = tmp_path / "peft.safetensors", "diffusion_model.middle_block.1.proj_in"
    down, up = randn(2, 32), randn(32, 2, seed=1)
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, path)
    unet = network("univid")
    merge(unet, read_lora(path))
    added = unet.middle_block[1].proj_in.weight - network("univid").middle_block[1].proj_in.weight
    assert (added - up @ down).abs().max() < 1e-5


def test_nothing_half_written_replaces_a_file(saved, trained):
    path, _ = saved
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))  # a disk that is full after 4096 bytes
    try:
        with pytest.raises(ValueError, match="motion.safetensors cannot be written .*; name another output"):
            save_lora(path, trained, CONFIG, base="other", steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    with pytest.raises(ValueError, match="nan or infinite weights in diffusion_model.*float16"):
        save_lora(path, teach(copy.deepcopy(trained), size=1e6), CONFIG, base="other", steps=1)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def damage(source, target, change):
    """A copy of a LoRA whose tensors went through `change`."""
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, target)
    return target


LAYER = "diffusion_model.middle_block.1.proj_in"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.clear(), "holds no tensors"),
        (lambda t: t.pop(f"{LAYER}.lora_A.weight"), "half a pair of matrices for middle_block.1.proj_in"),
        (lambda t: t.update({f"{LAYER}.lora_B.weight": randn(32, 4)}), "do not fit each other"),
        (lambda t: t.update({f"{LAYER}.lora_B.weight": randn(3)}), "do not fit each other"),
        (lambda t: t.update({f"{LAYER}.lora_A.weight": torch.tensor(1.0)}), "do not fit each other"),
        (lambda t: t.update({f"{LAYER}.alpha": randn(2)}), "do not fit each other"),
        (lambda t: t.update({f"{LAYER}.alpha": torch.tensor(float("inf"))}), "nan or infinite weights"),
        (lambda t: t[f"{LAYER}.lora_A.weight"].fill_(float("nan")), "nan or infinite weights"),
        (lambda t: t.update({f"{LAYER}.dora_scale": randn(32, 1)}), "not a LoRA as UniVid writes it"),
        (lambda t: t.update({"lora_unet_x.lora_down.weight": randn(2, 2)}), "ComfyUI's own loader"),
    ],
)
def test_damaged_and_other_loras_are_refused(saved, tmp_path, change, words):
    with pytest.raises(ValueError, match=words) as error:
        read_lora(damage(saved[0], tmp_path / "other.safetensors", change))
    assert "other.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_other_files_are_refused(saved, small_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="not a LoRA as UniVid writes it"):
        read_lora(small_checkpoint)
    with pytest.raises(ValueError, match="cannot be read"):
        read_lora(tmp_path / "missing.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(saved[0].read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        read_lora(cut)


def test_a_lora_for_another_network_changes_nothing(trained):
    lora = lora_of(trained)
    wider = randomize(UNet(dataclasses.replace(KINDS["univid"], model_channels=32)))
    for unet, words in (
        (wider, "another size, with .* instead of .*trained on this model"),
        (network("family"), "another network, as it has .*in_temporal.conv.* trained on this model"),
        (trained, "another network"),
    ):
        before = copy.deepcopy(unet.state_dict())
        with pytest.raises(ValueError, match=words) as error:
            merge(unet, lora)
        assert str(error.value).count(". ") == 0
        assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    for strength in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be a finite number"):
            merge(network("univid"), lora, strength)


def test_wrong_settings_are_refused(trained, tmp_path):
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"parts": "temporal"}):
        with pytest.raises(ValueError, match="expected a rank|parts must be one of"):
            LoraConfig(**wrong)
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(trained, CONFIG, seed=0)
    still = dataclasses.replace(KINDS["univid"].temporal, attention=False)
    unet = UNet(dataclasses.replace(KINDS["univid"], temporal=still))
    with pytest.raises(ValueError, match="no layers of the parts 'temporal-attention'"):
        add_lora(unet, LoraConfig(parts="temporal-attention"), seed=0)
    with pytest.raises(ValueError, match="without any adapted layer"):
        save_lora(tmp_path / "none.safetensors", unet, CONFIG, base="x", steps=0)
    assert not list(tmp_path.iterdir())


# Its use


@pytest.fixture
def small_lora(small_checkpoint, tmp_path):
    """A LoRA of the small checkpoint with something to say."""
    unet, path = load(small_checkpoint).unet.float(), tmp_path / "small.safetensors"
    add_lora(unet, CONFIG, seed=5)
    save_lora(path, teach(unet, size=2.0), CONFIG, base="small", steps=1, dtype=torch.float32)
    return path


def test_a_model_with_a_lora_makes_another_video(small_checkpoint, small_lora):
    model, plain = load(small_checkpoint), load(small_checkpoint)
    expected = generate(plain, "a red circle")
    apply_lora(model, small_lora, 0.0)
    assert torch.equal(generate(model, "a red circle"), expected)
    apply_lora(model, small_lora, 0.5)
    apply_lora(model, small_lora, 0.5)
    twice = generate(model, "a red circle")
    assert difference(twice, expected) > 1e-2
    apply_lora(plain, small_lora)
    assert difference(generate(plain, "a red circle"), twice) < 1e-3
    model.unet = None
    with pytest.raises(ValueError, match="without a U-Net"):
        apply_lora(model, small_lora)


def test_the_command_line_takes_loras(small_checkpoint, small_lora, tmp_path):
    def frames(*words):
        out = tmp_path / f"clip{len(list(tmp_path.iterdir()))}.mp4"
        given = ["generate", "--checkpoint", small_checkpoint, "--prompt", "a red circle", "--out", out]
        assert command_line.main([str(word) for word in (*given, *words)]) == 0
        return read_video(out)[0]

    plain, whole = frames("--lora", f"{small_lora}:0"), frames("--lora", small_lora)
    half = frames("--lora", f"{small_lora}:0.5")
    both = frames("--lora", f"{small_lora}:0.25", "--lora", f"{small_lora}:0.25")
    assert not torch.equal(whole, plain) and not torch.equal(whole, half)
    assert (both - half).abs().mean() < 0.3 * (whole - plain).abs().mean()


def test_a_strength_follows_the_last_colon(tmp_path):
    file = tmp_path / "odd:2"
    file.touch()
    for given, expected in (
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("C:a.safetensors:-0.5", ("C:a.safetensors", -0.5)),
        ("C:a.safetensors", ("C:a.safetensors", 1.0)),
        (f"{file}", (f"{file}", 1.0)),  # a file that is there is meant as it is
        (f"{file}:0.3", (f"{file}", 0.3)),
    ):
        assert command_line.split_strength(given) == expected


@pytest.mark.parametrize("given", ["missing.safetensors", "missing.safetensors:1", "{}:x", "{}:nan", ":1"])
def test_the_command_line_refuses_in_one_line(small_checkpoint, small_lora, tmp_path, capsys, given):
    out = tmp_path / "clip.mp4"
    words = ["--checkpoint", small_checkpoint, "--prompt", "x", "--lora", given.format(small_lora)]
    assert command_line.main(["generate", *map(str, words), "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("univid: error: ") and "\n" not in error and not out.exists()

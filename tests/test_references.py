"""How many reference frames PSTAttn looks at, and PSTAttn off, level by level: library and command line."""

import copy
from pathlib import Path

import pytest
import torch
from reference import SMALL, difference, randn, randomize
from torch.utils.flop_counter import FlopCounterMode

from univid import cli_shared, generate, load, video
from univid.blocks import TransformerBlock
from univid.cli import build_parser
from univid.conditioning import Conditioning
from univid.layers import centers_by_level
from univid.pipeline import Sampling
from univid.presets import PAPER, PROFILES
from univid.unet import UNet

PAGE = Path(__file__).parents[1] / "nodes/web/docs/UniVidPSTOptions.md"
PROMPT = "a red circle moves left on a black background"
TIMESTEPS = torch.tensor([3, 800])


@pytest.fixture(scope="module")
def unet():
    return randomize(UNet(SMALL))


@pytest.fixture(scope="module")
def model(small_checkpoint):
    return load(small_checkpoint, dtype=torch.float32)


# The network


def predict(unet, references, frames=6):
    cond = Conditioning(randn(2, 7, 48, seed=1), randn(2, 6, 40, seed=2), torch.ones(2, 2))
    with torch.no_grad():
        return unet(randn(2, 4, frames, 8, 8), TIMESTEPS, cond, reference_frames=references)


@pytest.mark.parametrize("off", [(1,), (2,), (4,), (8,), (1, 2), (1, 2, 4, 8)], ids=str)
def test_without_references_is_with_pst_attention_of_zero(unet, off):
    silent = copy.deepcopy(unet)
    for layer in silent.modules():
        if isinstance(layer, TransformerBlock) and layer.factor in off:
            for parameter in layer.pst_attn.to_out.parameters():
                parameter.data.zero_()
    skipped = predict(unet, centers_by_level(dict.fromkeys(off, 0), 6))
    assert torch.equal(skipped, predict(silent, None))
    assert difference(skipped, predict(unet, None)) > 1e-3


def test_more_than_the_clip_has_are_all(unet):
    every = predict(unet, centers_by_level({1: 512}, 6))
    assert torch.equal(every, predict(unet, {1: range(6)}))
    assert centers_by_level({1: 0, 2: 2, 4: 9}, 4)[2].tolist() == [1, 3]


# The library


def test_they_reach_the_network(model):
    frames = model.profile.frames

    def make(references):
        return generate(model, PROMPT, sampling=Sampling(references=references))

    trained = make(None)
    assert torch.equal(make({}), trained)
    assert torch.equal(make({8: frames}), trained)  # the coarsest level looks at all frames anyway
    off, all_off = make({1: 0}), make(dict.fromkeys((1, 2, 4, 8), 0))
    assert not torch.equal(off, trained) and not torch.equal(all_off, off)
    assert torch.equal(make({1: 99}), make({1: frames})) and not torch.equal(make({1: 99}), trained)
    silent = copy.deepcopy(model)
    for name, parameter in silent.unet.named_parameters():
        if "pst_attn.to_out" in name:
            parameter.data.zero_()
    assert torch.equal(all_off, generate(silent, PROMPT))


def test_a_profile_fills_what_was_left_open():
    asked = Sampling(steps=3, references={1: 0})
    filled = asked.by(PROFILES["paper"])
    assert (filled.steps, filled.references) == (3, {1: 0})
    assert filled.sampler == PROFILES["paper"].sampler and None not in (filled.sigma_schedule, filled.eta)


@pytest.mark.parametrize(
    ("references", "words"),
    [
        ({16: 1}, r"expected references for levels among \(1, 2, 4, 8\), as this model has, got \[16\]"),
        ({1: -1}, "expected a number of reference frames from 0 .* got -1 for level 1"),
        ({2: 1.5}, "got 1.5 for level 2"),
    ],
)
def test_what_is_no_number_of_a_level_is_refused(model, references, words):
    with pytest.raises(ValueError, match=words):
        generate(model, PROMPT, sampling=Sampling(references=references))


# The command line


@pytest.mark.parametrize("command", ["generate", "sweep"])
def test_the_command_line_hands_them_on(model, command):
    words = [command, "--prompt", PROMPT, "--image", "in.gif", "--out", "out"]
    for given, expected in ((["1=off", "8 = 24"], {1: 0, 8: 24}), (["2=1"], {2: 1})):
        args = build_parser().parse_args([*words, "--references", *given])
        assert cli_shared.common(args, model.profile)["sampling"] == Sampling(references=expected)
    assert not cli_shared.common(build_parser().parse_args(words), model.profile)["sampling"].references


def test_a_sweep_takes_them(run, tmp_path):
    video.write_video(torch.zeros(1, 3, 1, 32, 32), tmp_path / "in.gif", 8)
    common = ("--prompt", PROMPT, "--image", "in.gif", "--text-weights", 1, "--image-weights", 0)
    for name, more in {"plain.png": (), "off.png": ("--references", "1=off", "2=off")}.items():
        assert run("sweep", *common, *more, "--out", name)[0] == 0
    plain, off = (video.read_image(tmp_path / f"{name}.png") for name in ("plain", "off"))
    assert not torch.equal(plain, off)  # their pixels, as their receipts differ anyway


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("1",), "expected LEVEL=N with a number from 1 on, or LEVEL=off, as in 1=off 8=24, got '1'"),
        (("1=0",), "got '1=0'"),
        (("1=-2",), "got '1=-2'"),
        (("1=none",), "got '1=none'"),
        (("=3",), "got '=3'"),
        (("a=3",), "got 'a=3'"),
        ((), "expected at least one argument"),
        (("16=3",), "levels among (1, 2, 4, 8)"),
        (("1=3", "1=off"), "--references names a level twice"),
    ],
)
def test_a_wrong_one_is_one_line(run, tmp_path, words, message):
    status, out, err = run("generate", "--prompt", PROMPT, "--out", "clip.mp4", "--references", *words)
    assert (status, out) == (2, "") and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "clip.mp4").exists()


# What a level costs


def tera_flops(unet, size, off):
    """Of one forward at latents `size` (t, h, w), text and picture on, PSTAttn off at these levels."""
    with torch.device("meta"):
        x, timesteps = torch.empty(1, 4, *size), torch.empty(1)
        text, image = torch.empty(1, 77, 1024), torch.empty(1, 257, 1280)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cond = Conditioning(text, image, torch.ones(1, 2))
        unet(x, timesteps, cond, reference_frames=centers_by_level(dict.fromkeys(off, 0), size[0]))
    return counter.get_total_flops() / 1e12


def test_the_help_page_says_what_each_level_costs():
    with torch.device("meta"):
        unet = UNet(PAPER.unet)
    sizes, levels = ((24, 40, 72), (24, 90, 160)), PAPER.unet.factors
    trained = [tera_flops(unet, size, ()) for size in sizes]
    lines = ["| as trained | " + " | ".join(f"{count:.1f}" for count in trained) + " |"]
    cases = {f"`level_{factor}` off": (factor,) for factor in levels} | {"all off": levels}
    for words, off in cases.items():
        left = [tera_flops(unet, size, off) for size in sizes]
        cells = [f"{f:.1f} ({f / whole:.1%})" for f, whole in zip(left, trained, strict=True)]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    assert "\n".join(lines) in PAGE.read_text("utf-8"), "the table should be\n" + "\n".join(lines)

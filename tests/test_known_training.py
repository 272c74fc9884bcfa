"""Training on known frames: which are drawn, what the network is shown, and what a run gives."""

import dataclasses

import pytest
import torch
from denoise_runs import Maker

from training import options as module
from training.options import JoinedOptions
from training.stages.known import PATTERNS, draw_known
from univid import Clip, Sampling, Source, checkpoints, generate
from univid.known import known_channels

FRAMES = 9


def draw(clips=400, frames=FRAMES, seed=0, **options):
    generators = [torch.Generator().manual_seed(seed + clip) for clip in range(clips)]
    return draw_known(JoinedOptions("known", **options), torch.Size((clips, 4, frames, 2, 2)), generators)


def frames_of(mask):
    return {tuple(row.nonzero()[:, 0].tolist()) for row in mask}


def test_the_patterns_are_those_that_options_name():
    assert tuple(PATTERNS) == module.PATTERNS


@pytest.mark.parametrize(
    "name, expected",
    [
        ("none", {()}),
        ("first", {(0,)}),
        ("ends", {(0, 8)}),
        ("start", {tuple(range(k)) for k in range(1, 9)}),
        ("every", {tuple(range(0, 9, k)) for k in range(2, 9)}),
    ],
)
def test_a_pattern_is_what_its_name_says(name, expected):
    assert frames_of(draw(patterns={name: 1.0}).mask) == expected
    assert frames_of(draw(20, frames=1, patterns={name: 1.0}).mask) == {()}
    assert frames_of(draw(20, frames=2, patterns={name: 1.0}).mask) <= {(), (0,), (0, 1)}


def test_shares_and_levels_are_those_that_were_asked_for():
    known = draw(1000, patterns={"none": 0.2, "ends": 0.8}, noise=0.4)
    assert abs((~known.mask.any(1)).float().mean() - 0.2) < 0.04
    assert 0 <= known.levels.min() and known.levels.max() <= 0.4
    assert abs(known.levels.mean() - 0.2) < 0.01 and abs(known.noise.std() - 1) < 0.02
    assert (draw(noise=0.0).levels == 0).all()


def test_a_clip_is_drawn_by_itself():
    whole = draw(8)
    for clip in range(8):
        alone = draw(1, seed=clip)
        assert torch.equal(alone.mask[0], whole.mask[clip]) and torch.equal(alone.noise[0], whole.noise[clip])
    assert draw_known(JoinedOptions("first"), torch.Size((1, 4, 3, 2, 2)), [torch.Generator()]) is None


def test_the_channels_hold_noisy_latents_of_known_frames_and_their_mask():
    known, latents = draw(6, noise=0.5), torch.randn(6, 4, FRAMES, 2, 2)
    noisy = latents + known.levels[:, None, None, None, None] * known.noise
    assert torch.equal(known.channels("known", latents), known_channels("known", noisy, known.mask))


@pytest.fixture(scope="module")
def make(media, small_checkpoint, tmp_path_factory):
    return Maker(media, small_checkpoint, tmp_path_factory.mktemp("runs"))


def test_a_run_teaches_a_base_known_frames(make, tmp_path):
    asked = JoinedOptions("known_blend", {"ends": 0.5, "start": 0.5}, noise=0.2)
    task, before, saved = make.run(tmp_path / "run", stage="full", joined=asked, batch={"video": 2})
    samples = task.samples(next(task.feed(0)))
    joined = samples.cond.concat
    assert joined.shape == (2, 5, *samples.latents.shape[2:]) and joined[:, 4].any()
    assert samples.cond.numbers["noise"].shape == (2,) and samples.cond.numbers["noise"].max() <= 200
    assert set(joined[:, 4].unique().tolist()) <= {0.0, 1.0}
    for name in ("input_blocks.0.0.weight", "noise_embedding.2.weight"):
        silent = before[name][:, 4:] if "input" in name else before[name]
        learned = saved["model"][name][:, 4:] if "input" in name else saved["model"][name]
        assert (silent == 0).all() and learned.abs().max() > 0
    path = tmp_path / "known.safetensors"
    task.export(saved["ema"], 2, path)
    model = checkpoints.load(path)
    assert model.profile.inputs.concat == "known_blend" and model.config.unet.in_channels == 9
    video = torch.rand(1, 3, 3, 32, 32) * 2 - 1
    result = generate(
        model, "a man", clip=Clip(), source=Source(video=video, known=(0, 2)), sampling=Sampling(steps=1)
    )
    assert torch.equal(result[:, :, [0, 2]], video[:, :, [0, 2]])

    goes_on = make(base=str(path), stage="full", batch={"video": 2})  # a base that takes them already
    assert goes_on.samples(next(goes_on.feed(0))).cond.concat.shape[1] == 5


def test_what_does_not_go_together_is_told(make, tmp_path):
    task = make(stage="full", joined=JoinedOptions("known"), batch={"video": 2})
    path = tmp_path / "known.safetensors"
    task.export(task.module.state_dict(), 0, path)
    for asked, words in (
        (JoinedOptions("known_blend"), "takes joined latents 'known', got joined.concat 'known_blend'"),
        (JoinedOptions("known", noise=0.1), "is told of no noise on known frames"),
    ):
        with pytest.raises(ValueError, match=words):
            make(base=str(path), stage="full", joined=asked, batch={"video": 2})
    with pytest.raises(ValueError, match="animates a clip's first frame"):
        make(stage="full", joined=JoinedOptions("first"), batch={"video": 2})


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"concat": "none"}, "must be one of first, ends, known, known_blend, got 'none'"),
        ({"patterns": {"middle": 1.0}}, "are none, first, ends, start, every, got middle"),
        ({"patterns": {"first": 0.5}}, "add up to 1, got \\[0.5\\]"),
        ({"patterns": {"first": 2.0, "none": -1.0}}, "at least 0"),
        ({"noise": 2.0}, "from 0 to 1, got 2"),
    ],
)
def test_options_that_make_no_sense_are_told(fields, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(JoinedOptions("known"), **fields)

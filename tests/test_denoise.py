"""Training on real clips and pictures: what a step shows, and what it moves."""

import dataclasses

import pytest
import torch
from denoise_runs import Maker, gradients

from training.config import EngineConfig
from training.lora import LoraConfig
from training.options import NoiseOptions
from training.stages.base import Encoders
from training.stages.building import Builder
from training.stages.conditions import BOTH, IMAGE, IMAGE_ONLY, NONE, TEXT, is_image_stream, shares_of
from training.stages.denoising import draw_noise, spread_timesteps
from training.tiny.unet import is_temporal
from univid import checkpoints
from univid.config import InputProfile, NumberInput

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def make(media, small_checkpoint, tmp_path_factory):
    return Maker(media, small_checkpoint, tmp_path_factory.mktemp("runs"))


# What a step shows


def test_micro_batches_are_parts_of_the_whole_batch(make):
    size = {"image": 4, "frame": 2, "video": 4}
    whole = make(batch=size)
    micro = {"image": 1, "frame": 2, "video": 3}  # 3 of 4: parts of unequal size
    parts = make(batch=size, engine=EngineConfig(micro_batch=micro))
    names = [(batch.name, round(batch.weight, 4)) for batch in parts.micro_batches(3)]
    assert names == [("image", 0.25)] * 4 + [("frame", 1), ("video", 0.75), ("video", 0.25)]
    a, b = gradients(whole, 3), gradients(parts, 3)
    assert {n for n, g in a.items() if g is None} == {n for n, g in b.items() if g is None}
    for name, gradient in a.items():
        if gradient is not None:
            assert (gradient - b[name]).abs().max() <= 1e-6 * max(1, gradient.abs().max()), name
    assert any(g is not None and g.abs().max() > 1e-3 for g in a.values())


def test_samples_depend_on_their_place_alone(make, monkeypatch):
    size = {"image": 4, "video": 4}
    one = [one.batch for one in make(batch=size).micro_batches(2)]
    task = make(batch=size)
    whole = [task.samples(batch) for batch in one]
    for rank in (0, 1):
        monkeypatch.setattr("training.distributed.rank", lambda rank=rank: rank)
        monkeypatch.setattr("training.distributed.processes", lambda: 2)
        other = make(batch=size)
        for step in (0, 1, 2):
            halves = [other.samples(part.batch) for part in other.micro_batches(step)]
        for a, b in zip(whole, halves, strict=True):
            pairs = [(a.latents, b.latents), (a.noise, b.noise), (a.timesteps, b.timesteps)]
            pairs += [(a.cond.text, b.cond.text), (a.cond.image, b.cond.image)]
            pairs += [(a.cond.weights, b.cond.weights)]
            for x, y in pairs:
                torch.testing.assert_close(x[rank::2], y, atol=1e-5, rtol=1e-5)
            assert a.streams == b.streams
            assert {f: r.tolist() for f, r in a.reference_frames.items()} == {
                f: r.tolist() for f, r in b.reference_frames.items()
            }
            assert not torch.equal(a.noise[rank::2], a.noise[1 - rank :: 2])


def test_a_step_asked_for_again_is_the_same(make):
    task = make()
    first = [task.samples(part.batch) for part in task.micro_batches(0)]
    list(task.micro_batches(1))
    again = [task.samples(part.batch) for part in task.micro_batches(0)]
    later = [task.samples(part.batch) for part in task.micro_batches(1)]
    for a, b, c in zip(first, again, later, strict=True):
        assert torch.equal(a.latents, b.latents) and torch.equal(a.noise, b.noise)
        assert not torch.equal(a.noise[:, :, :1], c.noise[:, :, :1])


def test_a_step_that_is_left_half_way_is_shown_whole_again(make):
    task = make()
    expected = [task.samples(part.batch).latents for part in task.micro_batches(0)]
    next(iter(task.micro_batches(0)))
    found = [task.samples(part.batch).latents for part in task.micro_batches(0)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("stage", "shares"),
    [
        ("t2v", {NONE: 0.1, TEXT: 0.9}),
        ("adapters", {NONE: 0.1, TEXT: 0.3, IMAGE: 0.15, IMAGE_ONLY: 0.15, BOTH: 0.3}),
        ("joint", {NONE: 0.1, TEXT: 0.3, IMAGE: 0.15, IMAGE_ONLY: 0.15, BOTH: 0.3}),
    ],
)
def test_modes_come_in_the_stated_shares(make, stage, shares):
    task = make(stage=stage)
    drawn = [mode for step in range(1000) for mode in task.step_modes("video", step)]
    assert set(drawn) == set(shares)
    for mode, share in shares.items():
        assert abs(drawn.count(mode) / len(drawn) - share) < 0.03, mode
    assert task.step_modes("image", 7) != task.step_modes("image", 8) or stage == "t2v"


def test_options_override_the_shares(make):
    task = make(modes={"image": 1.0})
    drawn = [mode for step in range(200) for mode in task.step_modes("video", step)]
    assert set(drawn) == {IMAGE, IMAGE_ONLY} and 0.4 < drawn.count(IMAGE) / len(drawn) < 0.6


@pytest.mark.parametrize("shares", [{"text": 0.5}, {"text": 1.5, "none": -0.5}, {"words": 1.0}])
def test_shares_that_make_no_sense_are_refused(shares):
    with pytest.raises(ValueError, match="shares of modes|modes are"):
        shares_of(shares)


def test_a_mode_without_text_shows_the_empty_prompt(make):
    task = make(modes={"none": 0.5, "both": 0.5}, batch={"video": 4})
    empty, seen = task.encoders.text_tokens([""])[0], set()
    for step in range(3):
        (part,) = task.micro_batches(step)
        cond = task.samples(part.batch).cond
        for text, example, mode in zip(
            cond.text, part.batch.examples, task.step_modes("video", step), strict=True
        ):
            caption = task.encoders.text_tokens([example.caption])[0]
            assert torch.equal(text, caption if mode[0] else empty)
            seen.add(mode)
    assert seen == {NONE, BOTH}


def test_the_picture_is_the_reference_frame(make):
    task = make(modes={"both": 1.0}, batch={"video": 2}, data={"min_frames": 4, "augment": True})
    (part,) = task.micro_batches(1)
    cond = task.samples(part.batch).cond
    for tokens, example in zip(cond.image, part.batch.examples, strict=True):
        shown = task.encoders.image_tokens(example.pixels)
        torch.testing.assert_close(tokens, shown[example.reference], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(tokens, shown[(example.reference + 1) % 4], atol=1e-3)


def test_timesteps_cover_the_schedule_evenly_and_shift_towards_noise(make):
    plain = make(batch={"video": 8})
    shifted = make(batch={"video": 8}, noise=NoiseOptions(shift={"video": 4.0}))
    for step in range(3):
        t, s = (
            task.samples(part.batch).timesteps.sort().values
            for task in (plain, shifted)
            for part in task.micro_batches(step)
        )
        assert ((t[1:] - t[:-1]) - 125).abs().max() <= 1 and (s >= t).all() and (s > t + 100).any()


def test_spread_timesteps_stay_within_the_schedule():
    indices = torch.arange(64)
    for offset in (0.0, 0.4, 0.999999):
        for shift in (0.2, 1.0, 8.0):
            t = spread_timesteps(indices, 64, offset, shift=shift, num_timesteps=1000)
            assert t.min() >= 0 and t.max() <= 999
    last = torch.tensor(1 - 2**-24)  # the largest draw there is; shifted, it is rounded to 1
    assert 8 * last / (1 + 7 * last) == 1
    for shift in (1.0, 3.0, 8.0, 1000.0):
        assert spread_timesteps(indices[:1], 64, last, shift=shift, num_timesteps=1000) == 999


@pytest.mark.slow
@pytest.mark.parametrize("shift", [3.0, 8.0])
def test_a_hundred_million_timesteps_stay_within_the_schedule(shift):
    """As many as a run of full size draws; among them are some that round up to the number of timesteps."""
    rng, rounded = torch.Generator().manual_seed(0), 0
    for _ in range(20):
        offsets = torch.rand(5_000_000, generator=rng)
        spread = offsets % 1
        rounded += int((shift * spread / (1 + (shift - 1) * spread) >= 1).sum())
        t = spread_timesteps(torch.tensor(0), 1, offsets, shift=shift, num_timesteps=1000)
        assert 0 <= t.min() and t.max() <= 999
    assert rounded > 0


def test_a_network_that_counts_strides_is_told_its_own_number(small_checkpoint):
    """Nobody knows how many frames of the source lie between two of the clip."""
    model = checkpoints.load(small_checkpoint)
    encoders = Encoders(model, torch.float32)
    for numbers, unit, expected in (
        (("fps",), "fps", {"fps": 6.0}),
        (("fps",), "stride", {"fps": 3.0}),
        (("fps",), None, {"fps": 6.0}),
        ((), "stride", {}),
    ):
        known = () if unit is None else (NumberInput("fps", 3.0, unit),)
        unet = dataclasses.replace(model.config.unet, numbers=numbers)
        told = dataclasses.replace(model, config=dataclasses.replace(model.config, unet=unet))
        told.profile = dataclasses.replace(model.profile, inputs=InputProfile(known, "off", "none"))
        assert Builder(told, encoders, 6.0).numbers == expected


def test_offset_noise_is_shared_by_a_clips_frames():
    generators = [torch.Generator().manual_seed(i) for i in range(2000)]
    noise = torch.stack([draw_noise((4, 3, 8, 8), 0.5, g) for g in generators])  # [b c t h w]
    means = noise.mean((3, 4))  # of each frame: white noise leaves 1/64 of variance, the offset adds 1/4
    torch.testing.assert_close(means.var(0), torch.full((4, 3), 1 / 4 + 1 / 64), rtol=0.15, atol=0)
    between = (means - means.mean(2, keepdim=True)).square().mean()  # no offset of a frame's own
    assert between == pytest.approx(2 / 3 / 64, rel=0.1)
    channels = torch.corrcoef(means.mean(2).T)
    assert (channels - torch.eye(4)).abs().max() < 0.1
    plain = draw_noise((4, 3, 8, 8), 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(plain, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_min_snr_reaches_the_loss(make):
    plain, weighted = make(batch={"video": 2}), make(batch={"video": 2}, noise=NoiseOptions(min_snr=True))
    (part,) = plain.micro_batches(0)
    samples = plain.samples(part.batch)
    losses, scaled = plain._losses(plain.module, samples), weighted._losses(weighted.module, samples)
    snr = plain.schedule.sigmas[samples.timesteps] ** -2
    torch.testing.assert_close(scaled, losses * snr.clamp(max=5) / (snr + 1), rtol=1e-4, atol=1e-7)


# What a step moves


TRAINED = {
    "t2v": lambda name: not is_image_stream(name),
    "adapters": lambda name: name.startswith("image_projection.") or ".attn2." in name,
    "adapters_kv": is_image_stream,
    "joint": lambda name: True,
    "full": lambda name: True,
}


@pytest.mark.parametrize("stage", TRAINED)
def test_each_stage_trains_exactly_its_parameters(make, stage):
    task = make(stage=stage, modes={} if stage == "t2v" else {"image": 0.5, "both": 0.5})
    names = {name for name, _ in task.module.named_parameters()}
    trained = set(filter(TRAINED[stage], names))
    assert {n for n, p in task.module.named_parameters() if p.requires_grad} == trained
    assert {n for n, g in gradients(task).items() if g is not None} == trained
    grouped = [id(p) for group in task.parameter_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in task.module.parameters() if p.requires_grad)


def test_adapters_leave_all_else_as_it_was(make, tmp_path):
    task, before, saved = make.run(tmp_path, stage="adapters", modes={"image": 0.5, "both": 0.5})
    for weights in (saved["model"], saved["ema"]):
        changed = {name for name in before if not torch.equal(before[name], weights[name])}
        assert changed == set(filter(TRAINED["adapters"], before))


def test_a_lora_trains_its_adapters_alone(make, tmp_path):
    lora = LoraConfig(rank=2, parts="temporal-attention")
    task, before, saved = make.run(tmp_path, stage="lora", lora=lora, batch={"video": 2})
    moved = {name for name in before if not torch.equal(before[name], saved["model"][name])}
    assert moved and all(".lora_" in name and "temporal." in name for name in moved)
    assert moved == {name for name, p in task.module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("modality", ["image", "frame"])
def test_single_frames_leave_temporal_parameters_untouched(make, tmp_path, modality):
    task, before, saved = make.run(tmp_path, batch={modality: 2, "video": 2}, loss_weights={"video": 0.0})
    assert list(task.feed.batch) == [modality]
    for weights in (saved["model"], saved["ema"]):
        changed = {name for name in before if not torch.equal(before[name], weights[name])}
        assert changed and not any(is_temporal(name) for name in changed)
    assert any(is_temporal(name) for name in before)


def test_a_clip_moves_temporal_parameters_too(make):
    found = gradients(make(batch={"video": 2}, modes={"both": 1.0}))
    assert all(gradient is not None for gradient in found.values())


def test_every_micro_batch_runs_the_streams_of_its_step(make):
    """Or the processes of a step would reach different parameters."""
    micro = EngineConfig(micro_batch={"image": 1, "video": 1})
    task = make(batch={"image": 4, "video": 4}, engine=micro)
    split = 0
    for step in range(3):
        modes = [m for modality in ("image", "video") for m in task.step_modes(modality, step)]
        expected = tuple(any(m[1][stream] for m in modes) for stream in (0, 1))
        assert task.step_streams(step) == expected
        for modality in ("image", "video"):
            shown = {bool(m[1][1]) for m in task.step_modes(modality, step)}
            split += shown == {True, False}
        reached = []
        for _, _, batch in task.micro_batches(step):
            task.module.zero_grad(set_to_none=True)
            task.loss(batch)[0].backward()
            reached.append(
                (batch.modality, {n for n, p in task.module.named_parameters() if p.grad is not None})
            )
        for modality in ("image", "video"):
            same = [names for name, names in reached if name == modality]
            assert all(names == same[0] for names in same)
        assert {n for _, names in reached for n in names} == reached[-1][1]  # the last reaches all
    assert split  # the test has seen micro-batches that alone would have left a stream out


def test_a_silent_stream_changes_nothing(make):
    task = make(batch={"video": 2}, modes={"text": 1.0})
    (part,) = task.micro_batches(0)
    samples = task.samples(part.batch)
    tokens = torch.randn(2, 5, 32)
    samples = dataclasses.replace(samples, cond=dataclasses.replace(samples.cond, image=tokens))
    losses = {}
    for streams in (None, (True, False), (True, True)):
        losses[streams] = task._losses(task.module, dataclasses.replace(samples, streams=streams))
    assert torch.equal(losses[None], losses[True, False])
    torch.testing.assert_close(losses[None], losses[True, True], rtol=1e-6, atol=0)
    losses[True, True].sum().backward()
    names = {n: p.grad for n, p in task.module.named_parameters() if is_image_stream(n)}
    assert names and all(gradient is not None and not gradient.any() for gradient in names.values())
    silent = task._losses(task.module, dataclasses.replace(samples, streams=(False, False)))
    assert not torch.allclose(silent, losses[None], rtol=1e-4)

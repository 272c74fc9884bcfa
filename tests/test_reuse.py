"""Reuse of deep blocks: against blocks that are run by hand, and what a run keeps."""

import dataclasses

import pytest
import torch
from reference import SMALL, difference, randn, randomize
from torch.utils.flop_counter import FlopCounterMode

from univid import Clip, Sampling, generate, load, memory
from univid.conditioning import Conditioning
from univid.hooks import Hook
from univid.presets import PAPER, TINY
from univid.steer import Dynamics, Reuse, Steering
from univid.steer.reuse import Kept
from univid.steer.run import check_steering, output_blocks
from univid.unet import UNet

NARROW = dataclasses.replace(SMALL, num_res_blocks=1, channel_mult=(1, 1, 2, 2))
BLOCKS = output_blocks(NARROW)
COND = Conditioning(
    text=randn(2, 7, 48, seed=1), image=randn(2, 6, 40, seed=2), weights=torch.tensor([[1.0, 0.6]] * 2)
)
PROMPT, TIMESTEPS = "a red circle moves left", torch.tensor([600, 600])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def unet():
    return randomize(UNet(NARROW))


@pytest.fixture(scope="module")
def model(small_checkpoint):
    return load(small_checkpoint, dtype=torch.float32)


def video(seed, size=(5, 7)):
    return randn(2, 4, 3, *size, seed=seed)


def step(unet, kept, seed, names=("a", "b"), size=(5, 7), **more):
    """One step of a run on a video of its own."""
    kept.begin(seed)
    x = video(seed, size)
    return unet(x, TIMESTEPS - seed, COND, kept=kept.ask(names, x), **more)


def plain(unet, seed, size=(5, 7)):
    return unet(video(seed, size), TIMESTEPS - seed, COND)


class Seen(Hook):
    """Keeps what flows into every output block, and which blocks run."""

    def __init__(self):
        self.flow, self.ran, self.left_out = {}, [], None

    def enter(self, place, index):
        self.ran.append((place, index))

    def between(self, place, index, h, skip):
        if place == "output":
            self.flow[index] = h.clone()
        return h, skip

    def leave_out(self, outputs):
        self.left_out = outputs


def by_hand(unet, seed, h, blocks):
    """The last blocks on `h`, with the skips of the first input blocks."""
    x = video(seed)
    context = unet._context(x, TIMESTEPS - seed, COND, {}, None, Hook(), Steering(), False)
    skips = [x.transpose(1, 2).flatten(0, 1)]
    for block in unet.input_blocks[:blocks]:
        skips.append(unet._run(block, skips[-1], context))
    for number in range(blocks):
        h = torch.cat([h, skips[blocks - number]], 1)
        wide = skips[blocks - number - 1].shape[-2:]
        h = unet._run(unet.output_blocks[BLOCKS - blocks + number], h, context, size=wide)
    return unet.out(h).unflatten(0, (2, 3)).transpose(1, 2)


@pytest.mark.parametrize("blocks", range(1, BLOCKS + 1))
def test_a_cached_step_is_the_last_blocks_on_what_was_kept(unet, blocks):
    kept, seen, again = Kept(Reuse(2, blocks)), Seen(), Seen()
    first = step(unet, kept, 0, hook=seen)
    assert torch.equal(first, plain(unet, 0))  # a whole step
    cached = step(unet, kept, 1, hook=again)
    deep = seen.flow[BLOCKS - blocks]
    assert difference(cached, by_hand(unet, 1, deep, blocks)) < 1e-4
    assert difference(cached, by_hand(unet, 1, deep.roll(1, 0), blocks)) > 1e-2
    assert difference(cached, plain(unet, 1)) > 1e-3
    inputs, outputs = range(blocks), range(BLOCKS - blocks, BLOCKS)
    assert again.ran == [("input", i) for i in inputs] + [("output", i) for i in outputs]
    assert again.left_out == BLOCKS - blocks
    assert torch.equal(step(unet, kept, 2), plain(unet, 2))


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_every_nth_step_is_whole(unet, every):
    kept = Kept(Reuse(every, 1))
    whole = [torch.equal(step(unet, kept, seed), plain(unet, seed)) for seed in range(7)]
    assert whole == [seed % every == 0 for seed in range(7)]


def test_a_hook_that_writes_into_what_flows_leaves_what_is_kept(unet):
    class Doubling(Hook):
        def between(self, place, index, h, skip):
            return h.mul_(2) if place == "output" else h, skip

    kept = Kept(Reuse(3, 2))
    step(unet, kept, 0, hook=Doubling())
    twice = [step(unet, kept, seed, hook=Doubling()) for seed in (1, 1)]
    assert len(kept._entries) == 4  # the second one asked another question
    assert not torch.equal(*twice)
    kept = Kept(Reuse(9, 2))
    step(unet, kept, 0, hook=Doubling())
    x, found = video(1), []
    for seed in (1, 2, 3):
        kept.begin(seed)
        call = kept.ask(("a", "b"), x)
        found.append(call.found.clone())
        unet(x, TIMESTEPS, COND, hook=Doubling(), kept=call)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


# What belongs to whom


def test_branches_may_come_in_any_order_and_batch(unet):
    """The two clips of one call are asked for one by one, the other way round, in the next step."""
    kept = Kept(Reuse(2, 3))
    step(unet, kept, 0)
    kept.begin(1)
    x, parts = video(1), {}
    for name, row in (("b", slice(1, 2)), ("a", slice(0, 1))):
        cond = Conditioning(text=COND.text[row], image=COND.image[row], weights=COND.weights[row])
        parts[name] = unet(x[row], TIMESTEPS[row] - 1, cond, kept=kept.ask([name], x[row]))
    other = Kept(Reuse(2, 3))
    step(unet, other, 0)
    together = step(unet, other, 1)
    assert difference(torch.cat([parts["a"], parts["b"]]), together) < 1e-4
    assert difference(torch.cat([parts["b"], parts["a"]]), together) > 1e-2


@pytest.mark.parametrize("change", [{"names": ("a", "c")}, {"size": (5, 8)}], ids=str)
def test_what_was_not_asked_before_is_run(unet, change):
    kept = Kept(Reuse(9, 2))
    step(unet, kept, 0)
    size = change.get("size", (5, 7))
    assert torch.equal(step(unet, kept, 1, **change), plain(unet, 1, size))
    assert not torch.equal(step(unet, kept, 2, **change), plain(unet, 2, size))  # now it was


def test_a_second_question_at_a_noise_level_has_its_own_answer(unet):
    """Tiles of one size, a sampler of two calls a step, guidance that degrades the video."""
    kept, x, y = Kept(Reuse(2, 2)), video(0), video(10)
    for seed in (0, 1):
        kept.begin(seed)
        calls = [kept.ask(("a", "b"), part) for part in (x, y)]
        if seed:
            assert not torch.equal(calls[0].found, calls[1].found)
        found = [
            unet(part, TIMESTEPS - seed, COND, kept=call) for part, call in zip((x, y), calls, strict=True)
        ]
    alone = Kept(Reuse(2, 2))
    for seed in (0, 1):
        alone.begin(seed)
        second = unet(y, TIMESTEPS - seed, COND, kept=alone.ask(("a", "b"), y))
    assert torch.equal(found[1], second)


def test_what_a_step_does_not_ask_for_is_dropped(unet):
    """Windows that move from step to step would else be kept one by one."""
    kept = Kept(Reuse(9, 1))
    for seed in range(4):
        step(unet, kept, seed, names=(f"window {seed}", "still"))
        assert len(kept._entries) <= 4
    kept.begin(99)
    assert {name[0] for name, _ in kept._entries} == {"window 3", "still"}


# In a whole run


def make(model, steering, side=32, **more):
    clip = Clip(height=side, width=side)
    return generate(model, PROMPT, clip=clip, sampling=Sampling(steps=4, steering=steering, **more))


def test_every_step_is_the_plain_model(model):
    assert torch.equal(make(model, Steering(reuse=Reuse(1, 3))), make(model, Steering()))


@pytest.mark.parametrize(
    ("steering", "more"),
    [
        (Steering(reuse=Reuse(2, 1)), {}),
        (Steering(dynamics=Dynamics(1.0), temporal_guidance=0.5, reuse=Reuse(2, 2)), {}),
        (Steering(reuse=Reuse(2, 1)), {"side": 48, "tile": 32, "sampler": "heun"}),
    ],
    ids=["alone", "with the others", "tiles"],
)
def test_two_runs_are_equal(model, steering, more):
    """Nothing of a run is left for the next one, also where another one between them broke off."""

    def stop(stage, done, total):
        if stage == "sample" and done == 2:
            raise KeyboardInterrupt

    first = make(model, steering, **more)
    with pytest.raises(KeyboardInterrupt):
        generate(model, "a blue square", sampling=Sampling(steps=4, steering=steering), callback=stop)
    assert torch.equal(make(model, steering, **more), first)
    assert difference(first, make(model, Steering(), **more)) > 1e-4


def test_half_precision(unet):
    for dtype, most in ((torch.bfloat16, 0.3), (torch.float16, 0.05)):
        low = UNet(NARROW)
        low.load_state_dict(unet.state_dict())
        low.to(dtype)
        kept, exact = Kept(Reuse(2, 2)), Kept(Reuse(2, 2))
        for seed in (0, 1):
            kept.begin(seed)
            x = video(seed).to(dtype)
            out = low(x, TIMESTEPS - seed, COND.to(dtype=dtype), kept=kept.ask(("a", "b"), x))
            full = step(unet, exact, seed)
        assert out.dtype == dtype and difference(out.float(), full) < most


# What it costs


def flops(unet, kept):
    """Of one call at the paper's 24 frames of 576 x 320."""
    with torch.device("meta"):
        x, text, image = torch.empty(1, 4, 24, 40, 72), torch.empty(1, 77, 1024), torch.empty(1, 257, 1280)
        timesteps = torch.empty(1)
    cond = Conditioning(text, image, torch.ones(1, 2))
    with FlopCounterMode(display=False) as counter:
        unet(x, timesteps, cond, kept=kept.ask(["a"], x))
    return counter.get_total_flops()


@pytest.mark.parametrize(("blocks", "share"), [(1, 0.084), (2, 0.246), (3, 0.414), (6, 0.695)])
def test_what_a_cached_step_of_the_full_network_costs(blocks, share):
    """The help page's table."""
    unet, kept = UNet(PAPER.unet, device="meta"), Kept(Reuse(2, blocks))
    kept.begin(0)
    whole = flops(unet, kept)
    kept.begin(1)
    assert flops(unet, kept) / whole == pytest.approx(share, abs=0.0015)


@pytest.mark.parametrize("blocks", range(1, BLOCKS + 1))
def test_memory_knows_what_is_kept(unet, blocks):
    x = randn(2, 4, 3, 8, 16)
    kept = Kept(Reuse(2, blocks))
    kept.begin(0)
    unet(x, TIMESTEPS, COND, kept=kept.ask(("a", "b"), x))
    there = sum(entry.h.nbytes for entry in kept._entries.values())
    steering = Steering(reuse=kept.reuse)
    assert memory.kept(NARROW, steering, 2 * 3 * 8 * 16, torch.float32) == there
    assert memory.kept(NARROW, Steering(), 2 * 3 * 8 * 16, torch.float32) == 0


# Bad input


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_steps_below_1_are_refused(every):
    with pytest.raises(ValueError, match="reuse must be a whole number of steps from 1"):
        Reuse(every)


@pytest.mark.parametrize("blocks", [0, -1, 1.5, False])
def test_no_blocks_are_refused(blocks):
    with pytest.raises(ValueError, match="blocks of reuse must be a whole number from 1 on, got"):
        Reuse(2, blocks)


def test_more_blocks_than_there_are_are_refused(model):
    assert output_blocks(TINY.unet) == 8 and output_blocks(PAPER.unet) == 12
    check_steering(Steering(reuse=Reuse(2, 8)), TINY.unet)
    with pytest.raises(ValueError, match="blocks of reuse must be from 1 to 8, which this model has, got 9"):
        make(model, Steering(reuse=Reuse(2, 9)))

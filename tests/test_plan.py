"""The plan against real steps: what their allocator gives out; FLOPs against closed forms, days by hand."""

import dataclasses
from collections import Counter

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from training.config import EngineConfig, OptimConfig
from training.loop import build_optimizer
from training.lora import LoraConfig, add_lora
from training.plan import GPUS, Cluster, Plan, Workload, plan, report
from training.plan.account import account, messages, weights_of
from training.plan.hardware import GIB
from training.plan.meter import Autocast, Ledger, flash_attention, measure
from training.plan.planning import OPTIMIZER_TRAFFIC
from training.plan.workload import Frozen, frozen_parts
from training.stages import adapters, t2v
from training.state import State
from training.task import parameter_groups
from univid.attention import attention
from univid.conditioning import Conditioning
from univid.layers import Context
from univid.presets import PAPER, TINY
from univid.unet import UNet

# Two of TINY's four levels: what is counted is the same, in half the time.
SMALL = dataclasses.replace(
    TINY,
    unet=dataclasses.replace(
        TINY.unet, channel_mult=(1, 2), attention_levels=(True, False),
        temporal=dataclasses.replace(TINY.unet.temporal, conv_kernels=(3, 5), segment_frames=(4, 2)),
    ),
)  # fmt: skip
FULL_BUCKETS = ((320, 576), (384, 448), (448, 384), (576, 320))


def everything(unet):
    unet.requires_grad_(True)


def stage(choice):
    def arrange(unet):
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(choice.trains(name))

    return arrange


def tiny(**changes) -> Workload:
    fields = dict(
        name="tiny", model=SMALL, arrange=everything, steps=1000, batch={"image": 4, "video": 2},
        frames=(2, 6), buckets=((64, 64),), dtype=torch.float32, prepared=True,
    )  # fmt: skip
    return Workload(**(fields | changes))


# FLOPs


def flops_of(run, module) -> int:
    return measure(run, module.parameters()).flops


@pytest.mark.parametrize("trained, factor", [(True, 3), (False, 2)])  # forward, (weight's,) input's gradient
def test_flops_of_a_linear_and_a_convolution(trained, factor):
    x = torch.empty(5, 8, 12, 10, device="meta", requires_grad=True)
    conv = nn.Conv2d(8, 16, 3, padding=1, device="meta").requires_grad_(trained)
    linear = nn.Linear(10, 7, device="meta").requires_grad_(trained)
    assert flops_of(lambda: conv(x).sum(), conv) == factor * 2 * (5 * 12 * 10) * (8 * 16 * 9)
    assert flops_of(lambda: linear(x).sum(), linear) == factor * 2 * (5 * 8 * 12) * 10 * 7


def test_a_frozen_first_layer_has_no_backward_pass():
    x = torch.empty(5, 10, device="meta")
    net = nn.Sequential(nn.Linear(10, 7, device="meta").requires_grad_(False), nn.Linear(7, 3, device="meta"))
    product = 2 * 5 * 7
    assert flops_of(lambda: net(x).sum(), net) == product * 10 + 2 * product * 3


def test_flops_of_attention():
    """Two products forward; backward four, and the scores once more, which the kernel does not keep."""
    q, k = (torch.empty(2, n, 12, device="meta", requires_grad=True) for n in (9, 4))
    cost = measure(lambda: flash_attention(q, k, k, heads=3).sum(), [])
    assert cost.forward == 2 * 2 * (2 * 9 * 4 * 12)
    assert cost.flops == cost.forward + 5 * 2 * (2 * 9 * 4 * 12)


def real_pass(unet, clips, frames, *, side=8):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(clips, 4, frames, side, side, generator=generator)
    cond = Conditioning(
        torch.randn(clips, 77, 64, generator=generator), torch.randn(clips, 65, 96, generator=generator),
        torch.ones(clips, 2),
    )  # fmt: skip
    timesteps = torch.arange(clips)
    return lambda: (unet(x, timesteps, cond).float() - x).square().flatten(1).mean(1).mean()


@pytest.mark.parametrize("choice", [t2v.STAGE, adapters.STAGE])
def test_flops_are_those_of_a_real_step(choice):
    def plain(q, k, v, heads):  # by products that both count alike
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)

    unet = UNet(SMALL.unet, attention=plain)
    stage(choice)(unet)
    run = real_pass(unet, 1, 4)
    with FlopCounterMode(display=False) as counter:
        run().backward()
    meta = UNet(SMALL.unet, attention=plain, device="meta")
    stage(choice)(meta)
    assert tiny().cost(meta, 1, 4).flops == counter.get_total_flops() > 1e9


# memory


def allocated(run) -> tuple[int, int]:
    """Bytes that the CPU's real allocator gave out above the start: at most, and at the end."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
        kept = run()
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for change in sorted(changes, key=lambda e: e.start_ns()):
        live += change.nbytes()
        most = max(most, live)
    del kept
    return most, live


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("frames", [3, 6])
def test_activations_and_peak_are_what_a_real_step_allocates(checkpointing, frames):
    unet = UNet(SMALL.unet).train()
    unet.checkpointing = checkpointing
    for parameter in unet.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run = real_pass(unet, 2, frames)
    run().backward()  # what is made once and kept
    _, kept = allocated(lambda: run())
    peak, left = allocated(lambda: run().backward())
    work = tiny(batch={"video": 2})
    counted = work.cost(work.network(checkpointing), 2, frames)
    # Checkpointing keeps the state of the CPU's random numbers for each layer; not in the GPU's memory.
    states = len(unet.blocks()) * torch.get_rng_state().nbytes if checkpointing else 0
    print(f"kept {counted.kept}, real {kept - states}; peak {counted.peak}, real {peak - states}")
    assert left == 0  # gradients are added into those that are there
    assert counted.kept == pytest.approx(kept - states, rel=1e-3)
    assert counted.peak == pytest.approx(peak - states, rel=0.01)  # kernels' work space is not counted


def test_weights_gradients_moments_and_average_are_those_of_the_loop():
    """Exactly: one real step of stage 2 by the loop's own optimizer and state."""
    unet = UNet(SMALL.unet).train()
    stage(adapters.STAGE)(unet)
    optimizer = build_optimizer(OptimConfig(lr=1e-3), parameter_groups(unet))
    state = State(unet, optimizer)
    real_pass(unet, 1, 3)().backward()
    optimizer.step()
    state.update_ema(0.5)

    counted = memory_of(tiny(arrange=stage(adapters.STAGE)))
    trained = [p for p in unet.parameters() if p.requires_grad]
    moments = [m for s in optimizer.state.values() for m in s.values() if m.dim()]
    assert counted["trained weights, float32"] == sum(p.nbytes for p in trained)
    assert counted["frozen weights of the U-Net"] == sum(
        p.nbytes for p in unet.parameters() if not p.requires_grad
    )
    assert counted["gradients, float32"] == sum(
        p.grad.nbytes for p in unet.parameters() if p.grad is not None
    )
    assert counted["Adam's moments, float32"] == sum(m.nbytes for m in moments)
    assert counted["EMA, float32"] == sum(m.nbytes for m in state.ema.values())


def memory_of(work: Workload) -> dict[str, int]:
    return plan(work, EngineConfig(), Cluster()).memory["one"]


@pytest.fixture(scope="module")
def on_two() -> Plan:
    return plan(tiny(steps=86_400), EngineConfig(), Cluster("h100", gpus=2, mfu=0.5))


def test_autocast_keeps_what_an_accelerator_keeps():
    """Against torch's own rules for CUDA, on fake tensors: sizes and types of all that backward needs."""

    def kept(device: str) -> Counter:
        tensors = []
        unet = UNet(SMALL.unet, device=device, attention=flash_attention)
        context = Context(
            frames=4, embedding=torch.empty(2, 192, device=device), places=torch.empty(2, 4, device=device),
            text=torch.empty(2, 77, 64, device=device), image=torch.empty(2, 65, 64, device=device),
            weights={1: torch.empty(2, 1, 1, 2, device=device)}, streams={1: (True, True)},
            references={1: torch.zeros(1, dtype=torch.long, device=device)},
        )  # fmt: skip
        h = torch.empty(8, 48, 8, 8, device=device)
        rules = Autocast(torch.bfloat16, Ledger()) if device == "meta" else CudaAutocast()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: tensors.append(x) or x, lambda x: x), rules:
            for layer in unet.input_blocks[1]:
                h = layer(h, context)
            unet.out(h)
        storages = {x.untyped_storage()._cdata: (x.untyped_storage().nbytes(), x.dtype) for x in tensors}
        return Counter(storages.values())

    with FakeTensorMode():
        real = kept("cuda")
    assert kept("meta") == real and len(real) > 20
    assert {dtype for _, dtype in real} >= {torch.bfloat16, torch.float32}


class CudaAutocast:
    """torch.autocast("cuda", torch.bfloat16), which itself refuses to begin on a machine without one."""

    def __enter__(self):
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.autocast_increment_nesting()

    def __exit__(self, *_):
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


def test_low_precision_halves_products_and_keeps_copies_of_the_weights():
    work = tiny(dtype=torch.bfloat16)
    low, high = (w.cost(w.network(), 1, 6) for w in (work, tiny()))
    products = sum(p.numel() for p in work.network().parameters() if p.dim() > 1)
    assert high.copies == 0 and 0.95 * 2 * products < low.copies < 1.1 * 2 * products
    assert 0.4 * high.kept < low.kept < high.kept
    assert low.flops == high.flops


def test_more_frames_need_more_and_checkpointing_less():
    work = tiny()
    costs = {(n, c): work.cost(work.network(c), 1, n) for n in (4, 8) for c in (False, True)}
    assert 1.8 < costs[8, False].kept / costs[4, False].kept < 2.3
    assert costs[8, True].kept < 0.3 * costs[8, False].kept
    assert costs[8, True].peak < 0.6 * costs[8, False].peak
    assert 1.2 < costs[8, True].flops / costs[8, False].flops < 1.4
    assert work.cost(work.network(), 2, 4).flops == 2 * costs[4, False].flops


def test_adapters_need_no_moments_of_the_network():
    work = tiny(
        arrange=lambda unet: add_lora(unet, LoraConfig(rank=2), 0), dtype=torch.bfloat16, batch={"video": 1},
        frames=(4, 4),
    )  # fmt: skip
    lora, half = memory_of(work), memory_of(dataclasses.replace(work, frozen_dtype=torch.bfloat16))
    assert lora["Adam's moments, float32"] < 0.1 * lora["frozen weights of the U-Net"]
    assert 2 * half["frozen weights of the U-Net"] == lora["frozen weights of the U-Net"]
    assert half["trained weights, float32"] == lora["trained weights, float32"]


def test_fsdp_divides_what_the_optimizer_keeps(on_two):
    one, ddp, fsdp = (on_two.memory[layout] for layout in ("one", "ddp", "fsdp"))
    for part in ("trained weights, float32", "gradients, float32", "Adam's moments, float32", "EMA, float32"):
        assert ddp[part] == one[part] == 2 * fsdp[part]
    assert ddp["DDP's buckets"] == ddp["gradients, float32"]


def test_fsdp_keeps_whole_gradients_between_the_passes_of_a_step():
    unet = tiny().network()
    weights, passes = weights_of(unet), [tiny().cost(unet, 1, 1)]
    once, more = (
        account("fsdp", 2, weights, passes, Frozen(), accumulates)["whole gradients"]
        for accumulates in (False, True)
    )
    assert more - once == 4 * weights.trained and once < 8 * weights.trained


def test_the_autoencoder_counts_where_it_needs_more_than_the_pass():
    unet = tiny().network()
    weights, passes = weights_of(unet), [tiny().cost(unet, 1, 1)]
    low, high = (
        account("one", 1, weights, passes, Frozen(working=size), False)
        for size in (passes[0].peak // 2, 3 * passes[0].peak)
    )
    assert "more for the autoencoder" not in low
    assert high["more for the autoencoder"] == 2 * passes[0].peak


def test_raw_data_needs_autoencoder_and_towers():
    assert frozen_parts(tiny()) == Frozen()
    work = tiny(prepared=False)
    text, both = frozen_parts(dataclasses.replace(work, shows=())), frozen_parts(work)
    assert both.weights > text.weights > 0 and both.image > 0 == text.image
    assert both.encode == text.encode > 0 and both.flops(4) == 4 * both.encode + both.text + both.image


# time, messages, storage


def test_days_by_hand(on_two):
    made = on_two
    flops = 4 * made.sample_flops["image"] + 2 * made.sample_flops["video"]
    assert made.step_flops == flops
    trained = made.parameters[0]
    compute = flops / (2 * 989.4e12 * 0.5)
    network = 2 * (1 / 2) * 4 * trained / 450e9
    assert made.days == pytest.approx(max(compute, network) + OPTIMIZER_TRAFFIC * trained / 3.35e12)
    assert made.samples == {"image": 4 * 86_400, "video": 2 * 86_400}
    assert made.rate("video") == pytest.approx(2 / made.days)  # a step a second would be a day


def test_messages_by_hand():
    weights = dataclasses.replace(weights_of(tiny().network()), trained=90, frozen=10)
    assert messages("ddp", 4, weights, 3) == 2 * 0.75 * 4 * 90
    assert messages("fsdp", 4, weights, 3) == 0.75 * 4 * (3 * 2 * 100 + 90)
    assert messages("ddp", 1, weights, 3) == 0


def test_a_ring_is_as_fast_as_its_slowest_link():
    assert Cluster("h100", 8).slowest_link == 450e9
    assert Cluster("h100", 16, network=25e9).slowest_link == 25e9
    assert Cluster("4090", 16, network=50e9).slowest_link == GPUS["4090"].link


def test_lengths_have_the_mean_of_all():
    work = tiny(frames=(8, 24))
    lengths = work.lengths("video")
    assert sum(lengths.values()) == pytest.approx(1)
    assert sum(n * weight for n, weight in lengths.items()) == pytest.approx(16)
    assert work.lengths("frame") == {1: 1.0} and tiny(frames=(7, 7)).lengths("video") == {7: 1.0}
    few = tiny(frames=(2, 10))
    unet = few.network()
    flops = {n: few.cost(unet, 1, n).flops for n in range(2, 11)}
    exact = sum(flops.values()) / 9
    assert sum(w * flops[n] for n, w in few.lengths("video").items()) == pytest.approx(exact, rel=0.01)


def test_bytes_of_prepared_samples():
    work = tiny(model=PAPER, buckets=FULL_BUCKETS, frames=(8, 24))
    text, image = 77 * 1024 * 2, 257 * 1280 * 2
    assert work.sample_bytes(24) == 552_960 + text + image  # the latents are design's 0.53 MB, in MiB
    assert dataclasses.replace(work, shows=()).sample_bytes(1) == 23_040 + text
    assert dataclasses.replace(work, shows=("copy",)).sample_bytes(24) == 2 * 24 * 23_040 + text


def test_report_names_what_is_assumed(on_two):
    made = dataclasses.replace(on_two, workload=tiny(dataset={"image": 10**6}))
    text = report(made)
    for words in ("--mfu 0.5", "989.4 TFLOP/s", "reserve (assumed)", "left of 80", "prepared", "FSDP"):
        assert words in text
    alone = report(dataclasses.replace(made, cluster=Cluster("4090")))
    assert "left of 24" in alone and "FSDP" not in alone and "messages (" not in alone


def test_the_memory_column_adds_up(on_two):
    for layout, parts in on_two.memory.items():
        assert on_two.total(layout) == sum(parts.values()) + 2 * GIB
        assert all(size > 0 for size in parts.values())


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Cluster("a4"), "gpu must be one of"),
        (lambda: Cluster(mfu=1.5), "mfu"),
        (lambda: Cluster(gpus=0), "expected 1 to 1,000,000 GPUs"),
        (lambda: Cluster(network=0), "network"),
        (lambda: tiny(batch={}), "samples"),
        (lambda: tiny(batch={"clip": 1}), "modalities"),
        (lambda: tiny(frames=(5, 4)), "fewest"),
        (lambda: tiny(frozen_dtype=torch.bfloat16), "frozen_dtype"),
        (lambda: plan(tiny(), EngineConfig(), Cluster(gpus=3)), "do not divide"),
        (lambda: tiny(arrange=lambda unet: unet.requires_grad_(False)).network(), "no parameter"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


@pytest.mark.slow
def test_the_full_size_network():
    work = tiny(model=PAPER, buckets=FULL_BUCKETS, frames=(8, 24), dtype=torch.bfloat16)
    unet = work.network(checkpointing=True)
    cost = work.cost(unet, 1, 24)
    assert weights_of(unet).trained == 1_510_352_644
    assert cost.forward / 1e12 == pytest.approx(25.2, abs=0.1)
    assert cost.peak < 6 * GIB


def test_flash_attention_is_attention_in_shape():
    q, k = torch.empty(2, 9, 12, device="meta"), torch.empty(2, 4, 12, device="meta")
    assert flash_attention(q, k, k, 3).shape == attention(q, k, k, 3).shape == (2, 9, 12)

"""The estimate against what a process takes, and what there is against made-up machines."""

import ctypes
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerator import DEVICE as GPU
from accelerator import accelerator

from univid import Clip, Sampling, generate, load, machine, memory
from univid.checkpoints.native import meta_modules
from univid.files.tensors import Weights
from univid.guidance import Joint, Nested
from univid.presets import PRESETS
from univid.unet import UNet

ROOT = Path(__file__).parent.parent
TINY = PRESETS["tiny"]
GB = 10**9
PROMPT = "a red circle moves left on a black background"


# Counting

MEASURED = """
import json, sys
import torch
from univid import guidance, load, memory, pipeline

def held(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

torch.set_num_threads(1)
clips, frames, height, width, scale = json.loads(sys.argv[1])
model = load(dtype=torch.float32)
def call(clips, frames, height, width):
    pipeline.generate(model, ["a red circle"] * clips, clip=pipeline.Clip(frames, height, width),
                      sampling=pipeline.Sampling(steps=1), guidance=guidance.Joint(scale))
call(1, 2, 64, 64)
before = held("VmRSS")
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
call(clips, frames, height, width)
branches = 1 if scale == 1 else 2
estimate = memory.needed(
    model.config, clips=clips, branches=branches, size=(frames, height, width), dtype=torch.float32,
    pieces=memory.Pieces()
)
print(json.dumps([held("VmHWM") - before, estimate]))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads what a process holds from /proc"
)
@pytest.mark.parametrize(
    "call",
    [
        (1, 24, 320, 576, 3.0),  # the paper's clip: the network's activations
        (1, 8, 512, 512, 1.0),  # the decoder's
        (2, 8, 256, 256, 3.0),
        (1, 2000, 64, 64, 1.0),  # many small frames
    ],
    ids=str,
)
def test_the_estimate_is_near_what_a_process_takes(call):
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(call)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    measured, estimate = json.loads(done.stdout)
    print(f"{call}: measured {measured / 1e6:.0f} MB, estimate {estimate / measured:.2f} of it")
    assert 0.75 < estimate / measured < 1.45


def ledger_on_the_cpu(clips, frames, side):
    """What a real pass holds, counted storage by storage."""
    from univid.conditioning import Conditioning

    unet = UNet(TINY.unet).requires_grad_(False)
    x = torch.zeros(clips, 4, frames, side, side)
    width = TINY.unet.image_stream.width
    cond = Conditioning(
        text=torch.zeros(clips, 7, TINY.unet.context_dim), image=torch.zeros(clips, 5, width),
        weights=torch.ones(clips, 2),
    )  # fmt: skip
    ledger = memory.KernelLedger()
    ledger.known([*unet.parameters(), x, cond.text, cond.image])
    with torch.no_grad(), ledger:
        unet(x, torch.full((clips,), 500.0), cond)
    return ledger.peak_activations


@pytest.mark.parametrize(("clips", "frames", "side"), [(1, 8, 16), (2, 8, 16), (1, 5, 24)])
def test_activations_are_those_of_a_real_pass(clips, frames, side):
    counted = memory.activations(TINY.unet, clips * frames * side**2, torch.float32)
    assert counted == pytest.approx(ledger_on_the_cpu(clips, frames, side), rel=0.12)


# Measured on one H200 in bf16 (PyTorch 2.11, full-size `paper` with random weights), the most that was held
# in GiB: a U-Net's call with both branches of guidance alone, and `generate` with every part on the device.
ON_A_GPU = {"U-Net, 576 x 320": 4.1, "576 x 320": 7.9, "1280 x 720": 20.4}


def test_an_accelerator_takes_what_was_measured():
    paper, dtype = PRESETS["paper"], torch.bfloat16
    weights = {
        name: sum(parameter.numel() for parameter in part.parameters()) * dtype.itemsize
        for name, part in meta_modules(paper).items()
    }
    assert weights["unet"] == 2 * 1_510_352_644
    step = memory.sampling(paper.unet, 2 * 24 * 40 * 72, dtype, GPU)
    estimates = [weights["unet"] + step]
    for size in ((24, 320, 576), (24, 720, 1280)):
        asked = {"clips": 1, "branches": 2, "size": size, "dtype": dtype, "device": GPU}
        whole = memory.needed(paper, **asked, pieces=memory.Pieces())
        step = memory.sampling(paper.unet, 2 * math.prod(size) // 64, dtype, GPU)
        assert memory.needed(paper, **asked) == step < whole  # decoding takes the most, but in small pieces
        estimates.append(sum(weights.values()) + whole)
    assert [size / 2**30 for size in estimates] == pytest.approx(list(ON_A_GPU.values()), rel=0.05)


def test_the_estimate_grows_as_it_must():
    def activations(cells, dtype=torch.float32, tokens=1024, config=TINY.unet):
        return memory.activations(config, cells, dtype, tokens)

    assert activations(10**6) == pytest.approx(10 * activations(10**5), rel=0.05)
    assert activations(10**6, torch.bfloat16) == pytest.approx(activations(10**6) / 2, rel=0.1)
    few, all_at_once = activations(10**5), activations(10**5, tokens=10**5)
    assert 0.5 * all_at_once < few < activations(10**5, tokens=60_000) < all_at_once

    def needed(**changes):
        asked = {"clips": 1, "branches": 2, "size": (192, 64, 64), "dtype": torch.float32}
        return memory.needed(TINY, **(asked | changes))

    assert needed(clips=2) > 1.5 * needed() and needed(branches=3) > 1.3 * needed()
    assert needed(size=(384, 64, 64)) > 1.5 * needed() and needed(size=(192, 128, 128)) > 3 * needed()
    huge = needed(size=(10**6, 64, 64))
    assert 10**11 < huge < 10**12 and memory.finished(1, (10**6, 64, 64)) < huge


# Refusing


@pytest.fixture
def small_machine(monkeypatch):
    """A machine with this much free memory."""

    def having(size):
        monkeypatch.setattr(memory, "free_memory", lambda device: size)

    return having


def test_what_does_not_fit_is_refused_with_both_figures(small_checkpoint, small_machine):
    model = load(small_checkpoint)
    stages = []
    small_machine(3 * GB)
    for size in ({"frames": 10**6}, {"height": 80_000, "width": 80_000}, {"height": 8_000_000, "width": 8}):
        with pytest.raises(
            ValueError, match=r"need about [\d,.]+ GB of memory, and 3.0 GB are free; ask for fewer"
        ):
            generate(model, PROMPT, callback=lambda *event: stages.append(event), clip=Clip(**size))
    assert stages == []
    generate(model, PROMPT, clip=Clip(frames=2))


def test_the_figures_follow_the_call(small_checkpoint, small_machine):
    """A machine just large enough for one branch refuses two; one for a clip, two clips."""
    model = load(small_checkpoint)
    shape = 120, 64, 64
    asked = {"clip": Clip(*shape), "sampling": Sampling(steps=1)}
    one, two = (
        memory.needed(model.config, clips=1, branches=b, size=shape, dtype=model.unet.dtype) for b in (1, 2)
    )
    assert two > one
    small_machine((one + two) // 2)
    generate(model, PROMPT, guidance=Joint(1.0), **asked)
    for more in ({"guidance": Joint(2.0)}, {"guidance": Nested(2.0, 2.0)}):
        with pytest.raises(ValueError, match="120 frames of 64 x 64 need about"):
            generate(model, PROMPT, **asked, **more)
    with pytest.raises(ValueError, match="2 x 120 frames of 64 x 64 need about"):
        generate(model, [PROMPT, PROMPT], guidance=Joint(1.0), **asked)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    small_checkpoint, small_machine, monkeypatch
):
    held = sum(p.nbytes for p in load(small_checkpoint).unet.parameters())
    whole = small_checkpoint.stat().st_size
    monkeypatch.setattr(Weights, "read", lambda *_: pytest.fail("a tensor was read"))
    small_machine(whole // 2)
    with pytest.raises(ValueError, match="the weights of .* need about .* are free"):
        load(small_checkpoint)
    small_machine(held - 1)
    with pytest.raises(ValueError, match="need about"):
        load(small_checkpoint, parts=("unet",))
    small_machine(held // 2 + 1)
    with pytest.raises(pytest.fail.Exception):  # as half as large a type they fit
        load(small_checkpoint, parts=("unet",), dtype=torch.bfloat16)


@pytest.fixture
def gpu(monkeypatch):
    """A pretended accelerator with this much free memory, and some that torch keeps."""

    def having(free, reserved=0, allocated=0):
        module = SimpleNamespace(
            is_available=lambda: True,
            mem_get_info=lambda device: (free, 10**12),
            memory_reserved=lambda device: reserved,
            memory_allocated=lambda device: allocated,
        )
        monkeypatch.setattr(torch, "get_device_module", lambda device: module)

    return having


def test_what_does_not_fit_on_an_accelerator_is_refused_there(small_checkpoint, gpu):
    shape = 1200, 64, 64
    with accelerator():
        model = load(small_checkpoint).to(GPU)
    asked = {"clips": 1, "branches": 2, "size": shape, "dtype": model.unet.dtype, "device": GPU}
    needed = memory.needed(model.config, **asked)
    words = (
        r"1,200 frames of 64 x 64 need about [\d.]+ GB of memory on cuda:0, and [\d.]+ GB are free; "
        "ask for fewer frames, or a smaller height and width"
    )

    def stop(*event):
        raise InterruptedError(event)

    def make():
        with accelerator():
            generate(model, PROMPT, callback=stop, clip=Clip(*shape))

    gpu(needed - 1)
    with pytest.raises(ValueError, match=words):
        make()
    gpu(needed - 1, reserved=3, allocated=2)
    with pytest.raises(InterruptedError, match="encode"):
        make()


def test_weights_that_do_not_fit_on_an_accelerator_are_refused_before_they_are_read(
    small_checkpoint, gpu, monkeypatch
):
    monkeypatch.setattr(Weights, "read", lambda *_: pytest.fail("a tensor was read"))
    gpu(small_checkpoint.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"the weights of .* GB of memory on cuda:0, and .* are free"):
        load(small_checkpoint, device=GPU)


# What there is


def test_a_device_says_what_is_free(gpu):
    if not torch.cuda.is_available():
        assert machine.free_memory(GPU) is None
    assert machine.free_memory(torch.device("meta")) is None
    assert machine.free_memory(torch.device("cpu")) > 10**8
    gpu(100, reserved=30, allocated=20)
    assert machine.free_memory(GPU) == 110


def linux(tmp_path, meminfo, cgroup="", files=None):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(meminfo)
    (tmp_path / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in (files or {}).items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return machine.available_memory(tmp_path / "proc", tmp_path / "cgroup")


MEMINFO = "MemTotal: 16000000 kB\nMemAvailable:   8000000 kB\nSwapFree:  1000000 kB\nHugePages_Total: 0\n"
WHOLE = 9_000_000 * 1024


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("", {}, WHOLE),
        ("0::/\n", {}, WHOLE),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "5\n"}, WHOLE),
        (  # a container that sees its own group as the root
            "0::/\n",
            {
                "memory.max": "2000000000\n",
                "memory.current": "500000000\n",
                "memory.stat": "anon 1\ninactive_file 100000000\n",
            },
            1_600_000_000,
        ),
        (  # the limit of a group around it counts
            "0::/user.slice/job.scope\n",
            {
                "user.slice/memory.max": "1000\n",
                "user.slice/memory.current": "400\n",
                "user.slice/job.scope/memory.max": "max\n",
                "user.slice/job.scope/memory.current": "300\n",
            },
            600,
        ),
        ("0::/a\n", {"a/memory.max": "100\n", "a/memory.current": "400\n"}, 0),
        (  # version 1
            "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n",
            {
                "memory/docker/abc/memory.limit_in_bytes": "3000\n",
                "memory/docker/abc/memory.usage_in_bytes": "1000\n",
                "memory/docker/abc/memory.stat": "total_inactive_file 50\n",
            },
            2050,
        ),
        (  # version 1, where the container sees its group as the root
            "4:memory:/docker/abc\n",
            {"memory/memory.limit_in_bytes": "3000\n", "memory/memory.usage_in_bytes": "1000\n"},
            2000,
        ),
    ],
)
def test_a_container_has_what_its_groups_leave(tmp_path, cgroup, files, expected):
    assert linux(tmp_path, MEMINFO, cgroup, files) == expected


def test_other_systems(tmp_path, monkeypatch):
    assert 10**8 < machine.available_memory() < 10**14
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.available_memory(tmp_path, tmp_path) == pages  # neither /proc nor groups
    monkeypatch.delattr(os, "sysconf")
    assert machine.available_memory(tmp_path, tmp_path) == sys.maxsize

    def fill(pointer):
        assert ctypes.sizeof(pointer._obj) == 64 and pointer._obj.length == 64
        ctypes.memmove(ctypes.byref(pointer._obj, 32), (123456789).to_bytes(8, "little"), 8)

    windows = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=fill))
    monkeypatch.setattr(ctypes, "windll", windows, raising=False)
    assert machine.available_memory() == 123456789

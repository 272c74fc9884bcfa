"""The benchmark at a tiny size: its closing lines follow from its table, and every FLOP is counted once."""

import dataclasses
import re

import bench_unet
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def test_closing_lines_follow_from_the_table(capsys, monkeypatch):
    shallow = dataclasses.replace(bench_unet.FAMILY.unet, num_res_blocks=1)
    monkeypatch.setattr(bench_unet, "FAMILY", dataclasses.replace(bench_unet.FAMILY, unet=shallow))
    threads = torch.get_num_threads()
    bench_unet.main("--widths 16 --size 2 8 8 --rounds 1 --threads 1 --profile".split())
    torch.set_num_threads(threads)
    text = capsys.readouterr().out
    rows = dict(re.findall(r"^(univid|diffusers|gemm) +(\d.* .*)$", text, re.MULTILINE))
    ours, peer, gemm = ([float(x) for x in rows[name].split()] for name in ("univid", "diffusers", "gemm"))
    gflop, seconds, rate, share, peak = ours
    assert gflop > 0 and peer[0] > 0 and gemm[0] == gflop and gemm[3] == 1
    assert rate * seconds == pytest.approx(gflop, abs=0.06)  # the table has one decimal
    assert 5 < peak < 100 and 5 < peer[4] < 100  # MB: at this size mostly weights
    closing = re.search(r"\nratio (\d+\.\d\d)\nmemory (\d\.\d\d)\ngemm (\d\.\d\d)\n$", text).groups()
    ratio, memory, of_gemm = map(float, closing)
    assert ratio == pytest.approx(seconds / peer[1], rel=0.05)
    assert memory == pytest.approx(peak / peer[4], rel=0.1)
    assert of_gemm == pytest.approx(share, abs=0.01)
    assert all(part in text for part in bench_unet.PARTS.values())


def test_another_network_is_refused(monkeypatch):
    def other(theirs, config):
        network = imported(theirs, config)
        network.out[2].bias = nn.Parameter(network.out[2].bias + 1e-3)
        return network

    imported = bench_unet.imported
    monkeypatch.setattr(bench_unet, "imported", other)
    with pytest.raises(SystemExit, match="equal outputs"):
        bench_unet.main("--widths 8 --size 2 8 8 --rounds 1 --threads 1".split())


def peak_of_three_products() -> int:
    """2.1 MB of weights, and tensors of 16.8 MB: the old y lives until the new one is there, beside x."""
    network = nn.Linear(1024, 512, bias=False)

    def forward(x):
        for _ in range(3):
            y = torch.ones(4 * 2**20)
            x = x * y
        return x

    case = bench_unet.Case(network, forward, (torch.ones(4 * 2**20),))
    return bench_unet.peak_memory(case, torch.device("cpu"))


def test_memory_is_what_a_forward_holds_at_once():
    peak = bench_unet.in_own_process(peak_of_three_products)
    assert peak / 1e6 == pytest.approx(2.1 + 50.3, abs=2)


def test_every_flop_belongs_to_one_part(monkeypatch):
    monkeypatch.setattr(bench_unet, "PARTS", {nn.Sequential: "outer", nn.Linear: "linear"})
    inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU())  # a part in a part: the outer one has all of it
    network = nn.ModuleList([inner, nn.Linear(16, 4)]).to("meta")

    def forward(x):  # [4 8]
        y = network[1](inner(x))
        return y.T @ y

    case = bench_unet.Case(network, forward, (torch.ones(4, 8, device="meta"),))
    with FlopCounterMode(display=False) as counter:
        flops = bench_unet.by_part(case, counter.get_total_flops)
    assert flops == {"outer": 2 * 4 * 8 * 16, "linear": 2 * 4 * 16 * 4, bench_unet.REST: 2 * 4 * 4 * 4}

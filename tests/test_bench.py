"""The benchmark at a tiny size: its closing lines follow from its table, and every FLOP is counted once."""

import dataclasses
import re

import bench_unet
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def test_closing_lines_follow_from_the_table(capsys, monkeypatch):
    shallow = dataclasses.replace(bench_unet.PAPER.unet, num_res_blocks=1)
    monkeypatch.setattr(bench_unet, "PAPER", dataclasses.replace(bench_unet.PAPER, unet=shallow))
    threads = torch.get_num_threads()
    bench_unet.main("--widths 16 --size 2 8 8 --rounds 1 --threads 1 --profile".split())
    torch.set_num_threads(threads)
    text = capsys.readouterr().out
    rows = dict(re.findall(r"^(univid|diffusers|gemm) +(\d.* .*)$", text, re.MULTILINE))
    ours, peer, gemm = ([float(x) for x in rows[name].split()] for name in ("univid", "diffusers", "gemm"))
    gflop, seconds, rate, share, peak = ours
    assert gflop > 0 and peer[0] > 0 and gemm[0] == gflop and gemm[3] == 1
    assert rate * seconds == pytest.approx(gflop, abs=0.06)  # the table has one decimal
    assert 5 < peak < 500 and 5 < peer[4] < 500  # MB: at this size mostly weights
    ratio, of_gemm = re.search(r"\nratio (\d+\.\d\d)\ngemm (\d\.\d\d)\n$", text).groups()
    assert float(ratio) == pytest.approx(seconds / peer[1], rel=0.05)
    assert float(of_gemm) == pytest.approx(share, abs=0.01)
    assert all(part in text for part in bench_unet.PARTS.values())


def test_every_flop_belongs_to_one_part(monkeypatch):
    monkeypatch.setattr(bench_unet, "PARTS", {nn.Sequential: "outer", nn.Linear: "linear"})

    def build(width):
        inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU())  # a part in a part: the outer one has all of it
        network = nn.ModuleList([inner, nn.Linear(16, 4)])

        def forward(x, timesteps, text):
            y = network[1](inner(x[0, :, 0, 0]))  # [c w] = [4 8]
            return y.T @ y

        return network, forward

    case = bench_unet.Case(build, 0, (1, 1, 8), "meta")
    with FlopCounterMode(display=False) as counter:
        flops = bench_unet.by_part(case, counter.get_total_flops)
    assert flops == {"outer": 2 * 4 * 8 * 16, "linear": 2 * 4 * 16 * 4, bench_unet.REST: 2 * 4 * 4 * 4}

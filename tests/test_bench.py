"""The benchmark at a tiny size: its closing lines follow from its table, and every FLOP is counted once."""

import re

import bench_unet
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def test_closing_lines_follow_from_the_table(capsys):
    threads = torch.get_num_threads()
    bench_unet.main("--widths 16 --size 2 8 8 --rounds 1 --threads 1 --profile".split())
    torch.set_num_threads(threads)
    text = capsys.readouterr().out
    rows = dict(re.findall(r"^(univid|diffusers|gemm) +(\d.* .*)$", text, re.MULTILINE))
    ours, peer, gemm = ([float(x) for x in rows[name].split()] for name in ("univid", "diffusers", "gemm"))
    gflop, seconds, rate, share, peak = ours
    assert gflop > 0 and peer[0] > 0 and gemm[0] == gflop and gemm[3] == 1
    assert rate == pytest.approx(gflop / seconds, rel=0.1)
    assert peak > 20 and peer[4] > 10  # MB: at this size mostly weights
    ratio, of_gemm = re.search(r"\nratio (\d+\.\d\d)\ngemm (\d\.\d\d)\n$", text).groups()
    assert float(ratio) == pytest.approx(seconds / peer[1], abs=0.02)
    assert float(of_gemm) == pytest.approx(share, abs=0.01)
    assert all(part in text for part in bench_unet.PARTS.values())


def test_every_flop_belongs_to_one_part(monkeypatch):
    monkeypatch.setattr(bench_unet, "PARTS", {nn.Sequential: "outer", nn.Linear: "linear"})
    inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU())  # holds a part itself, and keeps what that does
    network = nn.ModuleList([inner, nn.Linear(16, 4)])

    def forward(x, timesteps, text):
        y = network[1](inner(x[0, :, 0, 0]))  # [b c] = [4 8]
        return y.T @ y

    case = bench_unet.Case(lambda width: (network, forward), 0, (1, 1, 8), "meta")
    ...

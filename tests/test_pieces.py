"""In which chunks and tiles the VAE takes a clip, by the memory that is free."""

import logging
import math

import pytest
import torch
from reference import randn, randomize

from univid import Clip, Sampling, generate, load, memory
from univid.memory import LEAST_TILE, Coding, Pieces
from univid.pipeline import Source
from univid.presets import PAPER, TINY
from univid.vae import Autoencoder

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GIB = 2**30
PROMPT = "a red circle moves left on a black background"


def coding(way="decode", frames=24, size=(90, 160), dtype=torch.bfloat16, device=GPU):
    return Coding(PAPER.vae, way, frames, size, dtype, device)


def amount(pieces, size=(90, 160)):
    """Latent cells at once."""
    return pieces.chunk * math.prod(min(side, pieces.tile or side) for side in size)


# Choosing


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("way", ["decode", "encode"])
def test_the_largest_that_fits_is_taken(way, device):
    work = coding(way, device=device)
    chosen = [work.pieces(round(0.1 * n * GIB)) for n in range(2, 400)]
    for n, pieces in enumerate(chosen, start=2):
        room = 0.1 * n * GIB / (1 + memory.SPARE)
        assert work.needed(pieces) <= room
        larger = Pieces(pieces.chunk + 1) if pieces.tile is None else Pieces(1, pieces.tile + 1)
        assert pieces == Pieces() or work.needed(larger) > room
    assert [amount(pieces) for pieces in chosen] == sorted(amount(pieces) for pieces in chosen)
    assert chosen[0].tile and chosen[-1] == Pieces(8, None)
    assert {pieces.chunk for pieces in chosen if pieces.tile is None} == set(range(1, 9))
    assert {pieces.chunk for pieces in chosen if pieces.tile is not None} == {1}


def test_of_several_gigabytes():
    """What a GPU of that size decodes 1280 x 720 in; the figures are the estimate's, not measured."""
    chosen = {free: coding().pieces(free * GIB) for free in (1, 2, 4, 8, 20)}
    assert chosen[20] == Pieces(8) and chosen[4] == Pieces(1)
    assert chosen[8].tile is None and 1 < chosen[8].chunk < 8
    assert LEAST_TILE < chosen[1].tile < 90 < chosen[2].tile < 160


def test_where_nothing_fits_or_nobody_knows():
    assert coding().pieces(0) == coding().least() == Pieces(1, LEAST_TILE)
    assert coding().pieces(-GIB) == Pieces(1, LEAST_TILE)
    assert coding(size=(20, 32)).pieces(0) == Pieces(1)  # smaller than a tile
    assert coding().pieces(None) == Pieces(8)


def test_encoding_takes_less_than_decoding_and_a_cpu_keeps_more():
    for pieces in (Pieces(), Pieces(1), Pieces(1, 40)):
        assert coding("encode").needed(pieces) < coding().needed(pieces)
        assert coding().needed(pieces) < coding(device=CPU).needed(pieces)
        assert coding(dtype=torch.float32).needed(pieces) > 1.9 * coding().needed(pieces)
    assert coding(frames=2).needed(Pieces()) == coding().needed(Pieces(2))


# The result


@pytest.mark.parametrize("dtype, most", [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_any_chunk_gives_the_same(dtype, most):
    """But for rounding: a kernel adds in another order for another number of frames."""
    model = randomize(Autoencoder(TINY.vae)).to(dtype)
    latents, video = randn(1, 4, 9, 5, 9).to(dtype), randn(1, 3, 9, 40, 72).to(dtype).clamp(-1, 1)
    decoded, encoded = model.decode(latents), model.encode(video)
    for chunk in range(1, 9):
        for again, whole in (
            (model.decode(latents, chunk=chunk), decoded),
            (model.encode(video, chunk=chunk), encoded),
        ):
            assert (again - whole).abs().max() <= most * whole.abs().max()


@pytest.fixture
def free(monkeypatch):
    """How much memory is free, one amount a question; the last for all that follow."""

    def says(*amounts):
        amounts = list(amounts)
        monkeypatch.setattr(
            memory, "free_memory", lambda device: amounts.pop(0) if len(amounts) > 1 else amounts[0]
        )

    return says


@pytest.fixture(scope="module")
def model(small_checkpoint):
    return load(small_checkpoint, dtype=torch.float32)


def work_of(model, way, clip):
    t, h, w = clip
    return Coding(model.config.vae, way, t, (h // 8, w // 8), torch.float32, CPU)


def test_generate_decodes_in_what_fits(model, free, caplog):
    clip = 3, 32, 320
    asked = {"clip": Clip(*clip), "sampling": Sampling(steps=1)}
    work, rest = work_of(model, "decode", clip), memory.finished(1, clip)
    seen = []

    def make(*amounts):
        seen.clear()
        free(10**12, *amounts)
        return generate(model, PROMPT, callback=lambda *event: seen.append(event), **asked)

    def steps():
        return [done for stage, done, _ in seen if stage == "decode"]

    whole = make(10**12)
    assert steps() == [0, 3]
    one = math.ceil(work.needed(Pieces(1)) * (1 + memory.SPARE)) + rest
    single = make(one)
    assert steps() == [0, 1, 2, 3] and not caplog.records
    assert (single - whole).abs().max() < 1e-5
    with caplog.at_level(logging.WARNING):
        tiled = make(one - 10)
    side = 8 * work.pieces(one - 10 - rest).tile
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"frames of 320 x 32 are decoded in tiles of {side} x {side} pixels, because")
    assert 1e-5 < (tiled - whole).abs().max() < 0.2


def test_generate_encodes_in_what_fits(model, free, caplog):
    clip = 3, 32, 320
    video = randn(1, 3, *clip).clamp(-1, 1)
    work, rest = work_of(model, "encode", clip), memory.finished(1, clip)
    one = math.ceil(work.needed(Pieces(1)) * (1 + memory.SPARE)) + rest

    def make(amount):
        free(10**12, amount, 10**12)
        return generate(model, PROMPT, source=Source(video, 0.5), sampling=Sampling(steps=2))

    whole = make(10**12)
    assert (make(one) - whole).abs().max() < 1e-4 and not caplog.records
    with caplog.at_level(logging.WARNING):
        assert 1e-5 < (make(one - 10) - whole).abs().max()
    assert "frames of 320 x 32 are encoded in tiles of" in caplog.text

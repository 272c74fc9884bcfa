"""Reading prepared data: windows of latents, a picture's tokens, and what the data fits."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from preparing import (
    BUCKETS,
    FPS,
    make_config,
    make_raw,
    run,
)

from training.data.config import DataConfig, DegradationConfig, SourceConfig
from training.data.manifest import Manifest, digests, folder_of
from training.data.prepared import read_prepared
from training.data.samples import BadSample, Raw
from univid import checkpoints


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    return make_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture
def config(raw, tmp_path, small_checkpoint, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_config(small_checkpoint, tmp_path / "out", raw / "clips" / "*.tar")


# Reading


def sample(frames, references, **changes):
    """Latents and tokens that say which frame they belong to."""
    tensors = {
        "latents": torch.arange(float(frames)).view(1, -1, 1, 1).expand(4, -1, 2, 3).contiguous(),
        "text": torch.zeros(5, 6),
        "image": torch.tensor(references, dtype=torch.float32).view(-1, 1, 1).expand(-1, 7, 8).contiguous(),
        "reference_frames": torch.tensor(references),
    } | changes
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return Raw("00000.tar:k", safetensors.torch.save(tensors), "safetensors", "words")


def test_windows_hold_consecutive_frames_and_one_that_is_shown():
    rng = random.Random(0)
    starts, shown = set(), set()
    for _ in range(400):
        length = rng.randint(1, 24)
        references = [0, *sorted(rng.sample(range(1, length), rng.randint(0, length - 1) // 3))]
        frames, raw = rng.randint(1, length), sample(length, references)
        window, reference = rng.random(), rng.choice([None, rng.random()])
        example = read_prepared(raw, "video", frames, window, reference)
        start, picture = int(example.latents[0, 0, 0, 0]), int(example.image[0, 0])
        assert example.latents[0, :, 0, 0].tolist() == list(range(start, start + frames))
        assert start <= picture < start + frames and picture in references
        assert reference is not None or picture == start
        assert example.latents.untyped_storage().nbytes() == 4 * 6 * frames * 4  # and not the whole clip
        first = read_prepared(raw, "video", frames, 0.0, 0.0)
        assert (int(first.latents[0, 0, 0, 0]), int(first.image[0, 0])) == (0, 0)
        frame = read_prepared(raw, "frame", 1, window, reference)
        assert frame.latents.shape == (4, 1, 2, 3) and frame.latents[0, 0, 0, 0] == frame.image[0, 0]
        starts.add(start), shown.add(int(frame.image[0, 0]))
    assert len(starts) > 10 and len(shown) > 10


def test_a_poor_copy_is_cut_as_its_sample():
    poor = 100 + torch.arange(7.0).view(1, -1, 1, 1).expand(4, -1, 2, 3).contiguous()
    raw = sample(7, [0, 3], degraded=poor)
    for modality, frames in (("video", 4), ("frame", 1)):
        for window in (0.0, 0.6, 0.9):
            example = read_prepared(raw, modality, frames, window, 0.0)
            assert torch.equal(example.degraded, example.latents + 100)
    assert read_prepared(sample(7, [0, 3]), "video", 4, 0.0, 0.0).degraded is None


def test_every_window_and_every_reference_frame_is_drawn():
    raw = sample(12, [0, 4, 8])
    drawn = {
        (int(e.latents[0, 0, 0, 0]), int(e.image[0, 0]))
        for window in np.linspace(0, 1, 50, endpoint=False)
        for reference in (0.0, 0.4, 0.6, 0.999)
        for e in [read_prepared(raw, "video", 5, window, reference)]
    }
    assert drawn == {(s, r) for s in range(8) for r in (0, 4, 8) if s <= r < s + 5}


@pytest.mark.parametrize(
    "raw, modality, frames, reason",
    [
        (sample(7, [0, 3]), "video", 8, "7 frames, 8 needed"),
        (sample(7, [0, 3]), "image", 1, "a clip of 7 frames"),
        (sample(7, [0, 3], text=None), "video", 4, "not what prepare writes: image"),
        (sample(7, [0, 3], latents=torch.zeros(4, 7, 2)), "video", 4, "not what prepare writes"),
        (sample(7, [0, 3, 7]), "video", 4, "reference frames"),
        (sample(7, [1, 3]), "video", 4, "reference frames"),
        (sample(7, [0], degraded=torch.zeros(4, 6, 2, 3)), "video", 4, r"poor copy of \[4, 6, 2, 3\]"),
        (sample(7, [0], degraded=torch.zeros(4, 7, 2)), "video", 4, "not what prepare writes"),
        (sample(7, [], image=torch.zeros(0, 7, 8)), "frame", 1, "empty ones"),
        (sample(7, [0, 3], image=torch.zeros(1, 7, 8)), "video", 4, "tokens of 1 pictures"),
        (dataclasses.replace(sample(7, [0]), media=b""), "video", 4, "not readable"),
        (dataclasses.replace(sample(7, [0]), media=sample(7, [0]).media[:-9]), "video", 4, "not readable"),
        (dataclasses.replace(sample(7, [0]), media=Path("/no/such/file")), "video", 4, "not readable"),
    ],
)
def test_samples_that_do_not_fit_are_bad(raw, modality, frames, reason):
    with pytest.raises(BadSample, match=reason):
        read_prepared(raw, modality, frames, 0.0, 0.0)


def test_a_sample_too_large_for_memory_is_bad(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(sample(7, [0]).media)
    raw = dataclasses.replace(sample(7, [0]), media=path)
    assert read_prepared(raw, "video", 4, 0.0, 0.0).latents.shape[1] == 4
    monkeypatch.setattr("training.data.prepared.MEDIUM_BYTES", 100)
    with pytest.raises(BadSample, match="its safetensors has more than 100 bytes"):
        read_prepared(raw, "video", 4, 0.0, 0.0)


def test_a_manifest_knows_what_it_fits(config, small_checkpoint):
    run(config)
    model = checkpoints.load(small_checkpoint)
    data = DataConfig(
        clips=SourceConfig((str(config.out / "clips"),)), buckets=BUCKETS[::-1], fps=FPS, max_frames=10
    )
    shard = next(config.out.glob("clips/*.tar"))
    assert folder_of(shard) == folder_of(config.out) == folder_of(config.out / "clips" / "*.tar")
    manifest = Manifest.read(shard)
    manifest.check(model.config.unet, data, digests(model))
    manifest.check(model.config.unet, data)
    tiny = checkpoints.load(parts=("vae",))
    for unet, changes, weights, reason in (
        (tiny.config.unet, {}, None, "text of width 64, got 32"),
        (model.config.unet, {"fps": 4.0}, None, "got 4 fps"),
        (model.config.unet, {"max_frames": 13}, None, "at most 12 frames"),
        (model.config.unet, {"buckets": BUCKETS[:1]}, None, "expected the buckets"),
        (model.config.unet, {}, digests(tiny), "prepared with this vae"),
        (
            model.config.unet,
            {"degradations": DegradationConfig()},
            None,
            "'preset': 'light', .*, got none",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            manifest.check(unet, dataclasses.replace(data, **changes), weights)


def test_digests_see_every_part(small_checkpoint):
    model = checkpoints.load(small_checkpoint)
    before = digests(model)
    assert before == digests(checkpoints.load(small_checkpoint)) and len(before) == 3
    for part in before:
        next(getattr(model, part).parameters()).data.view(-1)[-1] += 1
        after = digests(model)
        assert {name for name in before if before[name] != after[name]} == {part}
        before = after

"""Raw shards become shards of latents and tokens: the right ones, and what is bad is left out."""

import dataclasses
import json
import shutil
import tarfile

import pytest
import safetensors.torch
import torch
from preparing import (
    BUCKETS,
    CLIP_FRAMES,
    FPS,
    contents,
    make_config,
    make_raw,
    run,
    stored,
)
from shards import make_folder, read_all, write_tar

from training.data import buckets, decode
from training.data.config import DataConfig, DegradationConfig, SourceConfig
from training.data.degradations import degrade
from training.data.encode import decode_sample
from training.data.prepared import read_prepared
from training.data.samples import PreparedExample
from training.data.sources import open_source
from training.data.stream import Stream
from training.prepare import PrepareConfig, WorkConfig
from training.rng import seed_for
from univid import checkpoints
from univid.encoders import preprocess


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    return make_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture
def config(raw, tmp_path, small_checkpoint, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_config(small_checkpoint, tmp_path / "out", raw / "clips" / "*.tar")


# What is stored


def test_what_is_stored_is_what_encoding_gives(tmp_path, small_checkpoint):
    """Real clips of a folder, encoded by hand."""
    folder = make_folder(tmp_path / "clips")
    config = PrepareConfig(
        str(small_checkpoint), tmp_path / "out", clips=SourceConfig((str(folder),)), buckets=BUCKETS,
        frames=10, fps=6, references=4, dtype="float32", work=WorkConfig(gather=15),
    )  # fmt: skip
    summary = run(config)
    assert (summary.samples, summary.bad, summary.short, summary.shards) == (3, 0, 0, 1)
    model = checkpoints.load(small_checkpoint)
    raws = {raw.meta["source"]: raw for raw in stored(config.out / "clips", "clip")}
    assert sorted(raws) == ["clips/a.MP4", "clips/b.mp4", "clips/below/c.mp4"]
    for source, raw in raws.items():
        bucket = (64, 128) if source == "clips/b.mp4" else (64, 64)  # 640 x 272, 176 x 144
        pixels = decode.decode_clip(tmp_path / source, frames=10, fps=6, cover=bucket)
        pixels = buckets.fit(pixels, bucket).movedim(3, 0)[None] / 127.5 - 1
        for frames in (8, 10):
            example = read_prepared(raw, "video", frames, 0, 0)
            expected = model.vae.float().encode(pixels[:, :, :frames])[0]
            torch.testing.assert_close(example.latents, expected, rtol=1e-4, atol=1e-5)
        tensors = safetensors.torch.load(raw.media)
        assert tensors["reference_frames"].tolist() == [0, 2, 5, 7]
        for tokens, frame in zip(tensors["image"], (0, 2, 5, 7), strict=True):
            picture = preprocess(pixels[:, :, frame], model.config.vision.image_size)
            expected = model.image_encoder.float().tokens(picture)[0]
            torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
            other = tensors["image"][0 if frame else 3]
            assert not torch.allclose(other, expected, rtol=1e-4, atol=1e-5)
        text = model.text_encoder.float()([raw.caption])[0]
        torch.testing.assert_close(example.text, text, rtol=1e-4, atol=1e-5)
        assert raw.caption == f"clip {source.removeprefix('clips/')}"
        size = {"height": bucket[0], "width": bucket[1]}
        facts = {"frames": 10, "fps": 6, "key": source.replace("/", "_").replace(".", "_"), "source": source}
        assert raw.meta == size | facts | ({"motion": 3} if "b.mp4" in source else {})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_are_rounded_to_the_type_of_storage(config, dtype):
    exact = dataclasses.replace(config, out=config.out / "exact", dtype="float32")
    rounded = dataclasses.replace(config, out=config.out / "rounded", dtype=dtype)
    run(exact), run(rounded)
    for a, b in zip(stored(exact.out, "clip"), stored(rounded.out, "clip"), strict=True):
        a, b = safetensors.torch.load(a.media), safetensors.torch.load(b.media)
        for name in ("latents", "text", "image"):
            assert torch.equal(a[name].to(getattr(torch, dtype)), b[name]), name


def test_pictures_keep_their_keys_numbers_and_order(raw, config):
    images = SourceConfig((str(raw / "pictures"),))
    summary = run(dataclasses.replace(config, images=images))
    assert (summary.shards, summary.samples, summary.bad) == (4, 24, 0)
    for least in (-1.0, 6.0):  # thresholds can be set when the data is prepared
        source = open_source(dataclasses.replace(images, at_least={"aesthetic": least}), "image", BUCKETS)
        expected = read_all(source)
        got = stored(config.out / "images", "image", at_least={"aesthetic": least})
        assert [r.key.split(":")[1] for r in got] == [r.key.split(":")[1] for r in expected]
        assert [r.caption for r in got] == [r.caption for r in expected]
        for g, e in zip(got, expected, strict=True):
            assert g.extension == "safetensors" and g.meta["source"] == e.key
            size = {name: g.meta[name] for name in ("width", "height")}  # of the bucket
            assert (e.meta | size).items() <= g.meta.items()
            example = read_prepared(g, "image", 1, 0.9, 0.9)
            assert example.latents.shape == (4, 1, g.meta["height"] // 8, g.meta["width"] // 8)
    assert 0 < len(got) < 12


def test_training_reads_the_same_samples_in_the_same_order(config):
    """Raw or prepared, without augmentation: the latents and tokens of every step are the same."""
    config = dataclasses.replace(config, dtype="float32", min_frames=4)
    run(config)
    batch = {"frame": 2, "video": 3}
    data = DataConfig(
        clips=config.clips, buckets=BUCKETS, min_frames=4, max_frames=CLIP_FRAMES, fps=FPS, augment=False
    )
    prepared = dataclasses.replace(data, clips=SourceConfig((str(config.out / "clips"),)))
    streams = [Stream(d, 5, batch, {"clip": open_source(d.clips, "clip", BUCKETS)}) for d in (data, prepared)]
    model = checkpoints.load(config.base).to(dtype=torch.float32)
    lengths = set()
    for step in range(6):
        for modality in batch:
            for index in range(batch[modality]):
                raw, ours = (stream.example(modality, step, index) for stream in streams)
                assert isinstance(ours, PreparedExample) and raw.caption == ours.caption
                pixels = raw.pixels.movedim(3, 0)[None] / 127.5 - 1
                close = dict(rtol=1e-4, atol=1e-4)  # convolutions round by batch and by thread
                torch.testing.assert_close(ours.latents, model.vae.encode(pixels)[0], **close)
                tokens = model.image_encoder(pixels[:, :, raw.reference])[0]
                torch.testing.assert_close(ours.image, tokens, **close)
                lengths.add(ours.latents.shape[1])
    assert len(lengths) > 3


# Poor copies


def test_poor_copies_are_stored_beside_their_samples(raw, config):
    images = SourceConfig((str(raw / "pictures"),))
    config = dataclasses.replace(
        config, images=images, dtype="float32", degradations=DegradationConfig("strong", noise=True, seed=3)
    )
    run(config)
    model = checkpoints.load(config.base).to(dtype=torch.float32)
    for kind, folder in (("clip", "clips"), ("image", "images")):
        source = open_source(getattr(config, folder), kind, BUCKETS)
        held = iter(stored(config.out / folder, kind))
        for bucket, shards in enumerate(source.counts()):
            for shard, count in enumerate(shards.tolist()):
                for index in range(min(count, 2)):
                    kept = next(r for r in held if r.meta["source"] == source.read(bucket, shard, index).key)
                    tensors = safetensors.torch.load(kept.media)
                    window = config.window if kind == "clip" else None
                    sample = decode_sample(source.read(bucket, shard, index), BUCKETS[bucket], window)
                    clean = sample.pixels.movedim(3, 0)[None] / 127.5 - 1
                    seed = seed_for(3, f"{kind} {shard} {bucket}", 0)
                    poor = degrade(clean, "strong", seed, [index], noise=True, size=BUCKETS[bucket])
                    expected = model.vae.encode(((poor + 1) * 127.5).round() / 127.5 - 1)[0]
                    torch.testing.assert_close(tensors["degraded"], expected, rtol=1e-4, atol=1e-5)
                    assert not torch.allclose(tensors["latents"], expected, rtol=1e-2, atol=1e-3)


def test_a_run_with_poor_copies_is_no_other_run(config):
    """The same ones again by the same seed, and without them the settings of earlier versions."""
    first, again, other = (
        dataclasses.replace(config, out=config.out / name, degradations=DegradationConfig(seed=seed))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    for one in (first, again, other):
        run(one)
    assert contents(first.out) == contents(again.out)
    for a, b in zip(stored(first.out, "clip"), stored(other.out, "clip"), strict=True):
        a, b = safetensors.torch.load(a.media), safetensors.torch.load(b.media)
        assert torch.equal(a["latents"], b["latents"]) and not torch.equal(a["degraded"], b["degraded"])
    assert "degradations" not in config.settings()
    with pytest.raises(ValueError, match="data of other settings or shards .*seed"):
        run(dataclasses.replace(first, degradations=DegradationConfig(seed=2)))


# Bad samples, checksums


def spoilt(raw, path):
    """The first tar, and clips that are each spoilt in another way."""
    samples = {}
    with tarfile.open(raw / "clips" / "part-0.tar") as tar:
        for member in tar:
            key, suffix = member.name.split(".")
            data = tar.extractfile(member).read()
            samples.setdefault(key, {})[suffix] = json.loads(data) if suffix == "json" else data
    good = list(samples.values())
    samples["zero"] = good[0] | {"mp4": b""}
    samples["cut"] = good[0] | {"mp4": good[0]["mp4"][:300]}
    samples["latin"] = good[0] | {"txt": "gr\xfcn".encode("latin-1")}
    samples["mute"] = {"mp4": good[0]["mp4"], "json": good[0]["json"]}
    samples["last"] = good[1]
    return write_tar(path, samples)


def test_bad_samples_are_listed_and_left_out(raw, config, tmp_path):
    path = spoilt(raw, tmp_path / "spoilt" / "a.tar")
    config = dataclasses.replace(config, clips=SourceConfig((str(path),)), work=WorkConfig(max_bad_share=0.5))
    summary = run(config)
    assert (summary.samples, summary.bad) == (5, 4)
    reasons = [json.loads(line)["reason"] for line in (config.out / "bad.jsonl").read_text().splitlines()]
    assert sorted(reason.split(": ")[0] for reason in reasons) == [
        "a.tar:cut", "a.tar:latin", "a.tar:mute", "a.tar:zero",
    ]  # fmt: skip
    assert any("it is empty" in reason for reason in reasons) and any("UTF-8" in reason for reason in reasons)
    assert sorted(r.key.split(":")[1] for r in stored(config.out, "clip")) == [
        *(f"{i:06d}" for i in range(4)), "last",
    ]  # fmt: skip


def test_too_many_bad_samples_stop_the_run_with_their_list(raw, config, tmp_path):
    path = spoilt(raw, tmp_path / "spoilt" / "a.tar")
    config = dataclasses.replace(config, clips=SourceConfig((str(path),)), work=WorkConfig(max_bad_share=0.4))
    with pytest.raises(ValueError, match=r"4 of 9 samples cannot be used.*bad.jsonl names all.*a.tar:cut"):
        run(config)
    assert len(list(config.out.glob("clips/*.tar"))) == 1  # nothing that was done is lost
    samples = {f"{i:03d}": {"mp4": b"no clip", "txt": "words", "json": {}} for i in range(200)}
    many = write_tar(tmp_path / "many" / "b.tar", samples)
    config = dataclasses.replace(config, out=tmp_path / "early", clips=SourceConfig((str(many),)))
    with pytest.raises(ValueError, match="20 of 20 samples cannot be used"):  # long before the shard's end
        run(config)
    assert not list(config.out.glob("clips/*"))
    assert len((config.out / "bad.jsonl").read_text().splitlines()) == 20


def test_short_clips_give_the_frames_that_they_have(config, caplog):
    config = dataclasses.replace(config, frames=20, references=5)
    summary = run(config)
    assert (summary.samples, summary.short, summary.bad) == (12, 12, 0)
    assert "12 clips have fewer than 20 frames" in caplog.text
    for raw in stored(config.out, "clip", at_most={"frames": 19}):
        tensors = safetensors.torch.load(raw.media)
        assert raw.meta["frames"] == CLIP_FRAMES == tensors["latents"].shape[1]
        assert tensors["reference_frames"].tolist() == [0, 2, 4, 7, 9]
    with pytest.raises(ValueError, match="to pass the thresholds"):
        stored(config.out, "clip", at_least={"frames": 20})
    strict = dataclasses.replace(
        config, out=config.out / "strict", min_frames=13, work=WorkConfig(max_bad_share=1)
    )
    assert run(strict).bad == 12
    assert not list(strict.out.glob("clips/*.tar")) and run(strict).bad == 12


def test_large_folders_become_several_shards(raw, config, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (raw / "clips").glob("*.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(folder, filter="data")
    config = dataclasses.replace(
        config, clips=SourceConfig((str(folder),)), work=WorkConfig(folder_shard=5), min_frames=1
    )
    summary = run(config)
    assert (summary.shards, summary.samples) == (3, 12)
    assert len({raw.meta["source"] for raw in stored(config.out, "clip")}) == 12
    shutil.copy(folder / "000000.mp4", folder / "new.mp4")
    (folder / "new.txt").write_text("a new clip")
    with pytest.raises(ValueError, match="shards.clips"):
        run(config)
    inside = dataclasses.replace(config, out=folder / "out")
    with pytest.raises(ValueError, match="take a folder outside of the raw data"):
        run(inside)


# Configs, and what training may be given


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"clips": None}, "expected images or clips"),
        ({"dtype": "float8"}, "dtype must be one of"),
        ({"references": 0}, "references must be between 1 and the 12 frames, got 0"),
        ({"references": 13}, "references must be between"),
        ({"frames": 2}, "min_frames"),
        ({"fps": 0.0}, "fps"),
        ({"buckets": ((60, 64),)}, "multiples of 8"),
    ],
)
def test_configs_that_make_no_sense_are_refused(config, changes, reason):
    with pytest.raises(ValueError, match=reason):
        dataclasses.replace(config, **changes)


def test_work_that_makes_no_sense_is_refused():
    for changes in ({"precision": "float8"}, {"workers": 0}, {"gather": 0}, {"folder_shard": 0}):
        with pytest.raises(ValueError, match="must be"):
            WorkConfig(**changes)

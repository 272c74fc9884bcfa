"""What every step shows: buckets, frames, samples and their parts, however the run is spread or cut."""

import dataclasses
import itertools
import time
from collections import Counter

import numpy as np
import pytest
import safetensors.torch
import torch
from streams import BUCKETS, CARPHONE, COUNTS, Clips, Pictures, same, stream

from training.data import buckets, decode
from training.data.config import DataConfig
from training.data.samples import Raw
from training.data.stream import ATTEMPTS, CHUNK, Draws, Stream

# What a step is


def test_buckets_are_drawn_by_their_samples_and_frames_evenly():
    draws = Draws(np.array([0, 60, 0, 30, 10]), (8, 24), seed=0, stream="video shapes")
    drawn = [draws(step)[:2] for step in range(20_000)]
    of_buckets = Counter(bucket for bucket, _ in drawn)
    assert set(of_buckets) == {1, 3, 4}
    for bucket, share in ((1, 0.6), (3, 0.3), (4, 0.1)):
        assert abs(of_buckets[bucket] / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
    of_frames = Counter(frames for _, frames in drawn)
    assert set(of_frames) == set(range(8, 25))
    expected = 20_000 / 17
    assert sum((count - expected) ** 2 / expected for count in of_frames.values()) < 46  # 1 in 10,000
    long = Counter(bucket for bucket, frames in drawn if frames > 16)  # neither depends on the other
    assert abs(long[1] / long.total() - 0.6) < 0.025


def test_earlier_steps_of_a_bucket_against_counting():
    sizes, seen = np.array([3, 1, 2]), Counter()
    forward = Draws(sizes, (1, 1), seed=5, stream="x")
    at = {0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7}
    for step in range(2 * CHUNK + 8):
        bucket, _, earlier = forward(step)
        assert earlier == seen[bucket]
        seen[bucket] += 1
        if step in at:  # at once, as after a resume
            assert Draws(sizes, (1, 1), seed=5, stream="x")(step) == (bucket, 1, earlier)
    assert forward(3) == Draws(sizes, (1, 1), seed=5, stream="x")(3)


def test_a_late_step_is_found_quickly():
    draws = Draws(np.array([3, 1, 2]), (8, 24), seed=5, stream="x")
    start = time.process_time()
    draws(1_000_000)
    first = time.process_time() - start
    start = time.process_time()
    for step in range(1_000_000, 1_001_000):
        draws(step)
    assert first < 2 and time.process_time() - start < 0.5  # 0.1 s, then 10 us each on a quiet core


def test_modalities_and_seeds_draw_their_own_shapes():
    both = stream({"image": 2, "frame": 2, "video": 2})
    shapes = {name: [both.shape(name, step) for step in range(200)] for name in both.batch}
    assert {frames for _, frames in shapes["image"] + shapes["frame"]} == {1}
    assert {frames for _, frames in shapes["video"]} == {2, 3, 4}
    of_bucket = {name: [bucket for bucket, _ in shapes[name]] for name in shapes}
    assert of_bucket["image"] != of_bucket["frame"] != of_bucket["video"]
    assert of_bucket["image"] != [stream(seed=2).shape("image", step)[0] for step in range(200)]
    again = stream({"video": 2})  # what else is in the batch changes nothing
    assert shapes["video"] == [again.shape("video", step) for step in range(200)]


# Which samples it shows


def test_no_repeats_in_an_epoch_of_a_bucket():
    one = stream(augment=False)
    walks = {0: [], 2: []}
    for step in range(40):
        bucket, _ = one.shape("image", step)
        for index in range(3):
            example = one.example("image", step, index)
            assert tuple(example.pixels.shape) == (1, *BUCKETS[bucket], 3)
            assert example.caption == f"noise {example.key}" and example.key.startswith(f"{bucket}/")
            walks[bucket].append(example.key)
    for bucket, walk in walks.items():
        size = int(COUNTS[bucket].sum())
        assert len(walk) >= 2 * size
        epochs = [walk[start : start + size] for start in range(0, len(walk) - size + 1, size)]
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert epochs[0] != epochs[1]
    assert one.size("image") == COUNTS.sum()


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_every_number_of_processes_sees_the_same_global_batches(processes):
    """More of them than the four shards, too."""
    batch = {"image": 8}
    whole = stream(batch)
    ranks = [stream(batch) for _ in range(processes)]
    for step in (0, 7):
        alone = [whole.example("image", step, index) for index in range(8)]
        spread = {
            i: ranks[r].example("image", step, i) for r in range(processes) for i in range(8)[r::processes]
        }
        assert all(same(alone[index], spread[index]) for index in range(8))


def test_a_resume_in_mid_epoch_goes_on():
    through = stream()
    steps = [[through.example("image", step, index) for index in range(3)] for step in range(9)]
    for start in (1, 5, 8):
        resumed = stream()
        assert all(same(resumed.example("image", start, index), steps[start][index]) for index in range(3))
    assert not same(steps[0][0], stream(seed=2).example("image", 0, 0))


# Which part of them


def test_without_augmentation_the_beginning_and_the_middle():
    one = stream({"video": 2, "frame": 2}, augment=False, reference="random")
    for step in range(4):
        bucket, frames = one.shape("video", step)
        example = one.example("video", step, 1)
        pixels = decode.decode_clip(CARPHONE, frames=frames, fps=8.0, start=0.5)
        assert torch.equal(example.pixels, buckets.fit(pixels, BUCKETS[bucket], 0.5, 0.5))
        assert example.reference == 0 and len(example.pixels) == frames
        if bucket == (shown := one.shape("frame", step)[0]):
            assert torch.equal(one.example("frame", step, 0).pixels, example.pixels[:1]), shown


def test_augmentation_moves_window_crop_and_reference():
    one = stream({"video": 4, "frame": 4})
    bucket, frames = one.shape("video", 0)
    examples = [one.example("video", 0, index) for index in range(4)]
    assert all(not same(a, b) for a, b in itertools.combinations(examples, 2))
    assert all(same(example, one.example("video", 0, i)) for i, example in enumerate(examples))
    assert all(tuple(example.pixels.shape) == (frames, *BUCKETS[bucket], 3) for example in examples)
    assert all(0 <= example.reference < frames for example in examples)
    stills = [one.example("frame", 0, index) for index in range(4)]
    assert all(len(still.pixels) == 1 and still.reference == 0 for still in stills)
    assert all(not torch.equal(a.pixels, b.pixels) for a, b in itertools.combinations(stills, 2))


def test_reference_frames_are_all_equally_likely_or_the_first():
    clips = Clips(table=np.full((3, 2), 50))
    shown = {}
    for reference in ("random", "first"):
        one = stream({"video": 16}, clips=clips, min_frames=2, max_frames=2, reference=reference)
        shown[reference] = Counter(one.example("video", 0, index).reference for index in range(16))
    assert set(shown["random"]) == {0, 1} and min(shown["random"].values()) > 2
    assert shown["first"] == {0: 16}


CELLS = [(height // 8, width // 8) for height, width in BUCKETS]


@dataclasses.dataclass
class Prepared(Pictures):
    """Clips of five frames as `prepare` writes them."""

    def read(self, bucket, shard, index):
        tensors = {
            "latents": torch.arange(5.0).expand(4, 5)[..., None, None].repeat(1, 1, *CELLS[bucket]),
            "text": torch.zeros(3, 8),
            "image": torch.tensor([0.0, 2.0])[:, None, None].repeat(1, 6, 8),
            "reference_frames": torch.tensor([0, 2]),
        }
        return Raw(f"{shard}/{index}", safetensors.torch.save(tensors), "safetensors", "five frames")


def test_prepared_clips_are_cut_like_raw_ones():
    still = stream({"video": 8}, clips=Prepared(), augment=False)
    moved = stream({"video": 8}, clips=Prepared())
    starts = set()
    for step in range(6):
        frames = still.shape("video", step)[1]
        first = still.example("video", step, 0)
        assert first.latents[0, :, 0, 0].tolist() == list(range(frames)) and (first.image == 0).all()
        for index in range(8):
            latents = moved.example("video", step, index).latents
            assert latents.shape == (4, frames, *CELLS[moved.shape("video", step)[0]])
            starts.add(int(latents[0, 0, 0, 0]))
    assert len(starts) > 1


# Bad samples


def test_bad_samples_are_passed_over_with_their_reasons():
    keys = [f"{b}/{s}/{i}" for b in range(3) for s in range(4) for i in range(COUNTS[b, s])]
    bad = frozenset(keys[::4])
    one, clean = stream(images=Pictures(bad=bad)), stream()
    passed = Counter()
    for step, index in itertools.product(range(25), range(3)):
        example, wanted = one.example("image", step, index), clean.example("image", step, index)
        assert example.key not in bad
        if wanted.key in bad:
            assert example.passed_over[0].startswith(f"{wanted.key}: ") and len(example.passed_over[0]) < 200
            assert example.key.split("/")[0] == wanted.key.split("/")[0]  # of the same bucket
        else:
            assert same(example, wanted) and not example.passed_over
        passed.update(reason.split(":")[0] for reason in example.passed_over)
        assert same(example, one.example("image", step, index))
    assert set(passed) <= bad and len(passed) > 4


def test_an_unreadable_shard_is_passed_over():
    one = stream(images=Pictures(table=np.full((3, 4), 5), unreadable=frozenset({2})))
    reasons = [r for step in range(10) for i in range(3) for r in one.example("image", step, i).passed_over]
    assert reasons and all(reason.startswith("2.tar:") and "cannot be read" in reason for reason in reasons)


def test_one_good_sample_is_always_found_and_none_is_an_error():
    table = np.array([[4, 0], [0, 0], [0, 0]])
    keys = [f"0/0/{index}" for index in range(4)]
    one = stream(images=Pictures(table, bad=frozenset(keys[1:])))
    assert {one.example("image", step, index).key for step in range(5) for index in range(3)} == {"0/0/0"}
    none = stream(images=Pictures(table, bad=frozenset(keys)))
    with pytest.raises(ValueError, match=r"sample 1 of step 2 .* its 3 replacements are bad.*0/0/[0-3]: "):
        none.example("image", 2, 1)
    many = stream(images=Pictures(table * 1000, unreadable=frozenset({0})))
    with pytest.raises(ValueError, match=f"its {ATTEMPTS - 1} replacements"):
        many.example("image", 0, 0)


def test_what_a_batch_needs_is_checked_at_the_start():
    config = DataConfig(buckets=BUCKETS)
    for modality, kind in (("image", "image"), ("frame", "clip"), ("video", "clip")):
        with pytest.raises(ValueError, match=f'"{modality}" needs a source of {kind}s'):
            Stream(config, 0, {modality: 4}, {})
    with pytest.raises(ValueError, match="no clip can be used"):
        Stream(config, 0, {"video": 4}, {"clip": Clips(table=np.zeros((3, 5), dtype=int))})
    with pytest.raises(ValueError, match="image, frame, video; got 'images'"):
        Stream(config, 0, {"images": 4}, {"image": Pictures()})
    assert set(Stream(config, 0, {"image": 4, "video": 0}, {"image": Pictures()}).batch) == {"image"}

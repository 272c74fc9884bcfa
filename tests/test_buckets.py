import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as vision

from training.data.buckets import MAX_ENLARGEMENT, buckets_of, fit, nearest
from training.data.config import DataConfig
from training.data.samples import BadSample
from univid import video

BUCKETS = buckets_of(320 * 576)


def waves(t, height, width):
    """Finely striped colourful frames uint8 `[t h w 3]`."""
    frame, row, column = torch.meshgrid(
        torch.arange(t), torch.arange(height), torch.arange(width), indexing="ij"
    )
    channels = [torch.sin(row / 0.8 + frame), torch.cos(column / 0.9), torch.sin((row + column) / 31 - frame)]
    return (127.5 + 120 * torch.stack(channels, -1)).to(torch.uint8)


def test_buckets_are_of_nearly_equal_area():
    assert BUCKETS == DataConfig().buckets
    for area, aspect in [(64 * 64, 1), (320 * 576, 2), (512 * 512, 3), (576 * 1024, 2.4)]:
        made = buckets_of(area, aspect)
        assert len(set(made)) == len(made) and sorted(made) == list(made)
        assert {(w, h) for h, w in made} == set(made)
        for height, width in made:
            assert height % 64 == width % 64 == 0
            assert area - 64 * max(height, width) < height * width <= area
            assert max(height, width) <= aspect * min(height, width)
        DataConfig(buckets=made)


@pytest.mark.parametrize("area, aspect", [(0, 2), (-5, 2), (64 * 64 - 1, 2), (320 * 576, 0.9)])
def test_an_area_without_buckets_is_refused(area, aspect):
    with pytest.raises(ValueError, match="area of at least 64 x 64"):
        buckets_of(area, aspect)


def test_the_nearest_bucket_is_the_one_that_keeps_most():
    for index, (height, width) in enumerate(BUCKETS):
        for scale in (0.3, 1, 7):
            assert nearest(round(scale * height), round(scale * width), BUCKETS) == index
    assert BUCKETS[nearest(144, 176, BUCKETS)] == (384, 448)
    assert BUCKETS[nearest(720, 1280, BUCKETS)] == (320, 576)
    assert BUCKETS[nearest(1920, 1080, BUCKETS)] == (576, 320)
    chance = random.Random(0)
    for _ in range(300):
        height, width = chance.randint(1, 4000), chance.randint(1, 4000)

        def kept(bucket, height=height, width=width):
            """The share of the picture that the crop keeps."""
            scale = max(bucket[0] / height, bucket[1] / width)
            return bucket[0] * bucket[1] / scale**2 / (height * width)

        chosen = kept(BUCKETS[nearest(height, width, BUCKETS)])
        assert chosen == pytest.approx(max(map(kept, BUCKETS)), rel=1e-9)


def test_of_equally_near_buckets_the_first_counts():
    assert nearest(100, 100, [(64, 128), (128, 64)]) == 0
    assert nearest(100, 100, [(128, 64), (64, 128)]) == 0


@pytest.mark.parametrize("height, width", [(290, 640), (720, 1280), (700, 300), (320, 576), (289, 288)])
@pytest.mark.parametrize("bucket", BUCKETS)
def test_fit_is_crop_and_resize_of_other_libraries(height, width, bucket):
    pixels = waves(2, height, width)
    got = fit(pixels, bucket)
    assert got.shape == (2, *bucket, 3) and got.dtype == torch.uint8 and got.is_contiguous()
    # at the centre it is what inference does with a reference picture, there in float
    own = torch.from_numpy(video.to_uint8(video.fit(video.from_uint8(pixels.numpy()), *bucket)))
    assert (got.int() - own.int()).abs().max() <= 2
    scale = max(bucket[0] / height, bucket[1] / width)
    rows, columns = min(height, round(bucket[0] / scale)), min(width, round(bucket[1] / scale))
    top, left = (height - rows) // 2, (width - columns) // 2
    window = pixels.permute(0, 3, 1, 2)[..., top : top + rows, left : left + columns]
    other = vision.resize(window.float(), list(bucket), vision.InterpolationMode.BICUBIC, antialias=True)
    assert (got.permute(0, 3, 1, 2) - other).abs().max() <= 2
    image = Image.fromarray(np.ascontiguousarray(window[0].permute(1, 2, 0)))
    pillow = np.array(image.resize(bucket[::-1], Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(got[0].numpy() - pillow).max() <= 2
    shifted = fit(pixels, bucket, 1, 1).int()  # negative control
    if (rows, columns) != (height, width):
        assert (shifted - own.int()).abs().max() > 20


def test_one_frame_is_cut_as_many_are():
    pixels = waves(9, 300, 500)
    for bucket in BUCKETS:
        together = fit(pixels, bucket, 0.3, 0.8)
        for k in range(9):
            assert torch.equal(fit(pixels[k : k + 1], bucket, 0.3, 0.8)[0], together[k])


@pytest.mark.parametrize("bucket", [*BUCKETS, (64, 64)])
@pytest.mark.parametrize("height, width", [(480, 854), (854, 480), (333, 337), (2000, 700)])
def test_a_circle_stays_round(bucket, height, width):
    rows, columns = np.mgrid[:height, :width]
    radius = 0.2 * min(height, width)
    disc = np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2) <= radius
    got = fit(torch.from_numpy(np.uint8(disc)[None, ..., None].repeat(3, -1) * 255), bucket)[0, ..., 0] > 127
    across, down = (int(got.any(axis).sum()) for axis in (0, 1))
    assert abs(across - down) <= 1 + 0.01 * down
    scale = max(bucket[0] / height, bucket[1] / width)
    assert down == pytest.approx(2 * radius * scale, abs=2)  # and is enlarged as the bucket needs


def test_the_window_lies_where_it_is_asked_for():
    ramp = torch.arange(256, dtype=torch.uint8)
    lying = ramp[None, None, :, None].expand(1, 64, 256, 3).contiguous()
    standing = lying.transpose(1, 2).contiguous()
    for at in (0, 0.25, 0.5, 0.75, 1):
        first = math.ceil(at * 192 - 0.5)
        assert torch.equal(fit(lying, (64, 64), x=at, y=0.9)[0, 5, :, 0], ramp[first : first + 64])
        assert torch.equal(fit(standing, (64, 64), x=0.9, y=at)[0, :, 5, 0], ramp[first : first + 64])


def test_the_window_stays_inside_and_covers_the_bucket():
    chance = random.Random(1)
    for _ in range(60):
        height, width = chance.randint(33, 300), chance.randint(33, 300)
        bucket = chance.choice([(64, 64), (64, 128), (128, 64)])
        if max(bucket[0] / height, bucket[1] / width) > MAX_ENLARGEMENT:
            continue
        white = torch.full((1, height, width, 3), 255, dtype=torch.uint8)
        got = fit(
            white, bucket, chance.choice([0, chance.random(), 1]), chance.choice([0, chance.random(), 1])
        )
        assert got.shape == (1, *bucket, 3) and (got == 255).all()


def test_a_tiny_picture_is_a_bad_sample():
    assert fit(waves(1, 160, 288), (320, 576)).shape == (1, 320, 576, 3)
    message = "^176 x 144 is too small: for 576 x 320 it would be enlarged 3.3 times, at most 2 are good$"
    with pytest.raises(BadSample, match=message):
        fit(waves(1, 144, 176), (320, 576))
    with pytest.raises(BadSample):
        fit(waves(1, 1, 1), (64, 64))


@pytest.mark.parametrize("x, y", [(-0.1, 0), (0, 1.1), (math.nan, 0)])
def test_a_place_outside_is_the_callers_error(x, y):
    with pytest.raises(ValueError, match="expected x and y in 0..1"):
        fit(waves(1, 64, 64), (64, 64), x, y)

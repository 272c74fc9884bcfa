"""Noise: a frame's noise depends on its clip's seed and on nothing else."""

import pytest
import torch

from univid.noise import ClipNoise


def test_noise_is_the_hosts():
    noise = ClipNoise([7])
    torch.manual_seed(7)
    for _ in range(2):  # successive calls continue the stream
        assert torch.equal(noise((1, 4, 6, 8, 10))[0].transpose(0, 1), torch.randn(6, 4, 8, 10))


def test_frame_does_not_depend_on_length_or_batch():
    short, long = ClipNoise([5])((1, 4, 3, 8, 10)), ClipNoise([5])((1, 4, 24, 8, 10))
    assert torch.equal(short, long[:, :, :3])
    batch = ClipNoise([4, 5, 6])
    alone = ClipNoise([5])
    for _ in range(2):
        together = batch((3, 4, 3, 8, 10))
        assert torch.equal(together[1:2], alone((1, 4, 3, 8, 10)))
        assert not torch.equal(together[0], together[1])


def test_noise_is_standard_normal():
    noise = ClipNoise([0, 1])((2, 4, 16, 32, 32))
    assert noise.dtype == torch.float32 and noise.device.type == "cpu"
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_wrong_number_of_seeds():
    with pytest.raises(ValueError, match="2 clips, got 1 seeds"):
        ClipNoise([0])((2, 4, 1, 8, 8))

"""The formulas: Frechet distances and Inception scores against closed forms and other code, and intervals."""

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from torch import nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from training.metrics.bootstrap import interval
from training.metrics.frechet import Moments, frechet_distance, moments
from training.metrics.inception_score import inception_scores


def gaussian(mean, covariance):
    tensors = (torch.from_numpy(np.asarray(part, np.float64)) for part in (mean, covariance))
    return Moments.of(9, *tensors)


def test_closed_forms():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 6))
    a, b = rng.uniform(0, 3, (2, 6))
    a[0] = b[1] = 0  # a Gaussian without width in one direction
    turn = ortho_group.rvs(6, random_state=1)  # two covariances with the same axes
    turned = [turn @ np.diag(widths**2) @ turn.T for widths in (a, b)]
    expected = ((one - other) ** 2).sum() + ((a - b) ** 2).sum()
    first, second = gaussian(one, turned[0]), gaussian(other, turned[1])
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    # two axes that do not agree: the root of a 2 x 2 product has the trace sqrt(tr + 2 sqrt(det))
    c, d = np.array([[2.0, 0.6], [0.6, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    root = np.sqrt(np.trace(c @ d) + 2 * np.sqrt(np.linalg.det(c @ d)))
    expected = np.trace(c) + np.trace(d) - 2 * root
    assert frechet_distance(gaussian([0, 0], c), gaussian([0, 0], d)) == pytest.approx(expected, rel=1e-12)


class Pixels(nn.Module):
    """Pictures to some of their pixels as features."""

    num_features = 48

    def forward(self, pictures):
        return pictures.flatten(1)[:, :48].double()


@pytest.mark.parametrize("n", [200, 20])  # more and fewer than there are features
def test_others_find_the_same_distance(n):
    rng = np.random.default_rng(n)
    mix = rng.normal(size=(48, 48))
    real, fake = (rng.normal(size=(size, 48)) @ mix + shift for size, shift in ((n, 0), (n + 10, 0.2)))
    ours = frechet_distance(*(moments(torch.from_numpy(side)) for side in (real, fake)))
    theirs = FrechetInceptionDistance(Pixels(), input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    for side, flag in ((real, True), (fake, False)):
        theirs.update(torch.from_numpy(side).reshape(-1, 3, 4, 4), real=flag)
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)
    statistics = (fid_features_to_statistics(torch.from_numpy(side)) for side in (real, fake))
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert ours == pytest.approx(theirs, rel=1e-4)  # theirs adds to the diagonal where n is small


@pytest.mark.parametrize("width", [5, 40])  # fewer and more than there are samples
def test_counts_are_repetitions(width):
    rng = np.random.default_rng(3)
    rows, counts = rng.normal(size=(30, width)), rng.integers(0, 4, 30)
    counted = moments(torch.from_numpy(rows), torch.from_numpy(counts))
    repeated = np.repeat(rows, counts, axis=0)
    np.testing.assert_allclose(counted.mean, repeated.mean(0), atol=1e-12)
    np.testing.assert_allclose(counted.factor.T @ counted.factor, np.cov(repeated.T), atol=1e-12)
    assert counted.n == counts.sum()


def test_what_is_no_sample_is_refused():
    with pytest.raises(ValueError, match="2 samples or more a side, got 1"):
        moments(torch.ones(1, 3))
    with pytest.raises(ValueError, match="not finite"):
        moments(torch.tensor([[1.0], [float("nan")]]))


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore`", "ignore:std")
def test_others_find_the_same_inception_score():
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(103, 101)) * 3
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    scores = inception_scores(probabilities, 10)
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=False)
    assert scores.mean() == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert scores.std() == pytest.approx(theirs["inception_score_std"], rel=1e-9)

    class Logits(nn.Module):
        def forward(self, pictures):
            return pictures[:, 0, 0, :].double()

    whole = InceptionScore(Logits(), splits=1).set_dtype(torch.float64)
    whole.update(torch.from_numpy(logits)[:, None, None, :])
    assert inception_scores(probabilities, 1)[0] == pytest.approx(float(whole.compute()[0]), rel=1e-9)


def test_inception_scores_of_known_classes():
    sure = np.eye(101)[np.arange(1010) % 101]
    assert inception_scores(sure, 10) == pytest.approx(np.full(10, 101))
    assert inception_scores(np.full((20, 101), 1 / 101), 2) == pytest.approx(np.ones(2))
    with pytest.raises(ValueError, match="in 10 splits needs so many videos, got 9"):
        inception_scores(sure[:9], 10)


def test_an_interval_covers_what_other_videos_give():
    """Of distances to a known Gaussian: 95 % of the intervals hold the mean figure of as many videos."""
    rng = np.random.default_rng(8)
    real = gaussian(np.zeros(3), np.eye(3))

    def distance(rows, counts=None):
        return frechet_distance(real, moments(torch.from_numpy(rows), counts))

    samples = rng.normal(size=(120, 60, 3)) * 1.3 + 0.5
    values = [distance(rows) for rows in samples]
    expected, covered = np.mean(values), 0
    for seed, (rows, value) in enumerate(zip(samples, values, strict=True)):

        def figure(counts, number, rows=rows):
            return distance(rows, torch.from_numpy(counts))

        low, high = interval(figure, value, 60, 60, seed)
        covered += low <= expected <= high
        assert low < value < high
    assert 0.86 < covered / 120 < 1
    assert interval(figure, 1.0, 1, 60, 0) is None and interval(figure, 1.0, 60, 0, 0) is None

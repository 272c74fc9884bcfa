"""A network's own loss picks captions: against an independent path, and on the built-in world."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from training.metrics.captions import (
    Choice,
    accuracy,
    caption_losses,
    captions_for,
    check_model,
    clip_of,
    pick,
)
from training.metrics.videos import Video
from training.tiny import shapes
from training.tiny.table import share
from univid import checkpoints
from univid.coding import encode
from univid.diffusion import x0_to_v
from univid.pipeline import encode_conditions
from univid.video import to_uint8

CAPTIONS = ["a red circle", "a blue square", "a green cross"]


@pytest.fixture(scope="module")
def model(small_checkpoint):
    return checkpoints.load(small_checkpoint, dtype=torch.float32)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A video in memory."""

    name: str
    prompt: str | None
    frames: np.ndarray | None = None

    def read(self):
        return self.frames, 8.0


def losses(model, frames, captions=CAPTIONS, choice=None, name="clip"):
    with torch.inference_mode():
        return caption_losses(model, frames, captions, choice or Choice(draws=5), name)


def test_losses_are_those_of_the_denoiser(model, frames, monkeypatch):
    """By another way: from x0, which sampling sees, to v and its error; noise and timesteps are caught."""
    from training.metrics import captions as module

    seen = []

    def spy(network, schedule, prediction, x0, noise, timesteps, cond):
        seen.append((x0[:1], noise[:1], timesteps))
        return training_loss(network, schedule, prediction, x0, noise, timesteps, cond)

    training_loss = module.training_loss
    monkeypatch.setattr(module, "training_loss", spy)
    found = losses(model, frames, choice=Choice(draws=5, batch=2))
    assert found.shape == (5, 3) and len(seen) == 10
    denoiser = model.denoiser()
    for draw in range(5):
        (x0, noise, timesteps), (_, same, again) = seen[2 * draw : 2 * draw + 2]
        assert torch.equal(noise, same) and len({*timesteps.tolist(), *again.tolist()}) == 1
        sigma = denoiser.schedule.sigma(timesteps[0])
        with torch.inference_mode():
            assert torch.equal(x0, encode(model, clip_of(model, frames)))
            for place, caption in enumerate(CAPTIONS):
                cond, _ = encode_conditions(model, [caption], [], "", 1.0, 0.0, range(3))
                x = x0 + sigma * noise
                v = x0_to_v(denoiser(x, sigma, cond), x, sigma)
                loss = (v - x0_to_v(x0, x, sigma)).square().mean().item()
                assert found[draw, place] == pytest.approx(loss, rel=1e-3)
                if draw:  # at the least noise, words say next to nothing
                    others = np.delete(found[draw], place)
                    assert abs(found[draw, place] - loss) < 0.1 * np.abs(others - loss).min()


def test_all_captions_see_the_same_noise(model, frames):
    same = losses(model, frames, ["a red circle"] * 3)
    assert same == pytest.approx(same[:, :1].repeat(3, 1), rel=1e-5)
    assert np.ptp(losses(model, frames), axis=1).min() > 1e-6 * same.mean()  # words do matter
    assert len({*same[:, 0].tolist()}) == 5
    one_by_one = losses(model, frames, choice=Choice(draws=5, batch=1))
    assert one_by_one == pytest.approx(losses(model, frames), rel=1e-4)
    assert (losses(model, frames) == losses(model, frames)).all()
    for other in (losses(model, frames, name="other"), losses(model, frames, choice=Choice(draws=5, seed=1))):
        assert (other != losses(model, frames)).all()


def test_timesteps_are_spread_evenly(model, frames, monkeypatch):
    from training.metrics import captions as module

    seen = []
    monkeypatch.setattr(
        module, "training_loss", lambda *given: seen.append(given[5][0].item()) or torch.zeros(len(given[5]))
    )
    losses(model, frames, choice=Choice(draws=10))
    last = model.denoiser().schedule.last
    assert np.diff(seen) == pytest.approx((last + 1) / 10, abs=1) and 0 <= seen[0] and seen[-1] <= last


def test_a_clip_is_taken_at_the_models_rate_and_size(model):
    profile = model.profile
    video = np.arange(30, dtype=np.uint8)[:, None, None, None].repeat(40, 1).repeat(60, 2).repeat(3, 3)
    for fps, step in ((np.nan, 1), (profile.fps, 1), (3 * profile.fps, 3), (profile.fps / 2, 1)):
        clip = clip_of(model, video, fps)
        assert clip.shape == (1, 3, profile.frames, profile.height, profile.width)
        assert to_uint8(clip)[:, 0, 0, 0].tolist() == [step * i for i in range(profile.frames)]
    assert clip_of(model, video[:2]).shape[2] == 2


def test_true_captions_win_on_the_built_in_world_and_shuffled_ones_lose():
    model = checkpoints.load("built-in", dtype=torch.float32)
    drawn = [shapes.clip(index, seed=3, frames=6) for index in range(5)]
    videos = [Drawn(f"{i}", scene.caption, frames) for i, (frames, scene) in enumerate(drawn)]
    choice = Choice(captions=4, draws=4)
    found = pick(model, videos, choice, progress=False)
    assert found["accuracy"]["value"] == 1 and found["chance"] == 0.25 and found["videos"] == 5
    row = found["rows"][0]
    assert row["captions"][0] == videos[0].prompt and len(set(row["captions"])) == len(row["losses"]) == 4
    wrong = [dataclasses.replace(v, prompt=w.prompt) for v, w in zip(videos, videos[1:] + videos[:1])]  # noqa: B905
    assert (
        pick(model, wrong, dataclasses.replace(choice, captions=5), progress=False)["accuracy"]["value"] == 0
    )


def test_which_captions_are_chosen_among():
    videos = [Drawn(str(i), f"caption {i % 6}") for i in range(12)]
    found = captions_for(videos, Choice(captions=4))
    assert (
        found == captions_for(videos, Choice(captions=4)) != captions_for(videos, Choice(captions=4, seed=1))
    )
    for video, captions in zip(videos, found, strict=True):
        assert captions[0] == video.prompt and len(set(captions)) == 4
    assert found[0][1:] != found[6][1:]  # of one prompt, two videos
    assert all(len(captions) == 6 for captions in captions_for(videos, Choice(captions=100)))


def test_accuracy_has_wilsons_interval():
    for hits in ([True] * 9 + [False], [False] * 4, [True] * 7):
        assert accuracy(hits, 5)["accuracy"] == pytest.approx(share(hits), abs=1e-6)
        assert accuracy(hits, 5)["chance"] == 0.2


def test_refusals(model):
    one = Video(Path("x.mp4"), "x", "a cat")
    for videos, words in (
        ([one, Video(Path("y.mp4"), "y")], "1 of 2 videos have no caption, the first: y"),
        ([one, Video(Path("y.mp4"), "y", "  ")], "have no caption"),
        ([one, one], "at least 2 different captions"),
        ([one], "at least 2 different captions"),
    ):
        with pytest.raises(ValueError, match=words):
            captions_for(videos, Choice())
    for wrong in ({"captions": 1}, {"draws": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match="expected"):
            Choice(**wrong)
    check_model(model)
    with pytest.raises(ValueError, match="with a text tower, got one without"):
        check_model(dataclasses.replace(model, text_encoder=None))
    start = dataclasses.replace(model.profile.start, timestep=None, denoise=0.5)
    with pytest.raises(ValueError, match="starts from noise alone"):
        check_model(dataclasses.replace(model, profile=dataclasses.replace(model.profile, start=start)))

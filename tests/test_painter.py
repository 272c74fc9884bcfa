"""The painter of many clips is that of single ones, and its tracks are of the same kind."""

import numpy as np
import torch

from training.tiny import shapes
from training.tiny.painter import Painter

PAINTER = Painter()


def test_every_scene_is_painted_as_by_itself():
    tracks = [shapes.random_track(scene, np.random.default_rng(i)) for i, scene in enumerate(shapes.SCENES)]
    poses = np.stack([track.at(np.linspace(0, 1, 3)) for track in tracks])
    painted = PAINTER.paint(PAINTER.all, torch.from_numpy(poses), 48)
    assert painted.shape == (432, 3, 48, 48, 3) and painted.dtype == torch.uint8
    alone = [shapes.render(scene, pose, 48) for scene, pose in zip(shapes.SCENES, poses, strict=True)]
    assert np.array_equal(painted.numpy(), np.stack(alone))


def test_tracks_follow_the_caption_inside_the_frame():
    scenes = PAINTER.all.repeat(5)
    tracks = PAINTER.tracks(scenes, torch.Generator().manual_seed(0))
    start, end = tracks.unbind(1)
    for index, first, last in zip(scenes.tolist(), start.numpy(), end.numpy(), strict=True):
        scene, travel = shapes.SCENES[index], (last - first)[:2]
        margin = shapes.REACH * max(first[2], last[2]) + shapes.MARGIN
        assert all(margin - 1e-6 <= place <= 1 - margin + 1e-6 for place in (*first[:2], *last[:2]))
        if scene.motion in shapes.DIRECTIONS:
            along = travel @ np.array(shapes.DIRECTIONS[scene.motion])
            assert shapes.DISTANCE[0] - 1e-6 <= along <= shapes.DISTANCE[1] + 1e-6
            assert np.isclose(np.abs(travel).sum(), along, atol=1e-6) and first[2] == last[2]
            assert shapes.MOVING_RADIUS[0] <= first[2] <= shapes.MOVING_RADIUS[1]
        else:
            small, large = sorted((first[2], last[2]))
            assert (travel == 0).all() and (first[2] == small) == (scene.motion == "grows")
            assert shapes.SMALL_RADIUS[0] <= small <= shapes.SMALL_RADIUS[1]
            assert shapes.LARGE_RADIUS[0] <= large <= shapes.LARGE_RADIUS[1]


def test_tracks_are_distributed_as_those_of_single_clips():
    """Means and deviations of poses, of one scene that moves and one that grows."""
    for motion in ("moves left", "grows"):
        scene = shapes.Scene("red", "circle", motion, "black")
        ones = [shapes.random_track(scene, np.random.default_rng(i)) for i in range(3000)]
        expected = np.stack([np.stack([track.start, track.end]) for track in ones])
        index = torch.full((3000,), shapes.SCENES.index(scene))
        drawn = PAINTER.tracks(index, torch.Generator().manual_seed(1)).numpy()
        assert np.abs(drawn.mean(0) - expected.mean(0)).max() < 0.012
        assert np.abs(drawn.std(0) - expected.std(0)).max() < 0.012


def test_videos_go_along_their_tracks():
    times = torch.tensor([0.0, 0.5, 1.0]).expand(6, 3)
    video = PAINTER.videos(PAINTER.seen[:6], times, torch.Generator().manual_seed(2))
    assert video.shape == (6, 3, 3, 64, 64) and video.min() >= -1 and video.max() <= 1
    start, end = PAINTER.tracks(PAINTER.seen[:6], torch.Generator().manual_seed(2)).unbind(1)
    poses = torch.stack([start, (start + end) / 2, end], 1)
    expected = shapes.to_video(PAINTER.paint(PAINTER.seen[:6], poses))
    assert (video - expected).abs().max() < 0.02

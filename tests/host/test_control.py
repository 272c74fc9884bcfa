"""A control net of Stable Diffusion 2.1's layout on the MODEL: each frame gets its own picture."""

import pytest
import torch
from host_tests.both import FRAMES, conditionings, randn, run
from host_tests.random_model import write
from host_tests.stand_ins import write_control_net


@pytest.fixture(scope="module")
def sampled(pack, tmp_path_factory):
    """Samples with control pictures `[t h w 3]`, in one step."""
    import comfy.controlnet
    from univid_pack.nodes.host.model import load_model

    from nodes import ControlNetApplyAdvanced

    folder = tmp_path_factory.mktemp("control")
    model = load_model(write(folder, model_channels=64), "fp32")
    write_control_net(folder / "net.safetensors", channel_mult=(1, 2, 4, 4), context_dim=24)
    net = comfy.controlnet.load_controlnet(str(folder / "net.safetensors"))

    def sample(pictures, guidance="joint"):
        with torch.inference_mode():
            conds = ControlNetApplyAdvanced().apply_controlnet(*conditionings(), net, pictures, 1.0, 0.0, 1.0)
            return run(model, guidance, conds=conds, steps=1)[0]

    return sample


PICTURES = randn(FRAMES, 64, 64, 3, seed=5).sigmoid()


@pytest.mark.parametrize("guidance", ["joint", "separate", "nested"])
def test_a_frame_gets_its_own_picture_in_every_branch(sampled, guidance):
    before = sampled(PICTURES, guidance)
    for frame in (0, 3):
        changed = PICTURES.clone()
        changed[frame] = 1 - changed[frame]
        moved = (sampled(changed, guidance) - before).abs().mean((1, 2, 3))
        assert moved.argmax() == frame and moved[frame] > 2 * moved.median()


def test_one_picture_is_for_all_frames(sampled):
    one = sampled(PICTURES[:1])
    repeated, others = sampled(PICTURES[:1].repeat(FRAMES, 1, 1, 1)), sampled(PICTURES)
    assert (one - others).abs().max() > 5 * (one - repeated).abs().max()


@pytest.mark.parametrize("count", [FRAMES - 1, FRAMES + 1, 2 * FRAMES])
def test_another_number_of_pictures_is_refused(sampled, count):
    with pytest.raises(ValueError, match=f"each of {FRAMES} frames, got {count}; pick or repeat images"):
        sampled(PICTURES.repeat(2, 1, 1, 1)[:count])

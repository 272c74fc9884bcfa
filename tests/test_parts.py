"""Parts of a network that a run trains alone: which parameters they are, and that no other moves."""

import dataclasses

import pytest
import torch
from adapters import KINDS, network
from denoise_runs import Maker, gradients

from training.lora import LoraConfig
from training.options import PARTS
from training.stages.parts import parameters_of
from univid.config import PositionConfig
from univid.model import UniVid
from univid.presets import PAPER, PROFILES
from univid.unet import UNet
from univid.widened import widened

pytestmark = pytest.mark.usefixtures("one_thread")


def placed():
    """The network with places, as the built-in one has them."""
    unet = KINDS["univid"]
    return UNet(
        dataclasses.replace(unet, temporal=dataclasses.replace(unet.temporal, position=PositionConfig(9, 99)))
    )


def wide():
    unet = network("univid")
    config = dataclasses.replace(PAPER, unet=unet.config)
    return widened(UniVid(config, PROFILES["paper"], unet), "known", 0.1).unet


NETWORKS = {
    "univid": lambda: network("univid"),
    "family": lambda: network("family"),
    "widened": wide,
    "places": placed,
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_space_is_what_the_image_network_has_and_time_the_rest(kind):
    unet = NETWORKS[kind]()
    space, time, attention, whole = (
        parameters_of(unet, part) for part in ("spatial", "temporal", "temporal-attention", "all")
    )
    temporal = dataclasses.replace(
        unet.config.temporal,
        conv_kernels=(),
        segment_frames=(),
        attention=False,
        input_heads=None,
        position=None,
    )
    still = UNet(dataclasses.replace(unet.config, temporal=temporal), device="meta")
    assert space == {name for name, _ in still.named_parameters()}
    assert whole == {name for name, _ in unet.named_parameters()} == parameters_of(unet, None)
    assert space | time == whole and not space & time and attention < time
    assert attention and not any("pst" in name or "proj_in" in name for name in attention)
    assert len({name.rpartition(".to_")[0] for name in attention}) == (22 if kind == "family" else 10)


@pytest.fixture(scope="module")
def make(media, small_checkpoint, tmp_path_factory):
    return Maker(media, small_checkpoint, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("part", PARTS)
def test_only_the_part_moves(make, tmp_path, part):
    task, before, saved = make.run(tmp_path, stage="joint", parts=part, batch={"video": 2})
    moved = {name for name, value in before.items() if not torch.equal(value, saved["model"][name])}
    asked = parameters_of(task.module, part)
    assert moved <= asked and len(moved) > 0.9 * len(asked)
    found = gradients(task)
    assert {name for name, gradient in found.items() if gradient is not None} == asked


def test_a_stage_and_a_part_meet(make):
    task = make(stage="t2v", parts="spatial", batch={"video": 2}, modes={"text": 1.0})
    trained = {name for name, parameter in task.module.named_parameters() if parameter.requires_grad}
    spatial = parameters_of(task.module, "spatial")
    assert trained == {n for n in spatial if "image" not in n} < spatial
    for stage in ("adapters", "adapters_kv"):
        with pytest.raises(ValueError, match=f"'{stage}' trains nothing of this network's parts 'temporal'"):
            make(stage=stage, parts="temporal", batch={"video": 2})


def test_a_lora_adapts_layers_of_the_part_alone(make):
    def adapted(**options):
        module = make(stage="lora", batch={"video": 2}, **options).module
        return {name for name, parameter in module.named_parameters() if parameter.requires_grad}

    lora = LoraConfig(rank=2, parts="attention")
    both = [adapted(lora=lora, parts=part) for part in ("spatial", "temporal")]
    assert not both[0] & both[1] and both[0] | both[1] == adapted(lora=lora)
    assert any(".pst_attn." in name for name in both[1]) and not any("pst" in name for name in both[0])
    with pytest.raises(ValueError, match="no layers of the parts 'cross-attention'"):
        make(stage="lora", lora=LoraConfig(parts="cross-attention"), parts="temporal", batch={"video": 2})


def test_single_frames_are_refused_where_they_train_nothing(make):
    with pytest.raises(
        ValueError, match="train none of the parts 'temporal', .*; set batch.image and batch.frame to 0"
    ):
        make(parts="temporal")
    make(parts="spatial")
    with pytest.raises(ValueError, match="parts must be one of all, spatial, temporal, temporal-attention"):
        make(parts="time")

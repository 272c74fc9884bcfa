"""Files of other projects behind Load UniVid: converted in memory to what `import` would write."""

import logging
import sys

import pytest
import torch


@pytest.fixture(scope="module")
def golden():
    """The random weights of the original networks; heads are taken as 64 wide, which fits their shapes."""
    from host_tests.conftest import ROOT

    sys.path.append(str(ROOT / "tests"))
    import golden_weights

    sys.path.remove(str(ROOT / "tests"))
    return golden_weights


def test_a_relative_s_file_is_what_import_writes(pack, golden, tmp_path, caplog):
    from safetensors.torch import load_file
    from univid_pack.nodes.host.model import load_model, profile_of
    from univid_pack.univid.checkpoints import import_file
    from univid_pack.univid.checkpoints.opened import open_checkpoint

    source = tmp_path / "model.ckpt"
    torch.save({"state_dict": golden.golden_state("videocrafter2")}, source)
    import_file(source, tmp_path / "univid.safetensors")
    ours = open_checkpoint(tmp_path / "univid.safetensors")
    weights = open_checkpoint(source)
    assert (weights.config, weights.profile) == (ours.config, ours.profile) and weights.trained
    expected, state = load_file(tmp_path / "univid.safetensors"), weights.read("unet")
    assert len(state) == len(expected) == 1482
    assert all(torch.equal(expected[f"model.diffusion_model.{key}"], state[key]) for key in state)
    assert not weights.holds("vae") and not weights.holds("text_encoder")
    with caplog.at_level(logging.WARNING):
        model = load_model(source, "fp32")
    assert profile_of(model).inputs.number("fps").value == 28.0 and model.model.model_sampling is not None
    assert "untrained" not in caplog.text
    loaded = model.model.diffusion_model.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_the_source_is_asked_for_where_tensors_leave_several(pack, golden, tmp_path):
    from safetensors.torch import save_file
    from univid_pack.nodes.load import UniVidLoad
    from univid_pack.univid.checkpoints.opened import open_checkpoint

    source = tmp_path / "unet.safetensors"
    save_file(golden.golden_state("modelscope"), source)
    plain, wide = open_checkpoint(source), open_checkpoint(source, "zeroscope")
    assert (plain.profile.frames, plain.profile.height) == (16, 256)
    assert (wide.profile.frames, wide.profile.height) == (24, 320) and plain.config == wide.config
    with pytest.raises(ValueError, match="is not 'videocrafter2'"):
        open_checkpoint(source, "videocrafter2")
    save_file(golden.golden_state("dynamicrafter_512"), source)
    with pytest.raises(ValueError, match="give the name 'dynamicrafter-512'"):
        open_checkpoint(source)
    with pytest.raises(ValueError, match="is a UniVid checkpoint, not zeroscope"):
        UniVidLoad.execute("built-in", source="zeroscope")

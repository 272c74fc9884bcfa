"""Show-1's last stage: its authors' own U-Net class, which counts heads, and how it is sampled."""

import copy
import json

import diffusers
import pytest
import torch
from reference import difference, randn, randomize
from weight_files import write_holes

from univid.checkpoints import import_file, load
from univid.checkpoints.imports import plan
from univid.checkpoints.origins import ORIGINS
from univid.conditioning import Conditioning
from univid.config import BetaConfig
from univid.diffusion import NoiseSchedule
from univid.presets import FAMILY
from univid.samplers import sigma_schedule

AUTHORS, DIFFUSERS = ["showone.models", "UNet3DConditionModel"], ["diffusers", "UNet3DConditionModel"]
WIDTHS = (64, 128)
HEADS = [1, 2]  # of 64 channels


@pytest.fixture(scope="module")
def theirs():
    """diffusers' class with heads 64 wide: what the authors' computes with HEADS."""
    kinds = {"down_block_types": ("CrossAttnDownBlock3D",) * 2, "up_block_types": ("CrossAttnUpBlock3D",) * 2}
    return randomize(
        diffusers.UNet3DConditionModel(
            block_out_channels=WIDTHS, layers_per_block=1, cross_attention_dim=64, **kinds
        )
    ).eval()


@pytest.fixture
def folder(theirs, tmp_path):
    """Their folder with other heads, class and scheduler."""

    def make(heads, owner=AUTHORS, **scheduler):
        theirs.save_pretrained(tmp_path / "show-1-sr2" / "unet")
        path = tmp_path / "show-1-sr2" / "unet" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_head_dim": heads}))
        index = tmp_path / "show-1-sr2" / "model_index.json"
        index.write_text(json.dumps({"unet": owner})) if owner is not None else index.unlink(missing_ok=True)
        if scheduler:
            kept = diffusers.DPMSolverMultistepScheduler(**scheduler)
            kept.save_pretrained(tmp_path / "show-1-sr2" / "scheduler")
        return tmp_path / "show-1-sr2"

    return make


@torch.no_grad()
def answer(network):
    x, timesteps, text = randn(1, 4, 3, 8, 9, seed=1), torch.tensor([700]), randn(1, 7, 64, seed=2)
    if isinstance(network, diffusers.UNet3DConditionModel):
        return network(x, timesteps, text).sample
    return network(x, timesteps, Conditioning(text, None, torch.tensor([[1.0, 0.0]])))


@pytest.mark.parametrize(
    ("heads", "owner"), [(HEADS, AUTHORS), (HEADS, None), (64, DIFFUSERS), (64, None)], ids=str
)
def test_heads_are_read_as_their_class_reads_them(theirs, folder, tmp_path, heads, owner):
    import_file(folder(heads, owner), tmp_path / "out.safetensors")
    model = load(tmp_path / "out.safetensors")
    assert model.config.unet.head_channels == 64 and model.config.unet.temporal.input_heads == 8
    assert difference(answer(model.unet), answer(theirs)) < 2e-5


def test_one_number_means_another_network(theirs):
    """Why it is refused: with 64 heads at every level the same weights give something else."""
    other = copy.deepcopy(theirs)
    for name, module in other.named_modules():
        if name.endswith((".attn1", ".attn2")) and not name.startswith("transformer_in"):
            module.heads, module.scale = 64, (module.inner_dim // 64) ** -0.5
    assert difference(answer(other), answer(theirs)) > 0.1


@pytest.mark.parametrize(
    ("heads", "owner", "words"),
    [
        (64, AUTHORS, "attention_head_dim 64 means 64 heads at every level and not heads 64 wide"),
        (64, [], "names its authors' own U-Net class"),
        (64, "showone.models", "unet ('showone.models') in show-1-sr2/model_index.json, expected a list"),
        ("x", AUTHORS, "attention_head_dim ('x')"),
        ([2, 4], AUTHORS, "has attention heads 32 wide"),
        ([1, 1], AUTHORS, "attention heads of several widths ([64, 128])"),
        ([1, 2, 2], AUTHORS, "attention_head_dim (a list) in unet/config.json, expected numbers of heads"),
        ([3, 2], AUTHORS, "expected numbers of heads that divide the widths (64, 128)"),
    ],
    ids=str,
)
def test_heads_that_do_not_fit(folder, heads, owner, words):
    source = folder(heads, owner)
    with pytest.raises(ValueError) as caught:
        plan(source)
    message = str(caught.value)
    assert message.startswith(f"{source} ") and message.endswith(".") and words in message, message


def test_the_class_shows_the_model(folder):
    assert plan(folder(HEADS)).report.title == ORIGINS["show1-sr2"].title
    assert not plan(folder(HEADS)).report.note
    assert plan(folder(64, DIFFUSERS)).report.title == ORIGINS["modelscope"].title
    with pytest.raises(ValueError, match="is not 'zeroscope', as its tensors show; .*'show1-sr2'"):
        plan(folder(HEADS), name="zeroscope")


def test_every_key_at_full_size(tmp_path):
    with torch.device("meta"):
        unet = diffusers.UNet3DConditionModel()
    (tmp_path / "show-1-sr2" / "unet").mkdir(parents=True)
    keys = {key: tensor.shape for key, tensor in unet.state_dict().items()}
    write_holes(tmp_path / "show-1-sr2" / "unet" / "model.safetensors", keys)
    config = json.loads(unet.to_json_string()) | {"attention_head_dim": [5, 10, 20, 20]}
    (tmp_path / "show-1-sr2" / "unet" / "config.json").write_text(json.dumps(config))
    (tmp_path / "show-1-sr2" / "model_index.json").write_text(json.dumps({"unet": AUTHORS}))
    planned = plan(tmp_path / "show-1-sr2")
    assert len(planned.entries) == planned.report.counts["mapped"][0] == 1480
    expected = json.loads(json.dumps({"unet": FAMILY.unet}, default=vars))
    assert json.loads(planned.metadata["config"])["unet"] == expected["unet"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
def test_its_profile_is_the_authors(folder, tmp_path):
    """Strength .8 of 50 steps, on diffusers' linspace."""
    source = folder(HEADS, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    import_file(source, tmp_path / "out.safetensors")
    model = load(tmp_path / "out.safetensors")
    p = model.profile
    assert (p.frames, p.height, p.width, p.fps) == (29, 320, 576, 8.0)
    assert (p.sampler, p.sigma_schedule, p.steps, p.start.denoise) == ("dpmpp_2m", "sgm_uniform", 40, 0.8)
    assert (p.guidance.kind, p.guidance.scale, p.guidance.rescale) == ("joint", 15.0, 0.0)
    scheduler = diffusers.DPMSolverMultistepScheduler.from_pretrained(source / "scheduler")
    scheduler.set_timesteps(50)
    schedule = NoiseSchedule(model.config.schedule)
    sigmas = sigma_schedule(p.sigma_schedule, schedule, p.steps, p.start.denoise)
    theirs = scheduler.timesteps[10:]
    assert len(theirs) == 40 and theirs[0] == 799
    assert (schedule.timestep(sigmas[:-1]) - theirs).abs().max() <= 1  # theirs are rounded before
    torch.testing.assert_close(sigmas, scheduler.sigmas[10:], rtol=5e-3, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_cosine_schedule_is_read(folder, tmp_path, prediction):
    source = folder(HEADS, beta_schedule="squaredcos_cap_v2", prediction_type=prediction)
    import_file(source, tmp_path / "out.safetensors")
    config = load(tmp_path / "out.safetensors").config.schedule
    assert config.betas == BetaConfig("squaredcos_cap_v2", None, None)
    assert config.prediction == {"epsilon": "eps", "v_prediction": "v"}[prediction]
    alpha_bars = diffusers.DPMSolverMultistepScheduler.from_pretrained(source / "scheduler").alphas_cumprod
    theirs = ((1 - alpha_bars) / alpha_bars).sqrt()
    torch.testing.assert_close(NoiseSchedule(config).sigmas[:-1], theirs[:-1], rtol=1e-3, atol=0)

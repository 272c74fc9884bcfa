"""The MODEL and its guidance inside the host, against the library on the same random weights."""

import logging

import pytest
import torch
from host_tests.both import (
    FRAMES,
    GUIDANCE,
    IMAGE,
    LATENT,
    SCHEDULER,
    TEXT,
    conditionings,
    difference,
    expected,
    guider,
    randn,
    run,
)
from host_tests.random_model import write

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture
def model(path):
    from univid_pack.nodes.host.model import load_model

    return load_model(path, "fp32")


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m", "lcm"])
def test_the_host_samples_what_the_library_samples(model, library, guidance, sampler):
    ours = run(model, guidance, sampler=sampler)[0]
    assert difference(ours, expected(library, guidance, sampler=sampler)) < 1e-4
    other = "nested" if guidance == "joint" else "joint"
    assert difference(ours, expected(library, other, sampler=sampler)) > 1e-3


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_zero_terminal_snr_starts_at_the_same_sigma(tmp_path, sampler):
    """It starts at sigma 4518, where float32 itself leaves 1e-4."""
    from univid_pack.nodes.host.model import load_model
    from univid_pack.univid.checkpoints import load

    path = write(tmp_path, zero_terminal_snr=True)
    ours = run(load_model(path, "fp32"), "separate", sampler=sampler)[0]
    theirs = load(path, dtype=torch.float32)
    assert difference(ours, expected(theirs, "separate", sampler=sampler)) < 2e-3
    assert difference(ours, expected(theirs, "nested", sampler=sampler)) > 1e-2


@pytest.mark.parametrize("weights", [(1, 0), (0, 1), (0, 0)])
@pytest.mark.parametrize("guidance", ["joint", "separate", "nested"])
def test_weights_of_zero_drop_branches_as_in_the_library(model, library, guidance, weights):
    conds = conditionings(weights)
    assert difference(run(model, guidance, conds)[0], expected(library, guidance, conds)) < 1e-4


def test_an_interrupt_ends_a_run_before_the_next_step(model):
    import comfy.model_management as management

    calls = []

    def counted(apply, given):
        calls.append(given)
        if len(calls) == 2:
            management.interrupt_current_processing(True)
        return apply(given["input"], given["timestep"], **given["c"])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(counted)
    with pytest.raises(management.InterruptProcessingException):
        run(patched)
    assert len(calls) == 2
    run(patched)
    assert len(calls) == 2 + 4


def test_prompts_pictures_and_weights_for_each_frame(model, library):
    per_frame = conditionings(
        torch.rand(FRAMES, 2, generator=torch.Generator().manual_seed(5)),
        text=randn(FRAMES, 77, 24, seed=6), image=randn(FRAMES, 6, 20, seed=8),
    )  # fmt: skip
    for guidance in ("joint", "separate"):
        out = run(model, guidance, per_frame)[0]
        assert difference(out, expected(library, guidance, per_frame)) < 1e-4
        assert difference(out, expected(library, guidance)) > 1e-2


@pytest.mark.parametrize("frames", [1, 2, 13])
def test_any_number_of_frames(model, library, frames):
    latent = {"samples": torch.zeros(frames, 4, 8, 8)}
    assert difference(run(model, latent=latent)[0], expected(library, frames=frames)) < 1e-4


def test_plain_ksampler_and_guider_node_give_the_same(model):
    import comfy.samplers
    from univid_pack.nodes.guide import UniVidGuiderNode

    from nodes import common_ksampler  # the host's

    positive, negative = conditionings()
    ours = run(model)[0]
    plain = common_ksampler(model, 7, 4, 3.0, "euler", SCHEDULER, positive, negative, LATENT)[0]["samples"]
    assert torch.equal(ours, plain)

    node = UniVidGuiderNode.execute(model, positive, negative, "joint", 3.0, 1.0, 1.0).result[0]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), SCHEDULER, 4)
    noise = torch.randn(LATENT["samples"].shape, generator=torch.Generator().manual_seed(7))
    sampler = comfy.samplers.sampler_object("euler")
    assert torch.equal(ours, node.sample(noise, LATENT["samples"], sampler, sigmas, seed=7))


@pytest.mark.parametrize(("guidance", "branches"), [("joint", 2), ("separate", 3), ("nested", 3)])
def test_all_branches_share_one_call(model, guidance, branches):
    calls = []

    def count(apply, args):
        calls.append(args["cond_or_uncond"])
        return apply(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(count)
    run(model, guidance)
    assert [len(call) for call in calls] == [branches] * 4


def test_pulls_are_those_of_the_branches(model):
    out, pulls = run(model, "separate")
    assert len(pulls) == 4 and all(p.text > 0 and p.image > 0 and -1 <= p.cosine <= 1 for p in pulls)
    stronger = run(model, "separate", conditionings((0.8, 1.2)))[1]
    assert stronger[0].image > pulls[0].image and stronger[0].text == pytest.approx(pulls[0].text)
    assert run(model, "joint")[1] == [None] * 4


def test_weights_follow_the_sampling_steps(model, library):
    """Full in the first half and off in the second, which the library does in two runs of its own."""
    points = torch.ones(1, 64, 2)
    points[:, :, 1] = torch.linspace(1, 0, 64)
    falling = run(model, conds=conditionings(points))[0]
    assert difference(falling, run(model, conds=conditionings((1, 1)))[0]) > 1e-3
    assert difference(falling, run(model, conds=conditionings((1, 0)))[0]) > 1e-3
    constant = run(model, conds=conditionings(torch.full((1, 64, 2), 0.5)))[0]
    assert torch.equal(constant, run(model, conds=conditionings((0.5, 0.5)))[0])


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_a_timestep_range_that_ends_early(model, guidance):
    """Where the positive's range is over only the negative is left, and the other way round."""
    from univid_pack.nodes.host.sampling import sample

    positive, negative = conditionings(end_percent=0.5)
    out, _ = run(model, guidance, (positive, negative))
    assert out.isfinite().all() and out.std() < 3 * run(model, guidance)[0].std()
    ended = [[negative[0][0], negative[0][1] | {"end_percent": 0.5}]]
    out, _ = sample(
        model, conditionings()[0], ended, LATENT, seed=7, steps=4, sampler_name="euler",
        scheduler=SCHEDULER, guider=guider(guidance),
    )  # fmt: skip
    assert out["samples"].isfinite().all() and out["samples"].std() < 3 * run(model, guidance)[0].std()


def test_a_range_holds_from_its_start_to_its_end(pack):
    """As `comfy.samplers.get_area_and_mult`: a range that ends where another starts leaves no step out."""
    from univid_pack.nodes.host.guider import _active

    early, late = {"timestep_start": 14.0, "timestep_end": 5.0}, {"timestep_start": 5.0}
    sigmas = torch.tensor([[14.1], [14.0], [5.0], [4.9]])
    held = [(_active(early, sigma.item), _active(late, sigma.item)) for sigma in sigmas]
    assert held == [(False, False), (True, False), (True, True), (False, True)]
    assert _active({}, None)  # without a range, sigma is not read


def windowed(model, length, overlap, **more):
    """A model with the host's context windows; inputs that only newer hosts have keep their defaults."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    node = ContextWindowsManualNode.execute(
        model, length, overlap, "standard_static", 1, False, "pyramid", 0, False, **more
    )
    return node.result[0]


@pytest.mark.parametrize("guidance", ["joint", "separate"])
def test_context_windows_slice_everything_per_frame(model, guidance):
    def in_windows(length, overlap, **more):
        return run(windowed(model, length, overlap), guidance, **more)[0]

    frames = 12
    latent = {"samples": torch.zeros(frames, 4, 8, 8)}
    same = conditionings()
    spread = conditionings(
        torch.tensor([[0.8, 0.6]]).expand(frames, 2),
        TEXT.expand(frames, -1, -1),
        IMAGE.expand(frames, -1, -1),
    )
    out = in_windows(6, 2, conds=same, latent=latent)
    assert out.isfinite().all() and out.shape[0] == frames
    assert difference(in_windows(6, 2, conds=spread, latent=latent), out) < 1e-4
    changing = conditionings(torch.linspace(0, 2, frames)[:, None].expand(-1, 2), text=randn(frames, 77, 24))
    assert difference(in_windows(6, 2, conds=changing, latent=latent), out) > 1e-2
    whole = run(model, guidance, changing, latent=latent)[0]
    assert difference(in_windows(12, 2, conds=changing, latent=latent), whole) < 1e-5


def test_places_of_context_windows_keep_what_the_clip_is_told_there(model):
    """`cond_retain_index_list`: place 0 and 2 of each window are told what frame 0 and 2 are."""
    from comfy.context_windows import IndexListContextWindow

    frames, x = 12, torch.zeros(12, 4, 8, 8)
    text, image = randn(frames, 77, 24, seed=6), randn(frames, 6, 20, seed=8)
    changing = conditionings(torch.rand(frames, 2), text=text, image=image)
    (tokens, extras), _ = (c[0] for c in changing)
    conds = model.model.extra_conds(cross_attn=tokens, noise=x, **extras)
    window = IndexListContextWindow(list(range(6, 12)), dim=0, total_frames=frames)
    for key, whole in conds.items():
        part = model.model.resize_cond_for_context_window(
            key, whole, window, x, torch.device("cpu"), retain_index_list=[0, 2]
        ).cond
        if key == "univid_told":
            assert part == whole.cond
            continue
        per_frame = len(whole.cond) == frames
        assert torch.equal(part, whole.cond[[0, 7, 2, 9, 10, 11]] if per_frame else whole.cond), key

    latent = {"samples": x}
    free = run(windowed(model, 6, 2), conds=changing, latent=latent)[0]
    kept = run(windowed(model, 6, 2, cond_retain_index_list="0,2"), conds=changing, latent=latent)[0]
    assert kept.isfinite().all() and difference(kept, free) > 1e-2
    with pytest.raises(ValueError, match="6 frames.*got 0, 6;"):
        run(windowed(model, 6, 2, cond_retain_index_list="0,6"), conds=changing, latent=latent)


def test_easycache_runs_and_saves_calls(model):
    from comfy_extras.nodes_easycache import EasyCacheNode

    calls = []

    def count(apply, args):
        calls.append(1)
        return apply(args["input"], args["timestep"], **args["c"])

    def steps_run(node):
        calls.clear()
        out = run(node, "separate", steps=20)[0]
        assert out.isfinite().all()
        return out

    cached = EasyCacheNode.execute(model, 1.0, 0.15, 0.95, False).result[0]
    plain, eased = steps_run(model), steps_run(cached)
    assert difference(eased, plain) > 1e-6  # it did leave something out


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8_e4m3fn"])
def test_narrow_types(path, dtype):
    from univid_pack.nodes.host.model import load_model

    model = load_model(path, dtype)
    out, plain = run(model)[0], run(load_model(path, "fp32"))[0]
    assert out.isfinite().all() and difference(out, plain) < (1.5 if "8" in dtype else 0.3)


# What the host's loader needs


def test_every_parameter_is_weight_or_bias_of_a_leaf_of_the_host(model):
    import comfy.ops

    module = model.model.diffusion_model
    assert not list(module.buffers())
    for name, child in module.named_modules():
        own = [key for key, _ in child.named_parameters(recurse=False)]
        if own:
            assert set(own) <= {"weight", "bias"} and not list(child.children()), name
            assert isinstance(child, comfy.ops.CastWeightBiasOp), f"{name} is not of the host's operations"


def lora_pairs(rank=2):
    """Down and up matrices for some of Stable Diffusion's layers, by LDM's name of each."""
    shapes = {
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q": (16, 16),
        "middle_block.1.transformer_blocks.0.attn2.to_k": (64, 24),
        "output_blocks.11.1.transformer_blocks.0.ff.net.2": (16, 64),
        "output_blocks.11.1.proj_in": (16, 16),
    }
    return {
        name: (0.1 * randn(rank, columns, seed=i), randn(rows, rank, seed=10 + i), 1.5)
        for i, (name, (rows, columns)) in enumerate(shapes.items())
    }


DIFFUSERS = {
    "input_blocks.1.1.": "down_blocks.0.attentions.0.",
    "middle_block.1.": "mid_block.attentions.0.",
    "output_blocks.11.1.": "up_blocks.3.attentions.2.",
}


def lora_file(style):
    """The pairs as people's files name them."""
    out = {}
    for name, (down, up, alpha) in lora_pairs().items():
        other = next(new + name.removeprefix(old) for old, new in DIFFUSERS.items() if name.startswith(old))
        key, down_name, up_name = {
            "ldm": (f"diffusion_model.{name}", ".lora_A.weight", ".lora_B.weight"),
            "kohya": (f"lora_unet_{other.replace('.', '_')}", ".lora_down.weight", ".lora_up.weight"),
            "diffusers": (
                f"unet.{other.replace('.to_', '.processor.to_')}", "_lora.down.weight", "_lora.up.weight",
            ),
        }[style]  # fmt: skip
        out |= {key + down_name: down, key + up_name: up, f"{key}.alpha": torch.tensor(alpha)}
    return out


@pytest.mark.parametrize("style", ["ldm", "kohya", "diffusers"])
def test_a_lora_changes_exactly_what_it_names(model, style, caplog):
    import comfy.model_management
    import comfy.sd

    before = {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora_file(style), 0.5, 0)
    assert not [r for r in caplog.records if "NOT LOADED" in r.getMessage()]
    comfy.model_management.load_models_gpu([patched], force_full_load=True)
    after = {k: v.clone() for k, v in patched.model.diffusion_model.state_dict().items()}
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {f"{name}.weight" for name in lora_pairs()}
    for name, (down, up, alpha) in lora_pairs().items():
        delta = 0.5 * alpha / 2 * up @ down
        assert torch.allclose(after[f"{name}.weight"] - before[f"{name}.weight"], delta, atol=1e-6)
    patched.detach()
    assert all(torch.equal(v, before[k]) for k, v in model.model.diffusion_model.state_dict().items())


def test_partly_loaded_with_a_lora_is_the_same(path):
    """What does not fit stays behind and is patched at each call; it must be the same function."""
    import comfy.sd
    from univid_pack.nodes.host.model import load_model

    (positive, extras), _ = (c[0] for c in conditionings())

    def answer(**how):
        model, _ = comfy.sd.load_lora_for_models(load_model(path, "fp32"), None, lora_file("kohya"), 1.0, 0)
        model.load(model.load_device, **how)
        late = [m for m in model.model.modules() if getattr(m, "weight_function", None)]
        conds = model.model.extra_conds(cross_attn=positive, noise=LATENT["samples"], **extras)
        inputs = {key: value.process_cond(FRAMES, area=None).cond for key, value in conds.items()}
        x, sigma = randn(FRAMES, 4, 8, 8), torch.full((FRAMES,), 2.0)
        return late, model.model.apply_model(x, sigma, transformer_options={"cond_or_uncond": [0]}, **inputs)

    none_late, whole = answer(full_load=True)
    all_late, partly = answer(lowvram_model_memory=1)
    assert not none_late and len(all_late) == len(lora_pairs())
    assert difference(partly, whole) < 1e-5


def test_it_can_be_made_again_without_dynamic_memory(model):
    function, args = model.cached_patcher_init
    again = function(*args, disable_dynamic=True)
    assert torch.equal(run(again)[0], run(model)[0])


# Refusals


@pytest.mark.parametrize(
    ("conds", "latent", "words"),
    [
        (conditionings(text=randn(1, 77, 768)), LATENT, ["width 24", "768"]),
        (conditionings(image=randn(1, 6, 1280)), LATENT, ["width 20", "1280"]),
        (conditionings(text=randn(3, 77, 24)), LATENT, ["5 frames", "got 3", "prompts"]),
        (conditionings(torch.ones(4, 2)), LATENT, ["5 frames", "got 4", "weights"]),
        (conditionings(image=randn(2, 6, 20)), LATENT, ["5 frames", "got 2", "images"]),
        (conditionings(), {"samples": torch.zeros(1, 16, 5, 8, 8)}, ["frames 4 height width"]),
    ],
)
def test_what_does_not_fit_is_refused_before_sampling(model, conds, latent, words):
    with pytest.raises(ValueError) as error:
        run(model, conds=conds, latent=latent)
    assert all(word in str(error.value) for word in words), error.value


def test_weights_that_are_not_finite_stop_the_run(model):
    with torch.no_grad():
        next(model.model.diffusion_model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 1 of 4"):
        run(model)


def test_another_model_is_refused(model):
    from univid_pack.nodes.host.model import profile_of

    class Other:
        model = torch.nn.Linear(1, 1)

    with pytest.raises(ValueError, match="Load UniVid"):
        profile_of(Other())
    assert profile_of(model).frames == 12

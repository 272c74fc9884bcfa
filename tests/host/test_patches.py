"""What patches of the host are told about UniVid's guidance and network, and what they do there."""

import functools
import importlib
import logging

import pytest
import torch
from host_tests.both import GUIDANCE, conditionings, difference, randn, run

pytestmark = pytest.mark.usefixtures("inference")

FRAMES = 2
LATENT = {"samples": torch.zeros(FRAMES, 4, 16, 16)}  # 2 x 2 tokens in the network's middle
SCALES = {  # away from no condition; GUIDANCE has the numbers
    "joint": 3.0, "joint rescaled": 3.0, "separate": 5.0, "separate rescaled": 5.0, "nested": 2.0,
}  # fmt: skip
COMBINED = [name for name in GUIDANCE if name != "joint"]  # by UniVid, not by the host


@pytest.fixture
def model(path):
    from univid_pack.nodes.host.model import load_model

    return load_model(path, "fp32")


def sampled(model, guidance="joint", **more):
    return run(model, guidance, **{"latent": LATENT, "steps": 3} | more)[0]


def patched(module: str, node: str, model, *values):
    """A MODEL after one of the host's nodes, of its newer interface or the older one."""
    made = getattr(importlib.import_module(f"comfy_extras.{module}"), node)
    return (made.execute if hasattr(made, "execute") else made().patch)(model, *values)[0]


# Guidance


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_patches_that_change_nothing_change_nothing(model, guidance):
    plain = sampled(model, guidance)
    same = model.clone()
    same.set_model_sampler_pre_cfg_function(lambda args: args["conds_out"])
    same.set_model_sampler_cfg_function(
        lambda args: args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])
    )
    same.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    assert difference(sampled(same, guidance), plain) < 1e-4
    other = model.clone()
    other.set_model_sampler_cfg_function(lambda args: args["cond"])
    assert difference(sampled(other, guidance), plain) > 1e-2


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_a_post_cfg_patch_is_told_the_branches_and_how_far_they_lie_apart(model, guidance):
    """Each answer is what the model says to the conditions beside it, and the scale is 1 - that of none."""
    import comfy.samplers

    seen = []

    def look(args):
        options = {k: v for k, v in args["model_options"].items() if not k.startswith("sampler_")}
        answers = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"], args["uncond"]], args["input"], args["sigma"], options
        )
        seen.append((args, answers))
        return args["denoised"]

    spy = model.clone()
    spy.set_model_sampler_post_cfg_function(look)
    sampled(spy, guidance)
    assert len(seen) == 3
    for args, (cond, uncond) in seen:
        assert args["cond_scale"] == pytest.approx(SCALES[guidance])
        assert difference(args["cond_denoised"], cond) < 1e-4
        assert difference(args["uncond_denoised"], uncond) < 1e-4
        assert difference(cond, uncond) > 1e-2
    (positive,), (negative,) = seen[0][0]["cond"], seen[0][0]["uncond"]
    assert positive["univid_has_image"] and not negative["univid_has_image"]


@pytest.mark.parametrize(
    ("guidance", "scales"), [("separate", [3.0, 2.0]), ("nested", [2.0, 3.0]), ("joint rescaled", [3.0])]
)
def test_a_pre_cfg_patch_sees_one_direction_at_a_time(model, guidance, scales):
    import comfy.samplers

    seen = []

    def look(args):
        options = {k: v for k, v in args["model_options"].items() if not k.startswith("sampler_")}
        truth = comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], options
        )
        seen.append(args["cond_scale"])
        for told, answer in zip(args["conds_out"], truth, strict=True):
            assert difference(told, answer) < 1e-4
        return args["conds_out"]

    spy = model.clone()
    spy.set_model_sampler_pre_cfg_function(look)
    sampled(spy, guidance, steps=2)
    assert seen == 2 * scales


@pytest.mark.parametrize("guidance", ["separate", "nested"])
def test_a_patch_that_remembers_has_a_memory_for_each_direction(model, guidance):
    """A running sum over the steps, as APG's momentum, must not mix what text and picture pull."""
    sums = {}

    def remembering(own):
        total = 0

        def add(args):
            nonlocal total
            cond, uncond = args["conds_out"]
            total = total + (cond - uncond)
            own.setdefault(args["cond_scale"], []).append(total)
            return [uncond + total, uncond]

        return add

    spy = model.clone()
    spy.set_model_sampler_pre_cfg_function(remembering(sums))
    first = sampled(spy, guidance)
    (text, image), steps = sums.values(), {}
    spy = model.clone()
    spy.set_model_sampler_pre_cfg_function(lambda args: remember_by_scale(steps, args))
    assert difference(sampled(spy, guidance), first) < 1e-4
    assert len(text) == len(image) == 3 and difference(text[-1], image[-1]) > 1e-2


def remember_by_scale(sums, args):
    """The same running sum, which tells the directions apart by their scales."""
    cond, uncond = args["conds_out"]
    total = sums[args["cond_scale"]] = sums.get(args["cond_scale"], 0) + (cond - uncond)
    return [uncond + total, uncond]


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_branches_have_the_numbers_that_patches_know(model, guidance):
    """0 is the condition and 1 is none: NAG and SAG find both halves of the batch by them."""
    numbers, context = [], []

    def look(apply, args):
        numbers.append(args["cond_or_uncond"])
        weights = args["c"]["univid_weights"].chunk(len(numbers[-1]))
        context.append({n: w[0, 0].tolist() for n, w in zip(numbers[-1], weights, strict=True)})
        return apply(args["input"], args["timestep"], **args["c"])

    spy = model.clone()
    spy.set_model_unet_function_wrapper(look)
    sampled(spy, guidance)
    for weights in context:
        assert weights[1] == [1, 0] and weights[0] != [1, 0]


@pytest.mark.parametrize("guidance", COMBINED)
def test_a_range_that_ends_early_under_patches(model, guidance):
    positive, negative = conditionings()
    ended = [[negative[0][0], negative[0][1] | {"end_percent": 0.5}]]
    seen = []
    spy = model.clone()
    spy.set_model_sampler_post_cfg_function(lambda args: seen.append(args) or args["denoised"])
    spy.set_model_sampler_pre_cfg_function(lambda args: args["conds_out"])
    out = sampled(spy, guidance, conds=(positive, ended), steps=4)
    assert difference(out, sampled(model, guidance, conds=(positive, ended), steps=4)) < 1e-4
    assert seen[0]["cond_scale"] == pytest.approx(SCALES[guidance])
    last = seen[-1]
    assert last["cond_scale"] == 1 and torch.equal(last["cond_denoised"], last["uncond_denoised"])
    assert last["cond"] and last["uncond"]


@pytest.mark.parametrize("guidance", ["separate", "nested", "joint rescaled"])
def test_cfg_override_is_plain_guidance_for_its_steps(model, guidance):
    from comfy.patcher_extension import WrappersMP

    def override(executor, *args, **kwargs):
        saved, executor.class_obj.cfg = executor.class_obj.cfg, 1.0
        try:
            return executor(*args, **kwargs)
        finally:
            executor.class_obj.cfg = saved

    other = model.clone()
    other.add_wrapper(WrappersMP.PREDICT_NOISE, override)
    out = sampled(other, guidance)
    assert difference(out, sampled(model, guidance)) > 1e-2
    conditional = model.clone()
    conditional.set_model_sampler_cfg_function(
        lambda args: args["cond"], disable_cfg1_optimization=True
    )  # what plain guidance of scale 1 is
    assert difference(out, sampled(conditional, "joint")) < 1e-4


def test_what_computes_two_branches_alone_is_named(model, caplog):
    from comfy.samplers import calc_cond_batch

    def two_branches(args):
        cond, uncond = args["conds"]
        return calc_cond_batch(
            args["model"], [cond, uncond], args["input"], args["sigma"], args["model_options"]
        )

    two = model.clone()
    two.set_model_sampler_calc_cond_batch_function(two_branches)
    assert torch.equal(sampled(two, "joint"), sampled(model, "joint")) and not caplog.records
    for _ in range(2):
        assert torch.equal(sampled(two, "separate"), sampled(model, "separate"))
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 2 and all("test_what_computes" in line and "separate" in line for line in lines)


def test_animatediff_evolved_is_refused_where_it_cannot_run(model):
    model.model_options["transformer_options"]["ADGS"] = object()
    with pytest.raises(ValueError, match=r"AnimateDiff-Evolved.*separate.*Context Windows"):
        sampled(model, "separate")
    assert sampled(model, "joint").isfinite().all()


# The network


def test_self_attention_is_told_what_a_patch_of_stable_diffusion_expects(model):
    calls = {"before": [], "instead": [], "after": []}

    def before(q, k, v, extra):
        calls["before"].append(extra | {"tokens": q.shape})
        return q, k, v

    def instead(q, k, v, extra):
        calls["instead"].append(extra["block"])
        return v

    def after(out, extra):
        calls["after"].append(extra["block"])
        return out

    spy = model.clone()
    spy.set_model_attn1_patch(before)
    spy.set_model_attn1_output_patch(after)
    same = sampled(spy, steps=1)
    assert difference(same, sampled(model, steps=1)) < 1e-4
    spatial = [("input", i) for i in (1, 2, 4, 5, 7, 8)] + [("middle", 0)]
    spatial += [("output", i) for i in range(3, 12)]
    assert [extra["block"] for extra in calls["before"]] == spatial == calls["after"]
    first = calls["before"][0]
    assert first["original_shape"] == [2 * FRAMES, 4, 16, 16] and first["tokens"] == (2 * FRAMES, 256, 16)
    assert first["n_heads"] * first["dim_head"] == 16 and first["attn_precision"] == torch.float32
    assert sorted(first["cond_or_uncond"]) == [0, 1] and "patches" not in first

    for number in (("middle", 0), ("output", 5)):
        spy.set_model_attn1_replace(instead, *number)
    assert difference(sampled(spy, steps=1), same) > 1e-4
    assert calls["instead"] == [("middle", 0), ("output", 5)]


def test_the_kernel_that_the_user_chose_runs_all_attention(model):
    from univid_pack.univid.attention import attention

    calls = []

    def mine(_, q, k, v, heads, **options):
        calls.append(options["transformer_options"])
        assert options["attn_precision"] == torch.float32  # Stable Diffusion 2.1 overflows in half precision
        return attention(q, k, v, heads)

    chosen = model.clone()
    chosen.model_options["transformer_options"]["optimized_attention_override"] = mine
    assert difference(sampled(chosen, steps=1), sampled(model, steps=1)) < 1e-5
    blocks = 16  # spatial ones: their own, PSTAttn, two streams of cross-attention, time
    assert len(calls) == 5 * blocks
    assert not model.model.diffusion_model.attention.options  # nothing is kept behind a run


@pytest.mark.parametrize("guidance", ["joint", "separate", "nested"])
def test_perturbed_attention_guidance(model, guidance):
    """Attention over one token gives its value: so at 64 x 64 the perturbed answer is the plain one."""
    pag = patched("nodes_pag", "PerturbedAttentionGuidance", model, 3.0)
    one = {"samples": torch.zeros(FRAMES, 4, 8, 8)}
    assert difference(sampled(pag, guidance, latent=one), sampled(model, guidance, latent=one)) < 1e-4
    assert difference(sampled(pag, guidance), sampled(model, guidance)) > 3e-4


@pytest.mark.parametrize("guidance", ["joint", "separate"])
def test_self_attention_guidance(model, guidance):
    sag = patched("nodes_sag", "SelfAttentionGuidance", model, 0.5, 2.0)
    assert difference(sampled(sag, guidance), sampled(model, guidance)) > 1e-3
    with pytest.raises(ValueError, match=r"4 tokens.*got 1 at 64 x 64.*128 x 128"):
        sampled(sag, guidance, latent={"samples": torch.zeros(FRAMES, 4, 8, 8)})
    tiny = {"samples": torch.zeros(FRAMES, 4, 4, 4)}  # the node itself lets these be
    assert difference(sampled(sag, guidance, latent=tiny), sampled(model, guidance, latent=tiny)) < 1e-4


@pytest.mark.parametrize(
    ("module", "node", "values"),
    [
        ("nodes_apg", "APG", (0.5, 5.0, -0.5)),
        ("nodes_cfg", "CFGZeroStar", ()),
        ("nodes_nag", "NAGuidance", (5.0, 0.5, 1.5)),
        ("nodes_model_advanced", "RescaleCFG", (0.7,)),
        ("nodes_video_model", "VideoLinearCFGGuidance", (1.0,)),
        ("nodes_freelunch", "FreeU_V2", (1.3, 1.4, 0.9, 0.2)),
    ],
)
@pytest.mark.parametrize("guidance", ["joint", "joint rescaled", "separate", "nested"])
def test_patches_of_the_host_act_in_every_mode(model, module, node, values, guidance):
    out = sampled(patched(module, node, model, *values), guidance)
    assert out.isfinite().all() and difference(out, sampled(model, guidance)) > 5e-4


def test_hypertile_acts_where_there_is_something_to_tile_and_says_where_not(model, caplog):
    tiled = patched("nodes_hypertile", "HyperTile", model, 256, 2, 0, False)
    small = sampled(tiled, steps=1)
    assert difference(small, sampled(model, steps=1)) < 1e-4
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 1 and "HyperTile" in lines[0] and "128 x 128" in lines[0]
    caplog.clear()
    large = {"samples": torch.zeros(1, 4, 64, 64)}
    out = sampled(tiled, latent=large, steps=1)
    assert difference(out, sampled(model, latent=large, steps=1)) > 1e-3 and not caplog.records


def test_patches_without_a_place_are_named_once_a_run(model, caplog):
    spy = model.clone()
    spy.set_model_attn2_patch(lambda q, k, v, extra: (q, k, v))
    spy.set_model_attn2_replace(lambda q, k, v, extra: q, "middle", 0)
    spy.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 0)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert torch.equal(sampled(spy), sampled(model))
        kinds = sorted(r.getMessage().split("its ")[1].split(" ")[0] for r in caplog.records)
        assert kinds == ["attn2", "attn2_patch", "dit"]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_context_windows_over_another_dimension_are_refused(model, dim):
    from comfy.context_windows import ContextFuseMethods, ContextSchedules, IndexListContextHandler
    from comfy.context_windows import get_matching_context_schedule as schedule
    from comfy.context_windows import get_matching_fuse_method as fuse

    def windows(dim):
        other = model.clone()
        other.model_options["context_handler"] = IndexListContextHandler(
            schedule(ContextSchedules.STATIC_STANDARD), fuse(ContextFuseMethods.PYRAMID),
            context_length=3, context_overlap=1, dim=dim,
        )  # fmt: skip
        return other

    with pytest.raises(ValueError, match=rf"dim 0.*got dim {dim}.*Context Windows \(Manual\)"):
        sampled(windows(dim))
    assert sampled(windows(0)).isfinite().all()


def test_a_run_that_breaks_names_the_patches(model):
    broken = model.clone()
    broken.set_model_output_block_patch(lambda h, skip, options: (h * float("nan"), skip))
    broken.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    with pytest.raises(FloatingPointError, match="float32; the model is patched by test_a_run_that_breaks"):
        sampled(broken)
    with torch.no_grad():
        next(model.model.diffusion_model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError) as error:
        sampled(model)
    assert "fp32" not in str(error.value).split(";")[1]  # it runs in it already


def test_a_patch_is_named_by_who_made_it(pack):
    from univid_pack.nodes.host.patches import owner

    class Node:
        def make(self):
            return lambda args: args

        def __call__(self, args):
            return args

    class_name = "test_a_patch_is_named_by_who_made_it"
    assert owner(Node().make()) == owner(Node()) == owner(Node().make) == class_name
    assert owner(functools.partial(randn, seed=1)) == "randn"

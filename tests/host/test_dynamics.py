"""Livelier Motion and Reuse Steps in the host, against the library on the same random weights."""

import pytest
import torch
from host_tests.both import LATENT, SCHEDULER, conditionings, difference, expected, run
from host_tests.random_model import write
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(scope="module")
def path(pack, tmp_path_factory):
    """With norms around 1: attention over time then has logits that differ."""
    file = write(tmp_path_factory.mktemp("checkpoint"))
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    weights = load_file(file)
    for name, weight in weights.items():
        if weight.dim() == 1 and name.endswith("weight"):
            weights[name] = weight + 1
    save_file(weights, file, metadata)
    return file


@pytest.fixture(scope="module")
def model(path):
    from univid_pack.nodes.host.model import load_model

    return load_model(path, "fp32")


@pytest.fixture(scope="module")
def library(path):
    from univid_pack.univid.checkpoints import load

    return load(path, dtype=torch.float32)


def livelier(model, *values):
    from univid_pack.nodes.dynamics import UniVidLivelierMotion

    return UniVidLivelierMotion.execute(model, *values).result[0]


def reusing(model, *values):
    from univid_pack.nodes.reuse import UniVidReuseSteps

    return UniVidReuseSteps.execute(model, *values).result[0]


def steering(dynamics=None, temporal_guidance=0.0, reuse=None):
    from univid_pack.univid.steer import Dynamics, Reuse, Steering

    return Steering(
        dynamics=dynamics and Dynamics(*dynamics),
        temporal_guidance=temporal_guidance,
        reuse=reuse and Reuse(*reuse),
    )


class Steered:
    """The library's denoiser in one run, as `generate` runs it."""

    def __init__(self, library, how):
        self.library, self.how = library, how

    def denoiser(self):
        from univid_pack.univid.steer.run import Run

        denoiser = self.library.denoiser()
        return Following(Run(denoiser, self.how), denoiser.schedule)


class Following:
    def __init__(self, run, schedule):
        self.run, self.schedule = run, schedule

    def __call__(self, x, sigma, cond):
        return self.run.at(sigma.flatten()[0])[0](x, sigma, cond)


def library_run(library, how, guidance="joint"):
    """`expected`, whose guider is told what guides over time."""
    from host_tests import both
    from univid_pack.univid.guidance import Joint, Nested, Separate

    made = Steered(library, how)
    if not how.temporal_guidance:
        return expected(made, guidance)
    guider, denoiser = both.guider(guidance), made.denoiser()
    assert isinstance(guider, Joint | Separate | Nested)

    def guided(_, x, sigma, cond, uncond):
        now, temporal = denoiser.run.at(sigma)
        return guider(now, x, sigma, cond, uncond, temporal)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(both, "guider", lambda _: guided)
        return expected(made, guidance)


@pytest.mark.parametrize("guidance", ["joint", "separate rescaled", "nested"])
@pytest.mark.parametrize("values", [(0.7, 0.5, 0.0), (1.0, 0.0, 0.8), (0.7, 1.0, 0.8)], ids=str)
def test_livelier_motion_is_the_library_s(model, library, values, guidance):
    sigma, share, scale = values
    how = steering((sigma, share) if share else None, scale)
    out = run(livelier(model, *values), guidance)[0]
    assert difference(out, library_run(library, how, guidance)) < 1e-3
    assert difference(out, run(model, guidance)[0]) > 1e-2


@pytest.mark.parametrize("guidance", ["joint", "nested"])
@pytest.mark.parametrize("values", [(2, 1), (3, 4)], ids=str)
def test_reuse_is_the_library_s(model, library, values, guidance):
    out = run(reusing(model, *values), guidance)[0]
    assert difference(out, library_run(library, steering(reuse=values), guidance)) < 1e-3
    assert difference(out, run(model, guidance)[0]) > 1e-3


def test_both_nodes_together(model, library):
    both = reusing(livelier(model, 0.7, 0.5, 0.8), 2, 2)
    how = steering((0.7, 0.5), 0.8, (2, 2))
    assert difference(run(both)[0], library_run(library, how)) < 1e-3
    assert torch.equal(run(both)[0], run(livelier(reusing(model, 2, 2), 0.7, 0.5, 0.8))[0])


def test_neutral_values_are_the_plain_model(model):
    plain = run(model)[0]
    for neutral in (
        livelier(model, 1.0, 0.0, 0.0),
        reusing(model, 1, 3),
        livelier(livelier(model, 0.5, 1.0, 2.0), 1.0, 0.0, 0.0),
        reusing(reusing(model, 2, 1), 1, 1),
    ):
        assert torch.equal(run(neutral)[0], plain)
    assert torch.equal(run(model)[0], plain)  # the one that came in is unchanged


def test_a_clone_of_a_clone_is_steered_once(model):
    once = livelier(model, 1.0, 0.0, 0.8)
    assert torch.equal(run(livelier(once, 1.0, 0.0, 0.8).clone())[0], run(once)[0])


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_the_stock_sampler_runs_them(model, sampler):
    import comfy.sample

    def stock(model):
        positive, negative = conditionings()
        noise = comfy.sample.prepare_noise(LATENT["samples"], 7)
        return comfy.sample.sample(
            model, noise, 4, 3.0, sampler, SCHEDULER, positive, negative, LATENT["samples"],
            disable_pbar=True, seed=7,
        )  # fmt: skip

    both = reusing(livelier(model, 0.7, 0.5, 0.8), 2, 2)
    assert difference(stock(both), run(both, sampler=sampler)[0]) < 1e-3
    assert difference(stock(both), stock(model)) > 1e-2


def kept_during(model, **more):
    """What is kept after each call of a run."""
    from univid_pack.univid.steer.reuse import Kept

    seen, begin = [], Kept.begin

    def counted(self, step):
        begin(self, step)
        seen.append(len(self._entries))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kept, "begin", counted)
        run(model, **more)
    return seen


def windows(model):
    """Frames 0 to 2 and 2 to 4."""
    from comfy.context_windows import ContextFuseMethods, ContextSchedules, IndexListContextHandler
    from comfy.context_windows import get_matching_context_schedule as schedule
    from comfy.context_windows import get_matching_fuse_method as fuse

    clone = model.clone()
    clone.model_options["context_handler"] = IndexListContextHandler(
        schedule(ContextSchedules.STATIC_STANDARD), fuse(ContextFuseMethods.PYRAMID),
        context_length=3, context_overlap=1, dim=0,
    )  # fmt: skip
    return clone


def test_every_window_keeps_its_own(model):
    """Two windows of two branches of guidance."""
    both = windows(reusing(model, 2, 2))
    assert max(kept_during(both)) == 4
    assert difference(run(both)[0], run(windows(model))[0]) > 1e-3
    whole = windows(reusing(model, 9, 12))  # all output blocks run: alike but for the middle
    assert difference(run(whole)[0], run(windows(model))[0]) < difference(
        run(both)[0], run(windows(model))[0]
    )


def test_a_run_that_was_interrupted_leaves_nothing(model, monkeypatch):
    import comfy.model_management as management
    from univid_pack.nodes.host import steered

    options = []
    acting = steered.acting
    from univid_pack.nodes.host import model as host

    def seen(transformer_options, progress):
        options.append(transformer_options[steered.KEPT])
        if len(options) == 2:
            raise management.InterruptProcessingException
        return acting(transformer_options, progress)

    both = reusing(model, 2, 2)
    expected = run(both)[0]
    with monkeypatch.context() as patch:
        patch.setattr(host, "acting", seen)
        with pytest.raises(management.InterruptProcessingException):
            run(both)
    assert steered.KEPT not in both.model_options["transformer_options"]
    assert torch.equal(run(both)[0], expected)


def test_guidance_that_perturbs_the_network_asks_another_question(model):
    """PAG runs the conditional branch again, with an identity in the middle block."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    def perturbed(model):
        made = PerturbedAttentionGuidance.execute(model, 3.0)
        return getattr(made, "result", made)[0]

    assert max(kept_during(perturbed(reusing(model, 2, 2)))) == 3


def test_a_control_net_s_hints_reach_their_blocks():
    from univid_pack.nodes.host.patches import HostAttention, HostHook, Notices

    hints = {"output": list(range(12)), "middle": [99], "input": []}
    hook = HostHook(hints, {}, (1, 4, 8, 8), HostAttention(), Notices())
    hook.leave_out(9)
    h = torch.zeros(1)
    assert [hook.between("output", index, h, h)[1].item() for index in (9, 10, 11)] == [2, 1, 0]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision(path, model, dtype):
    from univid_pack.nodes.host.model import load_model

    both = [reusing(livelier(m, 0.7, 0.5, 0.8), 2, 2) for m in (model, load_model(path, dtype))]
    full, low = (run(m)[0] for m in both)
    assert difference(low.float(), full) < (0.1 if dtype == "fp16" else 0.6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: reusing(m, 2, 13), "blocks of reuse must be from 1 to 12, which this model has, got 13"),
        (lambda m: reusing(m, 0, 1), "reuse must be a whole number of steps"),
        (lambda m: livelier(m, 0.0, 0.3, 0.0), "sigma of dynamics must be"),
        (lambda m: livelier(m, 1.0, 2.0, 0.0), "share of dynamics must be"),
        (lambda m: livelier(m, 1.0, 0.3, -1.0), "temporal guidance must be"),
    ],
)
def test_bad_input_is_refused(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


def test_memory_counts_what_is_kept(model):
    shape = [2 * 5, 4, 8, 8]
    model.model.current_patcher = model
    before = model.model.memory_required(shape)
    model.model.current_patcher = other = reusing(model, 2, 1)
    kept = 16 * 2 * 5 * 8 * 8 * 4  # channels, cells, float32
    assert other.model.memory_required(shape) == before + kept
    model.model.current_patcher = model

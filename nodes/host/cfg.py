"""The host's patches of classifier-free guidance, told the truth where UniVid's own guidance combines.

A patch before or in the place of the combination ("pre-CFG", "CFG function") sees one direction of the
guidance at a time: its two branches, their answers and its scale, which is plain guidance by itself. A patch
after it ("post-CFG") sees the result, the branch of text and picture, the one of no condition, and how far
the guidance goes from the one towards the other: 1 - the coefficient of no condition.
"""

import dis
from collections.abc import Callable, Mapping
from types import CellType, FunctionType

import comfy.samplers
from torch import Tensor

from ...univid.guidance import Direction

BEFORE, INSTEAD, AFTER = "sampler_pre_cfg_function", "sampler_cfg_function", "sampler_post_cfg_function"
BATCH = "sampler_calc_cond_batch_function"  # patches how branches are computed, for plain guidance alone
BOTH = "disable_cfg1_optimization"  # somebody needs the answer to no condition, whatever the scale


class Combination:
    """What one run's patches make of its directions.

    Some patches remember something from step to step (APG's momentum): each direction gets its own memory.
    """

    def __init__(self):
        self._own: dict[tuple[int, Direction], Callable] = {}

    def __call__(
        self,
        directions: tuple[Direction, ...],
        none: str,
        branches: Mapping[str, list[dict]],
        answers: Mapping[str, Tensor],
        step: dict,
    ) -> Tensor:
        """The guided x0 `[t c h w]`: from the answer of branch `none` along all directions.

        branches, answers: conds and x0 `[t c h w]` by name. step: model, input, sigma and model_options of
        this call, as patches are told them.
        """
        guided = answers[none]
        for direction in directions:
            guided = guided + self._guided(direction, branches, answers, step) - answers[direction.base]
        return guided

    def _guided(self, direction: Direction, branches: Mapping, answers: Mapping, step: dict) -> Tensor:
        """Plain guidance, patched, from a direction's base by its scale."""
        options, sigma = step["model_options"], step["sigma"]
        conds = [branches[direction.to], branches[direction.base]]
        out = [answers[direction.to], answers[direction.base]]
        for number, patch in enumerate(options.get(BEFORE, ())):
            key = number, direction
            if key not in self._own:
                self._own[key] = with_own_memory(patch)
            told = {"conds": conds, "conds_out": out, "cond_scale": direction.scale, "timestep": sigma}
            out = self._own[key](step | told)
        return comfy.samplers.cfg_function(
            step["model"], out[0], out[1], direction.scale, step["input"], sigma,
            model_options={key: value for key, value in options.items() if key != AFTER},
            cond=conds[0], uncond=conds[1],
        )  # fmt: skip


def combines(options: dict) -> bool:
    """Whether any patch acts on the combination itself."""
    return bool(options.get(BEFORE)) or INSTEAD in options


def after(
    denoised: Tensor, told: str, none: str, scale: float, branches: Mapping, answers: Mapping, step: dict
) -> Tensor:
    """A guided x0 `[t c h w]` after the patches that come last; `told` is the branch of text and picture."""
    for patch in step["model_options"].get(AFTER, ()):
        denoised = patch(
            step
            | {
                "denoised": denoised,
                "cond": branches[told],
                "uncond": branches[none],
                "cond_denoised": answers[told],
                "uncond_denoised": answers[none],
                "cond_scale": scale,
            }
        )
    return denoised


def with_own_memory(function: Callable) -> Callable:
    """A copy of a closure that changes variables around it, with its own ones; what changes none as it is."""
    code = getattr(function, "__code__", None)
    if code is None:
        return function
    changes = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF"}
    if not changes & set(code.co_freevars):
        return function
    cells = tuple(CellType(cell.cell_contents) for cell in function.__closure__)
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, cells)

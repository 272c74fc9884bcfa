"""Patches that other nodes put on a MODEL: who made them, which act in UniVid's network, and what does not.

The trunk's blocks are Stable Diffusion's, so patches between blocks and those of self-attention ("attn1")
act. The dual-stream cross-attention and the layers over time have no counterpart there, so patches for
cross-attention and the rest are named in a warning.
"""

import functools
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...univid.attention import attention as library_attention
from ...univid.hooks import Hook
from ...univid.layers import SelfAttention

BETWEEN = ("input_block_patch", "input_block_patch_after_skip", "output_block_patch")
HONOURED = {*BETWEEN, "attn1_patch", "attn1_output_patch"}
HONOURED_REPLACEMENTS = {"attn1"}
# Options of models with other layers, by which a node that can do nothing here is known.
OF_OTHERS = {
    "rope_options": "Scale ROPE",
    "stg_self_attn_blocks": "LTXV Spatio-Temporal Guidance",
    "a2v_cross_attn": "LTXV Modality Guidance",
}
DOES_NOT_ACT = (
    "{name} does not act, because its {what} is for layers that UniVid's network does not have; remove it, "
    "or see the help of PST Sampler for what acts."
)
OVERRIDE = "optimized_attention_override"  # transformer option: the kernel that the user chose
SAG, SAG_TOKENS, SAG_SIDE = "SelfAttentionGuidance", 4, 4  # it fails below 4 tokens, and skips sides up to 4

logger = logging.getLogger(__name__)


def owner(function) -> str:
    """The class or function that made a patch: of `APG.execute.<locals>.pre_cfg_function` it is APG."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    first = name.split(".")[0]
    return function.__module__ if first == "<lambda>" else first


def owners(model_options: dict) -> list[str]:
    """Who has patched a MODEL, each once, in no order that means anything."""
    options = model_options.get("transformer_options", {})
    functions = [f for kind in options.get("patches", {}).values() for f in kind]
    functions += [f for kind in options.get("patches_replace", {}).values() for f in kind.values()]
    for name, value in model_options.items():
        if name.startswith("sampler_") or name == "model_function_wrapper":
            functions += value if isinstance(value, list) else [value]
    return sorted({owner(f) for f in functions if callable(f)})


def check_windows(patcher) -> None:
    """Refuse context windows over another dimension than the frames, before a run; None = no MODEL runs.

    Raises:
        ValueError: windows made for other video models, whose frames are another dimension.
    """
    handler = None if patcher is None else patcher.model_options.get("context_handler")
    if handler is not None and getattr(handler, "dim", 0) != 0:
        raise ValueError(
            f"expected context windows over dim 0, the frames of UniVid's latents, got dim {handler.dim}; "
            "take Context Windows (Manual) with dim 0 in place of a node for another model."
        )


class Notices:
    """Warnings of a model's runs, each once a run."""

    def __init__(self):
        self._run: Callable[[], Tensor | None] = lambda: None
        self._said: set[str] = set()

    def begin(self, sigmas: Tensor | None) -> bool:
        """Whether this is the first call of a run, which its sigmas tell from another."""
        if sigmas is None or self._run() is sigmas:
            return False
        self._run = weakref.ref(sigmas)
        self._said = set()
        return True

    def warn(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("UniVid: %s", text)


class HostAttention:
    """The kernel that the host or the user chose; on a CPU PyTorch's own, as the host's is slower there.

    Stable Diffusion 2's attention overflows in half precision where a kernel does not upcast.
    """

    def __init__(self):
        self.options: dict = {}

    @contextmanager
    def under(self, options: dict) -> Iterator[None]:
        """Let a forward run under its transformer options, which may name a kernel."""
        self.options = options
        try:
            yield
        finally:
            self.options = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        if q.device.type == "cpu" and OVERRIDE not in self.options:
            return library_attention(q, k, v, heads)
        return self.of_the_host(q, k, v, heads)

    def of_the_host(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return optimized_attention(
            q, k, v, heads, attn_precision=torch.float32, transformer_options=self.options
        )


class HostHook(Hook):
    """Control nets and patches in one forward of the network.

    control: hints by place. options: transformer options. shape: of the input, `[(b t) c h w]`.
    """

    def __init__(
        self,
        control: dict | None,
        options: dict,
        shape: torch.Size,
        attention: HostAttention,
        notices: Notices,
    ):
        self.control, self.attention, self.notices = control or {}, attention, notices
        self.patches = options.get("patches", {})
        replaced = options.get("patches_replace", {})
        self.replacements = replaced.get("attn1", {})
        self.options = options | {"original_shape": list(shape), "transformer_index": 0}
        self.idle: set[str] = set()  # whose patches of self-attention have changed nothing in this forward
        if self.notices.begin(options.get("sample_sigmas")):
            self.idle = {owner(patch) for patch in self.patches.get("attn1_patch", ())}
        self._name_what_does_not_act(replaced)

    def enter(self, place: str, index: int) -> None:
        self.options["block"] = (place, index)

    def between(self, place: str, index: int, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        if place == "output":
            skip = self._controlled(skip, place)
            for patch in self.patches.get("output_block_patch", ()):
                h, skip = patch(h, skip, self.options)
            return h, skip
        h = self._controlled(h, place)
        if place == "middle":
            return h, h
        for patch in self.patches.get("input_block_patch", ()):
            h = patch(h, self.options)
        skip = h
        for patch in self.patches.get("input_block_patch_after_skip", ()):
            h = patch(h, self.options)
        return h, skip

    def leave_out(self, outputs: int) -> None:
        for _ in range(min(outputs, len(self.control.get("output", ())))):
            self.control["output"].pop()

    def self_attention(self, layer: SelfAttention, x: Tensor) -> Tensor:
        before, after = (self.patches.get(name, ()) for name in ("attn1_patch", "attn1_output_patch"))
        if not (
            self.replacements or before or after
        ):  # before the block's place, by which it would be compiled
            return layer(x)
        block = self.options["block"]
        replace = self.replacements.get((*block, 0)) or self.replacements.get(block)
        if not (replace or before or after):
            return layer(x)
        extra = {k: v for k, v in self.options.items() if k not in ("patches", "patches_replace")} | {
            "block_index": 0,
            "n_heads": layer.heads,
            "dim_head": x.shape[-1] // layer.heads,
            "attn_precision": torch.float32,
        }
        query = key = value = x
        for patch in before:
            given = query, key, value
            query, key, value = patch(*given, extra)
            if any(new is not old for new, old in zip((query, key, value), given, strict=True)):
                self.idle.discard(owner(patch))
        q, k, v = layer.to_q(query), layer.to_k(key), layer.to_v(value)
        if replace:
            self._check_size(replace, tokens=x.shape[1])
            out = replace(q, k, v, extra)
        else:
            out = self.attention.of_the_host(q, k, v, layer.heads)
        out = layer.to_out[0](out)
        for patch in after:
            out = patch(out, extra)
        return out

    def end(self) -> None:
        """The forward is over: name the patches that were called and did nothing."""
        height, width = self.options["original_shape"][-2:]
        for name in sorted(self.idle):
            self.notices.warn(
                f"{name} left every self-attention as it was in the first step of this clip of "
                f"{8 * width} x {8 * height}; a larger clip or other settings may let it act."
            )

    def _name_what_does_not_act(self, replaced: dict) -> None:
        kinds = {kind: patches for kind, patches in self.patches.items() if kind not in HONOURED}
        kinds |= {k: list(v.values()) for k, v in replaced.items() if k not in HONOURED_REPLACEMENTS}
        for kind, patches in kinds.items():
            for name in _names(patches):
                self.notices.warn(DOES_NOT_ACT.format(name=name, what=f"{kind} patch"))
        for option in OF_OTHERS.keys() & self.options.keys():
            self.notices.warn(DOES_NOT_ACT.format(name=OF_OTHERS[option], what="setting"))

    def _check_size(self, replace: Callable, tokens: int) -> None:
        height, width = self.options["original_shape"][-2:]
        if owner(replace) == SAG and tokens < SAG_TOKENS and min(height, width) > SAG_SIDE:
            raise ValueError(
                f"Self-Attention Guidance needs at least {SAG_TOKENS} tokens in the network's middle, got "
                f"{tokens} at {8 * width} x {8 * height}; take at least 128 x 128, or remove the node."
            )

    def _controlled(self, h: Tensor, place: str) -> Tensor:
        hints = self.control.get(place)
        hint = hints.pop() if hints else None
        return h if hint is None else h + hint


def _names(patches: Iterable) -> Iterator[str]:
    """Owners of patches, each once; a kind of patch may hold tuples of a class and a function."""
    yield from sorted({owner(p[-1] if isinstance(p, tuple) else p) for p in patches})

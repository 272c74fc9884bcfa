"""Fewer whole runs of the network: deep blocks are reused for some steps (DeepCache, 2312.00858).

From one step to the next the deep blocks change little. So what flows into the last output blocks is kept,
and a step that reuses it runs these, and the input blocks whose skips they need.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reuse:
    """Run the whole network every `every`th step, and the last `blocks` output blocks in each.

    every: 1 = the whole network in every step, as without it. blocks: from 1; more cost more.

    Raises:
        ValueError: a number below 1.
    """

    every: int
    blocks: int = 1

    def __post_init__(self):
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"reuse must be a whole number of steps from 1 (off) on, got {self.every}.")
        if isinstance(self.blocks, bool) or not isinstance(self.blocks, int) or self.blocks < 1:
            raise ValueError(f"blocks of reuse must be a whole number from 1 on, got {self.blocks}.")

    def check(self, most: int) -> None:
        """Refuse, by a ValueError, more blocks than a network has."""
        if self.blocks > most:
            raise ValueError(
                f"blocks of reuse must be from 1 to {most}, which this model has, got {self.blocks}."
            )


@dataclass
class _Entry:
    h: Tensor
    reused: int = 0


class Kept:
    """What one run of sampling keeps, clip by clip; it is dropped with the run.

    A call names each of its clips by what it is: a branch of guidance, a window of frames. So branches may
    come together in one call or one by one. What is asked a second time at one noise level (tiles, samplers
    of two calls a step, guidance that runs the network on another video) is another question, with its own
    answer.
    """

    def __init__(self, reuse: Reuse):
        self.reuse = reuse
        self._entries: dict[Hashable, _Entry] = {}
        self._asked: Counter[Hashable] = Counter()
        self._step: Hashable = None

    def begin(self, step: Hashable) -> None:
        """Calls from now on are of the noise level `step`; what the last one did not ask for is dropped."""
        if step == self._step:
            return
        if self._step is not None:
            self._entries = {
                key: entry for key, entry in self._entries.items() if self._asked[key[0]] > key[1]
            }
        self._asked.clear()
        self._step = step

    def ask(self, clips: Sequence[Hashable], x: Tensor) -> "Call":
        """For one call of the network on x `[b c t h w]` or `[(b t) c h w]`, whose clips have these names."""
        keys, shape = [], (len(x) // len(clips), *x.shape[1:])
        for clip in clips:
            name = clip, shape, x.device, x.dtype
            keys.append((name, self._asked[name]))
            self._asked[name] += 1
        return Call(self, keys)


class Call:
    """One call of the network: `found`, or else it is given what to keep."""

    def __init__(self, kept: Kept, keys: list[Hashable]):
        self.blocks = kept.reuse.blocks
        self._entries, self._keys = kept._entries, keys
        entries = [self._entries.get(key) for key in keys]
        self.found: Tensor | None = None
        if all(entry is not None and entry.reused + 1 < kept.reuse.every for entry in entries):
            for entry in entries:
                entry.reused += 1
            self.found = torch.cat([entry.h for entry in entries])  # a copy, which a hook may change

    def keep(self, h: Tensor) -> None:
        """What flows into the last blocks, `[(b t) c h w]`."""
        for key, part in zip(self._keys, h.chunk(len(self._keys)), strict=True):
            self._entries[key] = _Entry(part.clone())

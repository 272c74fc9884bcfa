"""A training step at full size, micro-batch 1: seconds and memory by stage and engine."""

import dataclasses
import statistics

from . import steps
from .compiling import without_compiler
from .section import Lacking, Section, need
from .timing import GIB, peak_bytes, seconds


def run(section: Section) -> None:
    need("training.loop")
    for case in [*steps.WHOLE, *steps.LORA]:
        measure(section, case)
    try:
        need("training.stages")
        from training.stages import adapters, t2v

        for name, stage in {"stage t2v": t2v.STAGE, "stage adapters": adapters.STAGE}.items():
            measure(section, steps.Case(name, stage.trains, checkpointing=True))
    except Lacking as lacking:
        section.skipped("stages t2v and adapters", f"lacks what they import: {lacking}")
    without_compiler(section)
    for case in (steps.LORA[0], steps.WHOLE[0]):
        measure(section, dataclasses.replace(case, compile=True))


def measure(section: Section, case: steps.Case) -> None:
    with section.part(str(case)):
        run = steps.Run(section, case)
        first = seconds(run.step, section.device)
        if case.compile:
            section.result(f"{case}: the first step", first, "s")
        run.step()
        times = [seconds(run.step, section.device) for _ in range(section.rounds)]
        section.result(f"{case}: a step", statistics.median(times), "s")
        section.result(f"{case}: peak", peak_bytes(run.step, section.device)[0] / GIB, "GiB")

"""A training step at full size, micro-batch 1: seconds and memory by stage and engine."""

import dataclasses
import statistics

from . import steps
from .compiling import without_compiler
from .section import Section, need
from .timing import GIB, peak_bytes, seconds


def run(section: Section) -> None:
    need("training.loop", "training.stages")
    from training.stages import adapters, t2v

    stages = {"stage t2v": t2v.STAGE, "stage adapters": adapters.STAGE}
    for case in (
        *steps.WHOLE,
        *steps.LORA,
        *(steps.Case(name, stage.trains, checkpointing=True) for name, stage in stages.items()),
    ):
        measure(section, case)
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

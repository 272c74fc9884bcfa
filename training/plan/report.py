"""A plan as text."""

from collections.abc import Mapping

from .hardware import GIB
from .planning import COPY_SECONDS, DECODE_SECONDS, RAW_BYTES, Plan

NAMES = {"one": "1 GPU", "ddp": "DDP", "fsdp": "FSDP"}


def report(plan: Plan) -> str:
    """The plan for people, every assumption named."""
    sections = (_head, _memory, _time, _network, _data, _assumptions)
    if plan.cluster.gpus == 1:
        sections = (_head, _memory, _time, _data, _assumptions)
    return "\n\n".join("\n".join(section(plan)) for section in sections)


def _head(plan: Plan) -> list[str]:
    work, cluster, (trained, frozen) = plan.workload, plan.cluster, plan.parameters
    dtype = str(work.dtype).removeprefix("torch.")
    checkpointing = "on" if plan.engine.checkpointing else "off"
    size = f"{work.bucket[1]} x {work.bucket[0]}"
    batch = ", ".join(f"{size} {modality}" for modality, size in work.active.items())
    micro = ", ".join(f"{size} {modality}" for modality, size in plan.micro_batch.items())
    low, high = work.frames
    return [
        f"{work.name}: {work.steps:,} steps on {cluster.gpus} x {cluster.gpu}",
        f"  U-Net          {trained / 1e6:,.1f} M parameters trained, {frozen / 1e6:,.1f} M frozen",
        f"  a step         {batch} samples; clips of {low} to {high} frames at {size}",
        f"  a pass         {micro} samples on one GPU, {plan.passes} passes a step; "
        f"checkpointing {checkpointing}, {dtype}",
        f"  data           {'prepared latents and tokens' if work.prepared else 'raw pictures and clips'}",
    ]


def _memory(plan: Plan) -> list[str]:
    columns = plan.memory if plan.cluster.gpus > 1 else {"one": plan.memory["one"]}
    parts = dict.fromkeys(part for column in columns.values() for part in column)
    lines = [f"{'memory of a GPU, GiB':<36}" + "".join(f"{NAMES[c]:>9}" for c in columns)]
    for part in parts:
        lines.append(f"  {part:<34}" + "".join(_cell(column.get(part, 0)) for column in columns.values()))
    lines.append(f"  {'reserve (assumed)':<34}" + _cell(plan.cluster.reserve) * len(columns))
    lines.append(f"  {'total':<34}" + "".join(_cell(plan.total(c)) for c in columns))
    memory = plan.cluster.kind.memory
    name = f"left of {memory / GIB:g}"
    return [*lines, f"  {name:<34}" + "".join(_cell(memory - plan.total(c)) for c in columns)]


def _cell(size: float) -> str:
    return f"{size / GIB:9.2f}"


def _time(plan: Plan) -> list[str]:
    lines = [
        "time",
        f"  forward        {plan.forward / 1e12:10.2f} TFLOP of the U-Net for the longest sample",
    ]
    for modality, flops in plan.sample_flops.items():
        lines.append(
            f"  a sample, {modality:<6} {flops / 1e12:9.2f} TFLOP forward, backward and recomputed; "
            f"{plan.encoding[modality] / 1e12:.2f} to encode it"
        )
    per_gpu = plan.step_flops / plan.cluster.gpus / 1e12
    return lines + [
        f"  a step         {plan.step_flops / 1e15:10.3f} PFLOP, {per_gpu:.1f} TFLOP a GPU",
        f"  seconds        {plan.step_seconds:10.3f} = the longer of {plan.compute_seconds:.3f} computing "
        f"and {plan.network_seconds:.3f} messages, and {plan.optimizer_seconds:.3f} optimizer",
        f"  the run        {plan.days:10.2f} days, {plan.days * plan.cluster.gpus:,.1f} GPU-days",
        "  samples        " + ", ".join(f"{count / 1e6:,.3f} M {m}" for m, count in plan.samples.items()),
    ]


def _network(plan: Plan) -> list[str]:
    sent = plan.sent[plan.engine.parallel]
    total = sent * plan.cluster.gpus / plan.step_seconds
    return [
        f"messages ({NAMES[plan.engine.parallel]})",
        f"  a step         {sent / 1e9:10.2f} GB sent by each GPU",
        f"  bandwidth      {sent / plan.step_seconds / 1e9:10.2f} GB/s a GPU "
        f"of {plan.cluster.slowest_link / 1e9:g}, {total / 1e9:,.0f} GB/s in all",
    ]


def _data(plan: Plan) -> list[str]:
    work, lines = plan.workload, ["data"]
    read = 0.0
    cores = 0.0
    for modality in work.active:
        rate, size = plan.rate(modality), plan.loaded_bytes(modality)
        read += rate * size
        cores += rate * plan.core_seconds(modality)
        lines.append(f"  {modality:<14} {rate:10.1f} samples/s, {size / 1e6:.3f} MB each")
    lines.append(f"  reading        {read / 1e6:10.1f} MB/s, {read / plan.cluster.gpus / 1e6:.2f} a GPU")
    if not work.prepared:
        lines.append(f"  decoding       {cores:10.1f} CPU cores, {cores / plan.cluster.gpus:.2f} a GPU")
    for name, prepared in (("raw", False), ("prepared", True)):
        stored = plan.stored_bytes(prepared)
        if stored:
            lines.append(
                f"  {name:<14} {sum(stored.values()) / 1e12:10.2f} TB: {_counts(stored, work.dataset)}"
            )
    return lines


def _counts(stored: Mapping[str, float], dataset: Mapping[str, int]) -> str:
    return ", ".join(f"{dataset[k] / 1e6:g} M {k}s {size / 1e12:.2f}" for k, size in stored.items())


def _assumptions(plan: Plan) -> list[str]:
    cluster = plan.cluster
    lines = [
        "assumed, not counted",
        f"  --mfu {cluster.mfu:g}: the GPU executes {cluster.mfu:.0%} of its dense bf16 peak of "
        f"{cluster.kind.flops / 1e12:g} TFLOP/s",
        "  data is never waited for, and messages travel beside the computing",
        f"  {cluster.per_node} GPUs a node, {cluster.kind.link / 1e9:g} GB/s within, "
        f"{cluster.network / 1e9:g} GB/s for each GPU between nodes",
        f"  {cluster.reserve / GIB:g} GiB for the driver, the kernels' work space and message buffers",
        "  every sample shows all its conditions, and has the size of the largest bucket",
    ]
    if not plan.workload.prepared or plan.workload.dataset:
        lines.append(
            f"  raw: {RAW_BYTES['image'] / 1e6:g} MB a picture, {RAW_BYTES['clip'] / 1e6:g} MB a clip; "
            f"{DECODE_SECONDS['image']:g} and {DECODE_SECONDS['clip']:g} s of a core to decode"
            + (
                f", {COPY_SECONDS:g} s for a poor copy of a million pixels"
                if "copy" in plan.workload.shows
                else ""
            )
        )
    return lines

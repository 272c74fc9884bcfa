"""Break files of weights at random, and see that each is opened or refused in one sentence.

    python -m tests.fuzz_weights --minutes 60 --seed 7

Every file is a good one, changed by its structure (a header's entries, a pickle's instructions, a config's
values), by its bytes, or cut. Opening it has to give an answer: weights whose every tensor can be read, or a
ValueError whose text a person can read, within the time and memory that a good file of this size takes many
times over. What fails is printed with its kind, seed and number, which make it again.
"""

import argparse
import dataclasses
import json
import pickletools
import random
import resource
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from safetensors.torch import save  # noqa: E402
from weight_files import RAW, write_holes  # noqa: E402

from univid.checkpoints.family_names import diffusers_family_unet  # noqa: E402
from univid.checkpoints.imports import plan  # noqa: E402
from univid.checkpoints.lora import read_lora  # noqa: E402
from univid.checkpoints.native import PARTS, header, meta_modules  # noqa: E402
from univid.checkpoints.opened import open_checkpoint  # noqa: E402
from univid.files.folder import open_folder  # noqa: E402
from univid.files.tensors import Weights  # noqa: E402
from univid.files.weights import open_weights  # noqa: E402
from univid.presets import FAMILY, PROFILES, TINY  # noqa: E402
from univid.unet import UNet  # noqa: E402

SECONDS, MEMORY = 10.0, 1e9  # of one file; those here have less than a megabyte
VALUES = [
    None, True, False, 0, -1, 1, 2, 7, 1.5, -0.0, 2**31, 2**63, 2**64, 10**30, 1e308, float("inf"),
    float("nan"), "", "x", "F16", "I8", "../x", "9" * 5000, "\x1b[2J", [], [[]], [0], [-1], [2**62] * 3, {},
    {"a": {}}, [1] * 5000,
]  # fmt: skip
DIFFUSERS = {
    "_class_name": "UNet3DConditionModel", "in_channels": 4, "out_channels": 4,
    "block_out_channels": [64, 128, 128, 128], "layers_per_block": 2, "cross_attention_dim": 64,
    "down_block_types": ["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"], "attention_head_dim": 64,
    "norm_num_groups": 32,
}  # fmt: skip
SCHEDULER = {
    "prediction_type": "epsilon", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "rescale_betas_zero_snr": False, "trained_betas": None,
}  # fmt: skip


def broken(draw: random.Random, value, depth: int = 0):
    """JSON with one value somewhere replaced, left out, doubled or renamed."""
    if depth and (draw.random() < 0.15 or not isinstance(value, dict | list) or not value):
        if isinstance(value, int) and draw.random() < 0.5:
            return value + draw.choice([-4, -1, 1, 2, 4, 1 << draw.randrange(70)])
        return draw.choice(VALUES)
    if isinstance(value, list):
        place, result = draw.randrange(len(value)), list(value)
        action = draw.random()
        if action < 0.1:
            del result[place]
        elif action < 0.2:
            result.insert(place, result[place])
        else:
            result[place] = broken(draw, result[place], depth + 1)
        return result
    key = draw.choice(list(value))
    action = draw.random()
    if action < 0.1:
        return {k: v for k, v in value.items() if k != key}
    if action < 0.2:
        others = [str(draw.choice(VALUES)), f"{key}.9", key.replace("0", "999999999"), key[: len(key) // 2]]
        other = draw.choice(others)
        return {other if k == key else k: v for k, v in value.items()}
    if action < 0.3:
        return value | {key: value[draw.choice(list(value))]}
    return value | {key: broken(draw, value[key], depth + 1)}


def flipped(draw: random.Random, data: bytes, below: int | None = None) -> bytes:
    """A few bytes changed, left out, doubled, or the end cut off."""
    result, size = bytearray(data), min(len(data), below or len(data))
    for _ in range(draw.choice([1, 1, 1, 2, 5, 20])):
        place, action = draw.randrange(max(size, 1)), draw.random()
        if action < 0.7:
            result[place : place + 1] = bytes([draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])])
        elif action < 0.8:
            del result[place : place + draw.choice([1, 4, 100])]
        elif action < 0.9:
            result[place:place] = result[place : place + draw.choice([1, 8, 64])]
        else:
            del result[place:]
    return bytes(result)


def shuffled(draw: random.Random, pickle_bytes: bytes) -> bytes:
    """A pickle with some instructions doubled, left out, exchanged, or with other arguments."""
    starts = [place for _, _, place in pickletools.genops(pickle_bytes)] + [len(pickle_bytes)]
    steps = [pickle_bytes[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    for _ in range(draw.choice([1, 1, 2, 5])):
        place, action = draw.randrange(len(steps)), draw.random()
        if action < 0.25:
            steps.insert(place, steps[draw.randrange(len(steps))])
        elif action < 0.5:
            del steps[place]
        elif action < 0.6:
            other = draw.randrange(len(steps))
            steps[place], steps[other] = steps[other], steps[place]
        elif action < 0.8:
            steps[place] = bytes([draw.randrange(256)]) + steps[place][1:]
        else:
            steps[place] = steps[place][:1] + draw.randbytes(len(steps[place]) - 1)
        steps = steps or [b"."]
    return b"".join(steps)


class Sources:
    """Good files of each kind, and how one of them is broken: a method a kind, which writes a file."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "f"
        generator = torch.Generator().manual_seed(0)
        names = [f"model.diffusion_model.input_blocks.{i}.0.weight" for i in range(12)]
        tensors = {name: torch.randn(3, i + 1, generator=generator) for i, name in enumerate(names)}
        self.tensors = save(tensors, {"format": "pt"})
        modules = meta_modules(TINY).items()
        whole = {PARTS[p].prefix + key: v.shape for p, m in modules for key, v in m.state_dict().items()}
        self.native = split(write_holes(self.path, whole).read_bytes())[0]
        self.native["__metadata__"] = header(TINY, PROFILES["tiny"], {"source": "a fuzzer"})
        pair = {"lora_A.weight": torch.ones(2, 8), "lora_B.weight": torch.ones(6, 2), "alpha": torch.ones(())}
        self.low_rank = save({f"diffusion_model.a.{i}.{k}": v + i for i in range(3) for k, v in pair.items()})
        content = {"state_dict": tensors, "epoch": 3, "lr": 1e-4, "callbacks": [{"a": (1, None, True)}]}
        torch.save(content, self.path, _use_new_zipfile_serialization=False)
        self.old = self.path.read_bytes()
        torch.save(content, self.path)
        self.new = self.path.read_bytes()
        with zipfile.ZipFile(self.path) as file:
            self.records = {name: file.read(name) for name in file.namelist()}
        self.unet = folder / "diffusers" / "unet"
        self.unet.mkdir(parents=True)
        config = dataclasses.replace(
            FAMILY.unet, model_channels=64, channel_mult=(1, 2, 2, 2), context_dim=64
        )
        table = diffusers_family_unet(config)
        with torch.device("meta"):
            shapes = {table.source(key): value.shape for key, value in UNet(config).state_dict().items()}
        write_holes(self.unet / "diffusion_pytorch_model.safetensors", shapes)
        self.parts = folder / "parts"
        self.parts.mkdir()
        (self.parts / "a.safetensors").write_bytes(self.tensors)

    def headers(self, draw: random.Random):
        """Entries of a header."""
        head, data = split(self.tensors)
        self.path.write_bytes(joined(broken(draw, head), data))
        return open_weights(self.path)

    def bytes_of_headers(self, draw: random.Random):
        """Bytes, most of them near the beginning."""
        self.path.write_bytes(flipped(draw, self.tensors, below=draw.choice([16, 1200, None])))
        return open_weights(self.path)

    def pickles(self, draw: random.Random):
        """Instructions of the pickle in a zip file, or its bytes."""
        name = next(name for name in self.records if name.endswith("data.pkl"))
        change = draw.choice([shuffled, flipped])
        records = self.records | {name: change(draw, self.records[name])}
        packing = zipfile.ZIP_DEFLATED if draw.random() < 0.1 else zipfile.ZIP_STORED
        with zipfile.ZipFile(self.path, "w", packing) as file:
            for key, data in records.items():
                if draw.random() > 0.02:
                    file.writestr(key, data)
        return open_weights(self.path)

    def zips(self, draw: random.Random):
        """Bytes of the zip file around a good pickle, most of them in its directory."""
        tail = draw.choice([0, len(self.new) - 2500])
        self.path.write_bytes(self.new[:tail] + flipped(draw, self.new[tail:]))
        return open_weights(self.path)

    def streams(self, draw: random.Random):
        """A file as PyTorch wrote it before it wrote zip files."""
        self.path.write_bytes(flipped(draw, self.old, below=draw.choice([200, 2500, None])))
        return open_weights(self.path)

    def configs(self, draw: random.Random):
        """Values of a native header's config and profile."""
        metadata = dict(self.native["__metadata__"])
        for name in draw.choice([["config"], ["profile"], ["config", "profile"]]):
            changed = json.dumps(broken(draw, json.loads(metadata[name])))
            metadata[name] = changed if draw.random() < 0.8 else metadata[name][: draw.randrange(400)]
        return self._open_native(self.native | {"__metadata__": metadata})

    def natives(self, draw: random.Random):
        """Entries of a native header."""
        return self._open_native(broken(draw, self.native))

    def _open_native(self, head):
        size = max(entry["data_offsets"][1] for name, entry in self.native.items() if name != "__metadata__")
        with open(self.path, "wb") as file:
            file.write(joined(head, b""))
            file.truncate(file.tell() + size)
        return open_checkpoint(self.path)

    def loras(self, draw: random.Random):
        """Entries and numbers of a LoRA."""
        head, data = split(self.low_rank)
        if draw.random() < 0.7:
            head = broken(draw, head)
        self.path.write_bytes(joined(head, flipped(draw, data) if draw.random() < 0.5 else data))
        return [layer.delta() for layer in read_lora(self.path).layers.values()]

    def indexes(self, draw: random.Random):
        """The index of a model in pieces."""
        listed = {name: "a.safetensors" for name in split(self.tensors)[0] if name != "__metadata__"}
        text = json.dumps(broken(draw, {"metadata": {}, "weight_map": listed}))
        path = self.parts / "model.safetensors.index.json"
        path.write_bytes(flipped(draw, text.encode()) if draw.random() < 0.3 else text.encode())
        return open_folder(self.parts)

    def folders(self, draw: random.Random):
        """The configs of a diffusers folder."""
        good = {"unet/config.json": DIFFUSERS, "scheduler/scheduler_config.json": SCHEDULER}
        one = draw.choice(list(good))
        for name, content in (good | {one: broken(draw, good[one])}).items():
            path = self.unet.parent / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content))
        return plan(self.unet.parent)


KINDS = [name for name, member in vars(Sources).items() if callable(member) and not name.startswith("_")]


def split(data: bytes) -> tuple[dict, bytes]:
    """Header and bytes of a .safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(head, data: bytes) -> bytes:
    text = json.dumps(head).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data


def fault(sources: Sources, kind: str, seed: str) -> tuple[str, str]:
    """What one broken file comes to, "opened" or "refused", and what is wrong with that ("" = nothing)."""
    started, before = time.process_time(), peak()
    try:
        opened, result = getattr(sources, kind)(random.Random(seed)), "opened"
        if isinstance(opened, Weights):
            for name, entry in opened.entries.items():
                tensor = opened.read(name)
                if (tensor.dtype, tuple(tensor.shape)) != (entry.dtype, entry.shape):
                    return result, f"{name} is not as described"
    except ValueError as error:
        result, text = "refused", str(error)
        if not text.endswith(".") or len(text) > 400 or not text.isprintable() or RAW.search(text):
            return result, f"an unclear message: {text[:600]!a}"
    except Exception:
        return "failed", traceback.format_exc()
    if (seconds := time.process_time() - started) > SECONDS:
        return result, f"{seconds:.1f} s"
    if (growth := peak() - before) > MEMORY:
        return result, f"{growth / 1e9:.1f} GB"
    return result, ""


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(folder: Path, seed: int, seconds: float, report=lambda text: None) -> tuple[Counter, list[str]]:
    """Break files for some time, as long of each kind: {(kind, result): count}, and what went wrong."""
    sources, counts, faults, spent = Sources(folder), Counter(), [], dict.fromkeys(KINDS, 0.0)
    number, end = 0, time.monotonic() + seconds
    while time.monotonic() < end and len(faults) < 20:
        kind, started = min(spent, key=spent.__getitem__), time.monotonic()
        result, wrong = fault(sources, kind, f"{seed} {kind} {number}")
        spent[kind] += time.monotonic() - started
        counts[kind, result] += 1
        if wrong:
            faults.append(f"{kind} {seed} {number}: {wrong}")
            report(faults[-1])
        number += 1
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description="Break files of weights at random.")
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = fuzz(Path(folder), options.seed, 60 * options.minutes, print)
    for kind in KINDS:
        words = [f"{result} {count:,}" for (k, result), count in sorted(counts.items()) if k == kind]
        print(f"{kind:18} {', '.join(words)}")
    print(f"{sum(counts.values()):,} files, {len(faults)} faults, {peak() / 1e9:.2f} GB resident at most")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

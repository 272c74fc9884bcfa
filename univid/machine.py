"""How much memory this machine, or the container that the program runs in, and its devices have to give."""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Bytes that can still be taken, swap space included, without another program's losing its own.

    Where the system does not say, all that it has.
    """
    if hasattr(ctypes, "windll"):
        return _windows(ctypes.windll.kernel32)
    try:
        lines = (line.split() for line in _text(proc / "meminfo").splitlines())
        free = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
        whole = free["MemAvailable"] + free.get("SwapFree", 0)
    except (OSError, KeyError, ValueError, IndexError):  # no Linux
        try:
            whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):  # a system that nobody thought of
            whole = sys.maxsize
    return min([whole, *_left_in_groups(proc, cgroups)])


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device, a CPU's being the machine's; None = it does not say.

    What torch keeps of freed tensors is free.
    """
    if device.type == "cpu":
        return available_memory()
    try:
        module = torch.get_device_module(device)
    except RuntimeError:  # a device that torch has no module for
        return None
    if not hasattr(module, "mem_get_info") or not module.is_available():
        return None
    kept = module.memory_reserved(device) - module.memory_allocated(device)
    return module.mem_get_info(device)[0] + kept


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each control group around this process leaves it; of both versions."""
    try:
        lines = _text(proc / "self" / "cgroup").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, used, cache = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, used = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        inner = root / path.strip("/")
        # A container may see its own group as the root.
        for group in {inner, *(p for p in inner.parents if p.is_relative_to(root)), root}:
            most, now = _number(group / limit), _number(group / used)
            if most is not None and now is not None:
                yield max(0, most - now + _cached(group / "memory.stat", cache))


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except (OSError, ValueError):  # not there, or "max"
        return None


def _cached(path: Path, name: str) -> int:
    """Bytes of files that the system drops when memory is asked for."""
    try:
        words = dict(line.split() for line in _text(path).splitlines())
        return int(words.get(name, 0))
    except (OSError, ValueError):
        return 0


def _text(path: Path) -> str:
    return path.read_text("utf-8", "replace")


def _windows(kernel) -> int:
    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32)] + [
            (name, ctypes.c_uint64)
            for name in ("total", "free", "total_page", "free_page", "total_virtual", "free_virtual", "more")
        ]

    status = Status(length=ctypes.sizeof(Status))
    kernel.GlobalMemoryStatusEx(ctypes.byref(status))
    return status.free_page

"""A real ComfyUI with a full-size file: loading, sampling, fp8, a LoRA, a large clip, offload, interrupts."""

import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from . import host_files
from .section import Lacking, Section, need
from .timing import release

MIB, GIB = 2**20, 2**30
GROWTH = 64  # MiB of one run more
ROOM = 5 * GIB  # that partial offload leaves: less than the network and what it works with


def run(section: Section) -> None:
    host = found()
    if os.environ.get("UNIVID_HOST") != str(host.root):  # its Python has what talks to a server
        command = [host.own_python, "-m", "tests.gpu.child", "host", "--device", section.device]
        command += ["--results", section.file, *(["--small"] if section.small else [])]
        environment = os.environ | {"UNIVID_HOST": str(host.root)}
        sys.exit(subprocess.run([str(word) for word in command], env=environment).returncode)
    need("aiohttp")
    section.says(f"{host} with {host.own_python}")
    write_files(section)
    with Host(section, host, "plain").running() as plain:
        ordinary(section, plain, 2 if section.small else 25)
    if section.device.type == "cpu":
        section.skipped("--lowvram and --reserve-vram", "there is no memory of a card to be short of")
        return
    total = torch.get_device_module(section.device).mem_get_info()[1]
    for options in (("--lowvram",), ("--reserve-vram", f"{(total - ROOM) / GIB:.1f}")):
        words = " ".join(options)
        with section.part(words), Host(section, host, words, options).running() as short:
            short.measure(words, short.graph(3))


def found():
    """The newest ComfyUI that the pack supports, whose Python has what its nodes need."""
    from tests.host.hosts import find_hosts

    try:
        host = next((host for host in find_hosts() if host.supported), None)
    except ValueError as error:
        raise Lacking(f"a ComfyUI: {error}") from error
    if host is None:
        raise Lacking("a ComfyUI at COMFYUI_PATH or ~/ComfyUI")
    if absent := [name for name in host.lacking if name != "pytest"]:
        raise Lacking(f"{', '.join(absent)} in the Python of {host}, {host.own_python}")
    return host


def write_files(section: Section) -> None:
    started, folder = time.perf_counter(), section.file.parent
    host_files.write(section, folder)
    section.result("files: written in", time.perf_counter() - started, "s")
    section.result("files: the model's", (folder / host_files.MODEL).stat().st_size / GIB, "GiB")
    release(section.device)


def ordinary(section: Section, host: "Host", steps: int) -> None:
    """What is measured on a host that was started without options."""
    with section.part("first run"):
        seconds, nodes = host.measure("first run, joint", host.graph(steps))
        section.result("first run, joint: of it Load UniVid", nodes["UniVidLoad"], "s")
    with section.part("joint"):
        host.measure("joint", host.graph(steps, seed=1))
    with section.part("separate"):
        host.measure("separate", host.graph(steps, seed=2, mode="separate"))
    with section.part("twice in a row"):
        used = []
        for seed in (3, 4):
            host.queue(host.graph(2, seed=seed))
            used.append(host.used())
        section.result("twice in a row: growth", (used[1] - used[0]) / MIB, "MiB", bound=("<", GROWTH))
    with section.part("interrupt"):
        interrupted(section, host, steps)
    with section.part("large"):
        size = {"width": 96, "height": 64} if section.small else {"width": 1280, "height": 720}
        host.measure("{width} x {height}".format(**size), host.graph(3, seed=6, **size))
    with section.part("LoRA"):
        host.measure("with a LoRA", host.with_lora(host.graph(3, seed=7)))
        unknown = host.server.log().count("lora key not loaded")
        section.result("with a LoRA: layers that found no weight", unknown, bound=("<=", 0))
    with section.part("fp8"):
        host.measure("weights kept in fp8", host.graph(3, seed=8, dtype="fp8_e4m3fn"))


def interrupted(section: Section, host: "Host", steps: int) -> None:
    """Seconds from asking to the end, and that the next run is right."""
    asked = []

    def interrupt(kind: str, data: dict) -> None:
        if kind == "progress" and data["max"] == 100 and not asked:
            asked.append(time.perf_counter())
            host.server.interrupt()

    run = host.server.run(host.graph(100, seed=5), on_event=interrupt, previews="none")
    section.result("interrupt: until it ends", time.perf_counter() - asked[0], "s")
    section.result("interrupt: it did", float(run.status == "interrupted"), bound=(">=", 1))
    host.queue(host.graph(2, seed=5))


class Host:
    """A server, the graphs that it runs, and what they take.

    options: of its command line, beside --cpu where that is the device.
    """

    def __init__(self, section: Section, host, name: str, options: tuple[str, ...] = ()):
        from tests.host.harness import Server

        self.section, folder = section, section.file.parent
        if section.device.type == "cpu":
            options = ("--cpu", *options)
        place = folder / re.sub(r"\W+", "-", name)
        place.mkdir()
        self.before = self.occupied()
        self.server = Server(host, place, options=options, python=host.own_python)
        for file, kind in ((host_files.MODEL, "univid"), (host_files.LORA, "loras")):
            models = self.server.base / "models" / kind
            models.mkdir(exist_ok=True)
            os.link(folder / file, models / file)

    @contextlib.contextmanager
    def running(self) -> Iterator["Host"]:
        started = time.perf_counter()
        with self.server:
            self.section.result("server: started in", time.perf_counter() - started, "s")
            yield self

    def graph(self, steps: int, **values):
        """A clip from text and picture, in the file's own size unless `values` say otherwise."""
        from tests.host.harness import Graph

        values = {"mode": "joint", "seed": 0} | values
        return Graph.named("text_and_image_to_video").having(
            checkpoint=host_files.MODEL, steps=steps, **values
        )

    def with_lora(self, graph):
        """The graph with the stock LoRA loader between the model and who samples with it."""
        load = graph.one("UniVidLoad")
        changed = graph.plus(
            "LoraLoaderModelOnly", model=[load, 0], lora_name=host_files.LORA, strength_model=1.0
        )
        sampler = changed[changed.one("UniVidPSTSampler")]
        sampler["inputs"]["model"] = [changed.one("LoraLoaderModelOnly"), 0]
        return changed

    def measure(self, name: str, graph) -> tuple[float, dict[str, float]]:
        """Print what a graph takes; seconds in all, and of each type of node."""
        seconds, nodes, steps, most = self.queue(graph)
        self.section.result(f"{name}: in all", seconds, "s")
        self.section.result(f"{name}: a step", statistics.median(steps), "s")
        self.section.result(f"{name}: most memory seen", most / MIB, "MiB")
        return seconds, nodes

    def queue(self, graph) -> tuple[float, dict[str, float], list[float], int]:
        """Run a graph: seconds in all, of each type of node and of each step, and the most bytes seen."""
        total = graph[graph.one("UniVidPSTSampler")]["inputs"]["steps"]
        nodes, marks, used, began = {}, [], [0], []

        def hear(kind: str, data: dict) -> None:
            now = time.perf_counter()
            if kind == "executing":
                if began:
                    node, since = began.pop()
                    nodes[graph[node]["class_type"]] = now - since
                if data.get("node"):
                    began.append((data["node"], now))
            if kind == "progress" and data["max"] == total:
                marks.append(now)
            used.append(self.used())

        started = time.perf_counter()
        run = self.server.run(graph, on_event=hear, previews="none")
        if run.status != "success":
            raise RuntimeError(f"{run.status}: {run.node_type} {run.message}")
        steps = [later - earlier for earlier, later in zip(marks, marks[1:], strict=False)]
        return time.perf_counter() - started, nodes, steps, max(used)

    def used(self) -> int:
        """Bytes that the server holds: of the card by its driver's count, on a CPU of its own memory."""
        return self.occupied() - self.before

    def occupied(self) -> int:
        if self.section.device.type != "cpu":
            free, total = torch.get_device_module(self.section.device).mem_get_info()
            return total - free
        if not hasattr(self, "server"):
            return 0
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])

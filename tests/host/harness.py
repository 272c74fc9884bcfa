"""A real ComfyUI server as a subprocess, the pack in its custom_nodes, and the few calls that tests make."""

import asyncio
import copy
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import aiohttp  # every host has it: its server is made of it

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
PACK = "ComfyUI-UniVid"
SETTINGS = {  # of the browser: nothing over the canvas, and words also where it is zoomed out
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}
ENDS = {"execution_success", "execution_error", "execution_interrupted"}
BINARY = {1: "preview", 3: "text"}  # what the first four bytes of a message that is no JSON say


@dataclasses.dataclass
class Run:
    """How a queued graph ended."""

    status: str  # success, error, interrupted; refused: the host did not queue it
    message: str = ""  # of an error or a refusal
    node_type: str = ""  # where the error was
    cached: frozenset = frozenset()  # ids of the nodes that did not run again
    outputs: dict = dataclasses.field(
        default_factory=dict
    )  # node id -> what it shows, as in the host's history
    events: list = dataclasses.field(default_factory=list)  # (type, data), as the browser gets them


class Server:
    """`with Server(host, folder) as server:` starts one and ends it; its files live in `folder`.

    environment: variables of the process beside this one's. options: of the host's command line. python: None
    = the host's with what tests need.
    """

    def __init__(
        self,
        host,
        folder: Path,
        start_seconds: float = 600,
        environment: dict | None = None,
        options: tuple[str, ...] = ("--cpu",),
        python: Path | None = None,
    ):
        self.host, self.base, self.start_seconds = host, Path(folder) / "base", start_seconds
        self.options, self.python = options, python or host.python
        self.environment = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | (environment or {})
        self.log_file = Path(folder) / "server.log"
        for name in ("input", "output", "models/univid", "custom_nodes", "user/default"):
            (self.base / name).mkdir(parents=True)
        (self.base / "custom_nodes" / PACK).symlink_to(ROOT, target_is_directory=True)
        (self.base / "user/default/comfy.settings.json").write_text(json.dumps(SETTINGS))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        command = [
            self.python, "main.py", *self.options, "--base-directory", self.base, "--disable-api-nodes",
            "--database-url", "sqlite:///:memory:", "--listen", "127.0.0.1", "--port", self.port,
            "--disable-auto-launch", "--preview-method", "latent2rgb",
        ]  # fmt: skip
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self.host.root,
                env=os.environ | self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + self.start_seconds
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"{self.host} did not start; the end of its log:\n{self.log()[-3000:]}")
            time.sleep(0.5)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def get(self, path: str, **query):
        """The JSON, or where it is none the bytes, of a GET."""
        with urllib.request.urlopen(
            f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=300
        ) as answer:
            body = answer.read()
            return json.loads(body) if "json" in answer.headers.get("Content-Type", "") else body

    def post(self, path: str, data: dict):
        """POST `data` as JSON: (HTTP status, answer)."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(data).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or "null")

    def interrupt(self):
        self.post("/interrupt", {})

    def run(self, graph: dict, *, on_event=None, seconds: float = 900, previews: str = "latent2rgb") -> Run:
        """Queue a graph in API format and wait for its end; `on_event(type, data)` hears what browsers do.

        previews: the method, as the interface sends it along; "none" for none.
        """
        return asyncio.run(asyncio.wait_for(self._run(graph, on_event, previews), seconds))

    def file(self, item: dict) -> Path:
        """The file of an entry of a node's outputs."""
        return self.base / item["type"] / item["subfolder"] / item["filename"]

    def add_input(self, source: Path, name: str | None = None) -> str:
        """Put a file where LoadImage and LoadVideo look."""
        shutil.copyfile(source, self.base / "input" / (name or source.name))
        return name or source.name

    def _answers(self) -> bool:
        try:
            return bool(self.get("/system_stats"))
        except OSError:
            return False

    async def _run(self, graph, on_event, previews):
        client = uuid.uuid4().hex
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as socket_,
        ):
            # In a thread, so that a progress message that comes meanwhile is not held up.
            queued = {"prompt": graph, "client_id": client, "extra_data": {"preview_method": previews}}
            status, answer = await asyncio.to_thread(self.post, "/prompt", queued)
            if status != 200:
                return Run("refused", message=json.dumps(answer))
            prompt_id, events = answer["prompt_id"], []
            async for message in socket_:
                if message.type != aiohttp.WSMsgType.TEXT:
                    if message.type == aiohttp.WSMsgType.BINARY:
                        kind = BINARY.get(int.from_bytes(message.data[:4], "big"), "binary")
                        events.append((kind, message.data[4:]))
                    continue
                event = json.loads(message.data)
                kind, data = event["type"], event.get("data") or {}
                if data.get("prompt_id") not in (prompt_id, None):
                    continue
                events.append((kind, data))
                if on_event:
                    await asyncio.to_thread(on_event, kind, data)
                if kind in ENDS:
                    break
            else:
                raise RuntimeError(f"the connection ended; the end of the log:\n{self.log()[-3000:]}")
        while not (
            entry := self.get(f"/history/{prompt_id}").get(prompt_id)
        ):  # filled after the last message
            await asyncio.sleep(0.05)
        messages = dict(entry["status"]["messages"])
        error = messages.get("execution_error", {})
        return Run(
            status=kind.removeprefix("execution_"),
            message=error.get("exception_message", ""),
            node_type=error.get("node_type", ""),
            cached=frozenset(messages.get("execution_cached", {}).get("nodes", ())),
            outputs=entry["outputs"],
            events=events,
        )


class Graph(dict):
    """A graph in API format, to be changed by a test: node id -> {class_type, inputs}."""

    @classmethod
    def named(cls, name: str):
        """One of graphs/*.json."""
        return cls(json.loads((FOLDER / "graphs" / f"{name}.json").read_text()))

    def of(self, class_type: str) -> list[str]:
        """The ids of all nodes of a type."""
        return [name for name, node in self.items() if node["class_type"] == class_type]

    def one(self, class_type: str) -> str:
        (only,) = self.of(class_type)
        return only

    def having(self, **values):
        """A copy in which every node that has such an input as a plain value gets this one."""
        changed = Graph(copy.deepcopy(dict(self)))
        for key, value in values.items():
            found = [
                n for n in changed.values() if key in n["inputs"] and not isinstance(n["inputs"][key], list)
            ]
            assert found, f"no node has a value named {key}"
            for node in found:
                node["inputs"][key] = value
        return changed

    def plus(self, class_type: str, **inputs):
        """A copy with one more node, whose id is its type and a number."""
        changed = Graph(copy.deepcopy(dict(self)))
        changed[f"{class_type} {len(self)}"] = {"class_type": class_type, "inputs": inputs}
        return changed

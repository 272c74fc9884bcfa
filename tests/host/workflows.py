"""The workflows that the pack ships: what their graphs say, and whether a page understood them."""

import json
import uuid

from host_tests.harness import FOLDER, ROOT, Graph
from host_tests.stand_ins import FRAMES

NAMES = sorted(path.stem for path in (FOLDER / "graphs").glob("*.json"))
WORKFLOWS = ROOT / "workflows"
SHOTS = FOLDER / "screenshots"
LAYOUT = FOLDER / "layout.json"
# Values with which a workflow runs in a moment, by the names of widgets.
QUICK = {"steps": 2, "factor": 2, "text_weights": "1", "image_weights": "0, 1"}
SMALL = {"width": 64, "height": 64, "frames": FRAMES, "window": 3, "stride": 2}  # of models that stand in


def on_stand_ins(name: str) -> bool:
    """Whether small random models stand in for those that it is for, whose clips are therefore noise."""
    return name == "control" or name.startswith("imported_")


def quick_values(name: str) -> dict:
    """Those of the quick values that nodes of a workflow have widgets for."""
    values = QUICK | (SMALL if on_stand_ins(name) else {})
    inputs = [node["inputs"] for node in Graph.named(name).values()]
    return {
        key: value
        for key, value in values.items()
        if any(key in given and not isinstance(given[key], list) for given in inputs)
    }


def missing_nodes(name: str, known: dict) -> list[str]:
    """Types of nodes that a host does not have; `known` is its /object_info."""
    return sorted({node["class_type"] for node in Graph.named(name).values()} - set(known))


def differences(prompt: dict, name: str, known: dict) -> list[str]:
    """What the frontend is about to run that the graph says otherwise: nodes, values and links.

    What a frontend adds to a node is its own business, and so is an input that this host does not know.
    """
    graph, found = Graph.named(name), []
    for node in sorted(set(graph) | set(prompt)):
        if node not in graph or node not in prompt:
            found.append(f"node {node} is only in {'the graph' if node in graph else 'the page'}")
            continue
        kind = graph[node]["class_type"]
        if prompt[node]["class_type"] != kind:
            found.append(f"node {node} is a {prompt[node]['class_type']}, not a {kind}")
            continue
        sections = known[kind]["input"]
        inputs = sections.get("required", {}) | sections.get("optional", {})
        for key, value in graph[node]["inputs"].items():
            seen = prompt[node]["inputs"].get(key)
            if key in inputs and seen != value:
                found.append(f"{kind}.{key} is {seen!r}, not {value!r}")
    return found


def write(name: str, workflow: dict) -> None:
    """A workflow as the frontend gave it, the same in every export; who opens it sets the zoom."""
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"univid/{name}"))
    workflow.get("extra", {}).pop("ds", None)
    text = json.dumps(workflow, indent=1, ensure_ascii=False)
    (WORKFLOWS / f"{name}.json").write_text(text + "\n")

"""The workflows as files: what a user sees of one before anything runs. tests/host opens and runs them."""

import json
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[1] / "workflows").glob("*.json"))
SHIPPED = {file.name for file in (Path(__file__).parents[1] / "univid/assets/loras").iterdir()}
GREEN, RED = ("#232", "#353"), ("#322", "#533")  # of prompts in the host's own templates


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def workflow(request):
    return json.loads(request.param.read_text("utf-8"))


def test_there_is_one_for_every_graph():
    graphs = Path(__file__).parent / "host/graphs"
    assert [file.stem for file in FILES] == sorted(file.stem for file in graphs.glob("*.json"))


def test_every_file_that_must_be_downloaded_has_its_link(workflow):
    """The interface offers the download of what `properties.models` names and the node's widgets say."""
    for node in workflow["nodes"]:
        values = [v for v in node.get("widgets_values") or () if isinstance(v, str)]
        files = {v for v in values if v.endswith((".safetensors", ".ckpt", ".pth"))} - SHIPPED
        links = {link["name"]: link for link in node["properties"].get("models", ())}
        assert set(links) == files
        assert all(link["url"].startswith("https://") and link["directory"] for link in links.values())


def test_prompts_are_green_and_red_and_groups_have_colours(workflow):
    colours = {node["title"] if "title" in node else node["type"]: (node.get("color"), node.get("bgcolor"))
               for node in workflow["nodes"]}  # fmt: skip
    assert colours["UniVidEncodeDualPrompt"] == GREEN and colours["Negative prompt"] == RED
    groups = workflow["groups"]
    assert len(groups) >= 4 and all(group["title"] for group in groups)
    assert len({group["color"] for group in groups}) == len(groups)


def test_every_node_but_the_note_lies_in_one_group(workflow):
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        inside = [
            group
            for group in workflow["groups"]
            if group["bounding"][0] <= x and x + width <= group["bounding"][0] + group["bounding"][2]
            and group["bounding"][1] <= y and y + height <= group["bounding"][1] + group["bounding"][3]
        ]  # fmt: skip
        assert len(inside) == (node["type"] != "MarkdownNote"), node["type"]


def test_the_note_is_words_without_code(workflow):
    (note,) = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    (text,) = note["widgets_values"]
    assert text.startswith("## ") and "`" not in text and 100 < len(text) < 1200

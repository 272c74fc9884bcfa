"""Help pages: one for every node, with the inputs, outputs and error sentences that the code really has.

The schemas are read off the source, because importing a node needs the host.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "nodes/web/docs"
SOURCES = {path: ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.glob("nodes/*.py"))}
SHARED = {  # functions that give a list of inputs, and where they stand
    "guidance_inputs": SOURCES[ROOT / "nodes/guide.py"],
    "sampling_inputs": SOURCES[ROOT / "nodes/sample.py"],
    "clip_inputs": SOURCES[ROOT / "nodes/cascade.py"],
    "window_inputs": SOURCES[ROOT / "nodes/cascade.py"],
}


def calls(code, name):
    """The calls of `name(...)` or `module.name(...)` in source order."""
    found = [n for n in ast.walk(code) if isinstance(n, ast.Call) and ast.unparse(n.func).endswith(name)]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def keyword(call, name):
    return next((k.value for k in call.keywords if k.arg == name), None)


def input_names(code, listed):
    """The names in a list of inputs: of the host, of a helper, of a comprehension, of SHARED functions."""
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in code.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    }
    names = []
    for item in listed.elts:
        value = item.value if isinstance(item, ast.Starred) else item
        source = value.generators[0].iter if isinstance(value, ast.ListComp) else None
        if isinstance(source, ast.Tuple):  # of the names themselves
            names += ast.literal_eval(source)
        elif source:  # f"level_{factor}", by the keys of a table
            (table,) = (constants[n.id] for n in ast.walk(source) if getattr(n, "id", "") in constants)
            names += [f"{value.elt.args[0].values[0].value}{key}" for key in table]
        elif (helper := ast.unparse(value.func)) in SHARED:
            home = SHARED[helper]
            shared = next(n for n in home.body if getattr(n, "name", "") == helper)
            names += input_names(home, shared.body[-1].value)
        else:
            names.append(ast.literal_eval(value.args[0]))
    return names


def output_name(call):
    """The display name; where it is not given, the host shows the type: io.ClipVision is CLIP_VISION."""
    if name := keyword(call, "display_name"):
        return ast.literal_eval(name)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", call.func.value.attr).upper()


def schemas():
    """Of every node, by its id: the names of its inputs and of its outputs."""
    found = {}
    for code in SOURCES.values():
        for schema in calls(code, "io.Schema"):
            found[ast.literal_eval(keyword(schema, "node_id"))] = (
                input_names(code, keyword(schema, "inputs")),
                [output_name(call) for call in keyword(schema, "outputs").elts],
            )
    return found


def table(page, title):
    """The first column of the table under a title, without its head."""
    section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [row.split("|")[1].strip() for row in rows]


def sentences():
    """Every text of the code that may be a message, as a pattern: what is filled in matches anything."""
    for path in [*ROOT.glob("nodes/**/*.py"), *ROOT.glob("univid/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            words = [p.value if isinstance(getattr(p, "value", None), str) else None for p in parts]
            if sum(len(word or "") for word in words) >= 20:
                yield "".join(".*?" if word is None else re.escape(word) for word in words)


SCHEMAS = schemas()


def read(node):
    return (PAGES / f"{node}.md").read_text("utf-8")


def test_the_schemas_are_read_whole():
    declared = {id for code in SOURCES for id in re.findall(r'node_id="(\w+)"', code.read_text("utf-8"))}
    assert set(SCHEMAS) == declared and len(declared) == 19
    assert SCHEMAS["UniVidPSTOptions"] == (["model", "level_1", "level_2", "level_4", "level_8"], ["model"])
    assert SCHEMAS["UniVidUpscale"][0][4:9] == ["images", "width", "height", "tile", "mode"]
    assert SCHEMAS["UniVidLoad"][1] == ["MODEL", "CLIP", "CLIP_VISION", "VAE"]
    assert SCHEMAS["UniVidGuider"][0][3:] == [
        "mode", "guidance_scale", "text_guidance", "image_guidance", "rescale",
    ]  # fmt: skip


def test_there_is_a_page_for_every_node_and_no_other():
    assert {path.stem for path in PAGES.iterdir()} == set(SCHEMAS)


@pytest.mark.parametrize("node", SCHEMAS)
def test_a_page_lists_exactly_the_sockets(node):
    page, (inputs, outputs) = read(node), SCHEMAS[node]
    assert table(page, "Inputs") == [f"`{name}`" for name in inputs]
    assert table(page, "Outputs") == [f"`{name}`" for name in outputs]


@pytest.mark.parametrize("node", SCHEMAS)
def test_a_page_is_short_and_names_its_source(node):
    page = read(node)
    most = 125 if node == "UniVidPSTSampler" else 85  # it has the table of patches too
    assert 30 <= len(page.splitlines()) <= most
    assert "arxiv.org/abs/2603.13739" in page


def test_the_messages_are_the_code_s():
    known = list(sentences())
    unknown = [
        f"{node}: {message}"
        for node in SCHEMAS
        for message in table(read(node), "Messages")
        if not any(re.fullmatch(pattern, message) for pattern in known)
    ]
    assert not unknown, "\n".join(unknown)
    assert not any(re.fullmatch(pattern, "width must be a multiple of 8, and more.") for pattern in known)

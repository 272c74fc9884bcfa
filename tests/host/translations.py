"""The names and tooltips of the pack's nodes in other languages, as the host reads them.

`make locales` writes locales/en/nodeDefs.json anew from the schemas on the newest host, and says what of
the other languages has to be redone: a text that is missing, that no node has any more, or whose English
changed since it was translated (translated.json keeps a fingerprint of that English). Redo them by hand in
`locales/LANGUAGE/nodeDefs.json`, then `make locales DONE=LANGUAGE` notes that they are up to date.
"""

import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCALES = ROOT / "locales"
TRANSLATED = Path(__file__).with_name("translated.json")  # language -> {key: fingerprint of the English}
LANGUAGES = ("zh",)
MARKUP = re.compile(r"[{}@|]")  # the interface reads these as placeholders, links and plurals


def node_defs(infos: dict) -> dict:
    """What nodeDefs.json says in English, of nodes as the host's /object_info tells them."""
    return {node: _node(info) for node, info in sorted(infos.items())}


def _node(info: dict) -> dict:
    inputs = {}
    for section in ("required", "optional"):
        for key, (_, options) in info["input"].get(section, {}).items():
            inputs[key] = {"name": options.get("display_name") or key, "tooltip": options.get("tooltip", "")}
    outputs = {}
    for number, (kind, name, tooltip) in enumerate(
        zip(info["output"], info["output_name"], info["output_tooltips"], strict=True)
    ):
        named = {} if name == kind else {"name": name}  # else the interface has a word for the type
        outputs[str(number)] = named | {"tooltip": tooltip}
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": outputs,
    }


def read(language: str) -> dict:
    """nodeDefs.json of a language."""
    return json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))


def texts(defs, key: str = "") -> dict[str, str]:
    """Every text by its path, such as UniVidLoad.inputs.dtype.tooltip."""
    if isinstance(defs, str):
        return {key: defs}
    found = {}
    for name, part in defs.items():
        found |= texts(part, f"{key}.{name}" if key else name)
    return found


def to_redo(language: str, english: dict[str, str], theirs: dict[str, str], made_of: dict) -> list[str]:
    """What is wrong in a language, one line a key; made_of: key -> fingerprint of the English translated."""
    lines = [f"{language}: {key} is missing: {english[key]}" for key in english.keys() - theirs.keys()]
    lines += [f"{language}: {key} is of no node any more" for key in theirs.keys() - english.keys()]
    for key in english.keys() & theirs.keys():
        if made_of.get(key) != fingerprint(english[key]):
            lines.append(f"{language}: {key} was translated from another text than: {english[key]}")
        if MARKUP.search(theirs[key]):
            lines.append(f"{language}: {key} holds one of {{ }} @ |, which the interface reads as markup")
    return sorted(lines)


def all_to_redo() -> list[str]:
    """`to_redo` for every language, as the files are."""
    english, made_of = texts(read("en")), json.loads(TRANSLATED.read_text("utf-8"))
    return [line for name in LANGUAGES for line in to_redo(name, english, texts(read(name)), made_of[name])]


def fingerprint(text: str) -> str:
    """Of a text, short."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def write(path: Path, content: dict) -> None:
    """As JSON that people edit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def main(done: list[str]) -> None:
    """English from the schemas; `done`: languages whose texts belong to the English of now."""
    spec = importlib.util.spec_from_file_location("conftest", Path(__file__).with_name("conftest.py"))
    spec.loader.exec_module(importlib.util.module_from_spec(spec))  # host and pack become importable
    from univid_pack.nodes.extension import NODES

    defs = node_defs({node.define_schema().node_id: node.GET_NODE_INFO_V1() for node in NODES})
    write(LOCALES / "en" / "nodeDefs.json", defs)
    made_of = json.loads(TRANSLATED.read_text("utf-8")) if TRANSLATED.exists() else {}
    for language in done:
        made_of[language] = {key: fingerprint(text) for key, text in texts(defs).items()}
    write(TRANSLATED, made_of)
    print("\n".join(all_to_redo()) or "every language is complete")


if __name__ == "__main__":
    main(sys.argv[1:])

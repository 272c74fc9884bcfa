"""Every module, class, function and constant of the host that the pack's source names exists on this host."""

import ast
import importlib
import inspect

import pytest
from host_tests.harness import ROOT

OF_THE_HOST = {"comfy", "comfy_api", "comfy_execution", "comfyui_version", "folder_paths", "latent_preview"}
SOURCES = [ROOT / "__init__.py", *sorted(ROOT.glob("nodes/**/*.py"))]


def symbols(text: str) -> set[str]:
    """Dotted names of the host's that a source imports, or reaches from what it imports."""
    code, names, found = ast.parse(text), {}, set()  # names: local name -> dotted name
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.add(alias.name)
                names[alias.asname or alias.name.split(".")[0]] = alias.asname and alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    names = {name: dotted or name for name, dotted in names.items()}
    found |= set(names.values())
    for node in ast.walk(code):
        parts, root = [], node
        while isinstance(root, ast.Attribute):
            parts, root = [root.attr, *parts], root.value
        if parts and isinstance(root, ast.Name) and root.id in names:
            found.add(".".join([names[root.id], *parts]))
    return {name for name in found if name.split(".")[0] in OF_THE_HOST}


def exists(symbol: str) -> bool:
    """Whether it is there; what lies behind an instance is not asked, which has it from its constructor."""
    first, *rest = symbol.split(".")
    here = importlib.import_module(first)
    for number, part in enumerate(rest, start=1):
        if inspect.ismodule(here) and not hasattr(here, part):
            try:
                importlib.import_module(".".join([first, *rest[:number]]))
            except ImportError:
                return False
        elif not (inspect.ismodule(here) or inspect.isclass(here)):
            return True
        if not hasattr(here, part):
            return False
        here = getattr(here, part)
    return True


def test_the_host_has_what_the_pack_names(host):
    named = {symbol: path for path in SOURCES for symbol in symbols(path.read_text("utf-8"))}
    print(f"{len(named)} symbols of {host}")
    assert len(named) > 100
    assert not [f"{path.name}: {symbol}" for symbol, path in named.items() if not exists(symbol)]


@pytest.mark.parametrize(
    "source, symbol",
    [
        ("import comfy.nothing", "comfy.nothing"),
        ("import comfy.sd\ncomfy.sd.VAE.nothing(1)", "comfy.sd.VAE.nothing"),
        ("def f():\n    from comfy_api.latest import nothing", "comfy_api.latest.nothing"),
        ("import comfy.model_management as m\nx = m.nothing", "comfy.model_management.nothing"),
        ("from comfy_api.latest import io as i\ni.Nothing.Input()", "comfy_api.latest.io.Nothing"),
    ],
)
def test_a_symbol_that_is_gone_is_seen(source, symbol):
    assert symbol in symbols(source) and not exists(symbol)

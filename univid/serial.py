"""Config dataclasses to JSON and back, strictly: every field is said, none is unknown, types fit."""

import dataclasses
import json
import math
import types
import typing

from .messages import shown
from .versions import FORMAT_VERSION, upgraded

# More than any network has, and little enough to be looked at.
LARGEST = 2**31 - 1
LONGEST = 200
MOST_ITEMS = 64


def to_json(config) -> str:
    """Any config dataclass as JSON; `from_json` gives back an equal object."""
    return json.dumps(dataclasses.asdict(config), indent=None, sort_keys=True)


def from_json(cls, text: str, version: int = FORMAT_VERSION):
    """Read a config of dataclass `cls` strictly, as the given version of the format wrote it.

    Raises:
        ValueError: not JSON, a field unknown, missing or of another type; the sentence names the field.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also of numbers with thousands of digits
        raise ValueError(f"expected a {cls.__name__} as JSON, got text that does not parse.") from error
    return _build(cls, upgraded(cls.__name__, data, version), cls.__name__)


def _build(kind, value, where: str):
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        present = [k for k in typing.get_args(kind) if k is not types.NoneType]
        return None if value is None else _build(present[0], value, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, got {_short(value)}.")
        hints = typing.get_type_hints(kind)
        if unknown := sorted(value.keys() - hints.keys()):
            raise ValueError(
                f"{where} has unknown fields {shown(', '.join(unknown), 80)}; this version knows "
                f"{', '.join(sorted(hints))}."
            )
        if missing := sorted(hints.keys() - value.keys()):
            raise ValueError(f"{where} lacks the fields {', '.join(missing)}.")
        return kind(**{name: _build(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {_short(value)}.")
        if len(value) > MOST_ITEMS:
            raise ValueError(f"{where} must have at most {MOST_ITEMS} entries, got {len(value):,}.")
        return tuple(_build(typing.get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{where} must be {_WORDS[kind]}, got {_short(value)}.")
    if kind is int and value < 1:
        raise ValueError(f"{where} must be at least 1, got {_short(value)}.")
    if kind is int and value > LARGEST:
        raise ValueError(f"{where} must be at most {LARGEST:,}, got {_short(value)}.")
    if kind is str and len(value) > LONGEST:
        raise ValueError(f"{where} must have at most {LONGEST} characters, got {len(value):,}.")
    return value


_WORDS = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}


def _short(value) -> str:
    """A value as a message may show it: a hostile file must not fill the screen, nor be walked too deep."""
    kinds = {dict: "an object", list: "a list", type(None): "null"}
    return kinds.get(type(value)) or shown(repr(value), 80)

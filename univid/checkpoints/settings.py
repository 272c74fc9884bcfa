"""A config that lies beside foreign weights, each entry checked when it is asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files.regular import read_json
from ..messages import shown

LEVELS = 16
WIDEST = 2**16  # channels, tokens or heads; ten times what any relative has


class Settings:
    """Entries by name, none for a file that need not be there. Raises ValueError as `read_json` does.

    The text of every error below continues a sentence that starts with the folder's name.
    """

    def __init__(self, path: Path | None):
        self.file = "" if path is None else f"{path.parent.name}/{path.name}"
        self.values: Mapping[str, Any] = {} if path is None else read_json(path)

    def whole(self, name: str, most: int = WIDEST, default: int | None = None) -> int:
        """A whole number from 1 to `most`."""
        value = self._get(name, default)
        if (number := _whole(value, most)) is None:
            raise self.wrong(name, f"a whole number from 1 to {most:,}")
        return number

    def wholes(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers, one a level of the network."""
        value = self._get(name)
        numbers = [_whole(item, WIDEST) for item in value] if isinstance(value, list) else []
        if not 1 <= len(numbers) <= LEVELS or None in numbers:
            raise self.wrong(name, f"1 to {LEVELS} whole numbers from 1 to {WIDEST:,}")
        return tuple(number for number in numbers if number is not None)

    def number(self, name: str, low: float, high: float, default: float) -> float:
        """A number above `low` and below `high`."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
            raise self.wrong(name, f"a number above {low:g} and below {high:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str | None:
        """One of some words; None where there is neither an entry nor a default."""
        value = self.values.get(name, default)
        if value is not None and value not in list(choices):
            raise self.wrong(name, " or ".join(choices))
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of words."""
        value = self._get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of words")
        return tuple(value)

    def wrong(self, name: str, expected: str) -> ValueError:
        """What to raise about an entry."""
        return ValueError(
            f"has {name} ({_described(self.values[name])}) in {self.file}, expected {expected}; download it "
            "again."
        )

    def _get(self, name: str, default: Any = None) -> Any:
        if name not in self.values and default is not None:
            return default
        if name not in self.values:
            raise ValueError(f"has no {name} in {self.file}; download it again.")
        return self.values[name]


def _described(value: Any) -> str:
    kinds = {list: "a list", dict: "an object", type(None): "null"}
    return kinds.get(type(value)) or shown(repr(value), 60)


def _whole(value: Any, most: int) -> int | None:
    """The whole number that a value is, also where it is written as 1000.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 1 <= value <= most else None

"""Names that stand for many, as a shell makes them of braces: shard-{0000..0999}.tar, {a,b{1..3}}.tar."""

import math
import os
import re
from collections.abc import Iterator
from itertools import product

from univid.messages import shown

MOST = 1_000_000  # names of one pattern; LAION-5B has 232,000 shards
DEEPEST = 20  # braces within braces
NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
LETTERS = re.compile(r"([a-z]\.\.[a-z]|[A-Z]\.\.[A-Z])(?:\.\.-?(\d+))?")
DIGITS = 18  # of a number; more than anybody means


def expand(pattern: str) -> list[str]:
    """All names that a pattern stands for, in order; itself where it has no braces.

    A brace that is part of a name is written \\{ (not on Windows, where \\ parts folders).

    Raises:
        ValueError: braces that do not match, or more than MOST names.
    """
    try:
        names = _sequence(pattern, 0)
        if (count := names.count()) > MOST:
            raise _TooMany(f"{count:,}" if count < 10**15 else f"about 10^{_exponent(count)}")
    except _TooMany as error:
        raise ValueError(
            f"{shown(pattern)} stands for {error} names, more than {MOST:,}; name fewer, or their folder."
        ) from error
    return list(names)


class _TooMany(Exception):
    """More names than anybody means; the text says how many."""


class _Range:
    """Numbers or letters, each of them a name."""

    def __init__(self, numbers: range, width: int = 0, letters: bool = False):
        self.numbers, self.width, self.letters = numbers, width, letters

    def count(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[str]:
        for number in self.numbers:
            yield chr(number) if self.letters else f"{number:0{self.width}d}"


class _Either:
    """Names of one part or of another."""

    def __init__(self, parts: list):
        self.parts = parts

    def count(self) -> int:
        return sum(part.count() for part in self.parts)

    def __iter__(self) -> Iterator[str]:
        for part in self.parts:
            yield from part


class _Chain:
    """Names that consist of one of each part, side by side."""

    def __init__(self, parts: list):
        self.parts = parts

    def count(self) -> int:
        return math.prod(1 if isinstance(part, str) else part.count() for part in self.parts)

    def __iter__(self) -> Iterator[str]:
        parts = ([part] if isinstance(part, str) else part for part in self.parts)
        return map("".join, product(*parts))


def _sequence(text: str, depth: int) -> _Chain:
    if depth > DEEPEST:
        raise ValueError(f"expected at most {DEEPEST} braces within each other; write the names out.")
    parts, begin = [], 0
    for start, end in _outer(text):
        parts += [_plain(text[begin:start]), _group(text[start + 1 : end], depth)]
        begin = end + 1
    return _Chain([*parts, _plain(text[begin:])])


def _group(inside: str, depth: int):
    """What stands within a pair of braces."""
    if found := NUMBERS.fullmatch(inside):
        return _numbers(*found.groups())
    if found := LETTERS.fullmatch(inside):
        (first, last), step = found[1].split(".."), _whole(found[2] or "1") or 1
        return _Range(_range(ord(first), ord(last), step), letters=True)
    pieces = _split(inside)
    if len(pieces) == 1:  # {c}, which stands for itself
        return _Chain(["{", _sequence(inside, depth + 1), "}"])
    return _Either([_sequence(piece, depth + 1) for piece in pieces])


def _numbers(first: str, last: str, step: str | None) -> _Range:
    padded = any(re.match(r"-?0\d", number) for number in (first, last))
    numbers = _range(_whole(first), _whole(last), _whole(step or "1") or 1)
    return _Range(numbers, max(len(first), len(last)) if padded else 0)


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise _TooMany(f"up to 10^{len(text.lstrip('-'))}")
    return int(text)


def _range(first: int, last: int, step: int) -> range:
    return range(first, last + 1, step) if first <= last else range(first, last - 1, -step)


def _outer(text: str) -> list[tuple[int, int]]:
    """Where the outermost braces open and close."""
    pairs, depth, start = [], 0, 0
    for place, character in _marks(text):
        if character == "{":
            start = start if depth else place
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                pairs.append((start, place))
        if depth < 0:
            break
    if depth:
        raise ValueError(f"expected as many {{ as }} in {shown(text)}, got other numbers; correct the path.")
    return pairs


def _split(text: str) -> list[str]:
    """The pieces between the commas that stand in no further braces."""
    pieces, depth, begin = [], 0, 0
    for place, character in _marks(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and not depth:
            pieces.append(text[begin:place])
            begin = place + 1
    return [*pieces, text[begin:]]


def _marks(text: str) -> Iterator[tuple[int, str]]:
    """Braces and commas that have a meaning, and where they are."""
    place = 0
    while place < len(text):
        if text[place] == "\\" and os.sep == "/":
            place += 1
        elif text[place] in "{},":
            yield place, text[place]
        place += 1


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text) if os.sep == "/" else text


def _exponent(count: int) -> int:
    """Of ten; Python does not print a number of thousands of digits."""
    return int((count.bit_length() - 1) * math.log10(2))

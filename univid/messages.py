"""Text of users and files, made safe to show: a terminal obeys some characters, nobody reads a megabyte."""

import logging
import sys
import unicodedata

LIMIT = 400  # characters of a whole message
NAME_LIMIT = 120  # of a name inside one
GAP = " … "


def shown(text: object, most: int = NAME_LIMIT) -> str:
    """`text` on one line of at most `most` characters, with what is not printable as escapes (`\\x1b`).

    What is too long loses its middle, because names differ at their ends.
    """
    # Four times as much is looked at, so that a text of a gigabyte costs no more than one that is shown.
    return _cut("".join(map(_escaped, _cut(str(text), 4 * most))), most)


def sentence(text: object, most: int = LIMIT) -> str:
    """A whole message on one line, as `shown`; line breaks inside it become spaces."""
    return shown(" ".join(str(text).split()), most)


def clean(error: BaseException | None) -> None:
    """Make the texts of an error, and of those that led to it, a `sentence` each, in place."""
    while error is not None:
        error.args = tuple(sentence(part) if isinstance(part, str) else part for part in error.args)
        error = error.__cause__ or error.__context__


class Lines(logging.Formatter):
    """Formats a log record as one `sentence`."""

    def format(self, record: logging.LogRecord) -> str:
        return sentence(super().format(record))


def show_safely(form: str) -> None:
    """Let no line of a program do more to a terminal than stand there, and no name be one it cannot show.

    form: of log lines, as logging takes it.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(form))
    logging.basicConfig(handlers=[handler])
    if hasattr(sys.stdout, "reconfigure"):  # file names have letters that Windows' encodings lack
        sys.stdout.reconfigure(errors="backslashreplace")


def _escaped(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":  # spaces of other scripts
        return character
    return character.encode("unicode_escape").decode()


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    end = (most - len(GAP)) // 2
    return text[: most - len(GAP) - end] + GAP + text[len(text) - end :]

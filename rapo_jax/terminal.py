"""Messages on a terminal are wrapped at its width; in files and pipes they stay one line each."""

import os
import re
import textwrap
from typing import TextIO

FEWEST_COLUMNS = 30  # below which wrapping helps nobody
# What is copied as a whole: a command with its arguments, and a setting whose value is quoted.
COMMAND = re.compile(
    r"\brapo (?:relabel|train|export|generate|score|evaluate|report|plan|keys)(?: (?:--?[\w-]+|[A-Z_]{2,}|\S*[=/.]\S*\w|\[\S+\]))*"
    r"|[\w.-]+='[^'\n]*'"
)
KEPT_SPACE = "\0"


def width_of(stream: TextIO) -> int | None:
    """The columns of the terminal behind a stream; None where there is no terminal."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    except (OSError, ValueError, AttributeError):
        return None
    return columns if columns >= FEWEST_COLUMNS else None


def for_stream(text: str, stream: TextIO, *, hang: int = 0) -> str:
    """A message as a stream shows it; `hang` is the width of what its further lines stand under."""
    width = width_of(stream)
    return text if width is None else wrapped(text, width, hang=hang)


def wrapped(text: str, width: int, *, hang: int = 0) -> str:
    """Every line of a text in lines of at most `width` columns. Words, among them paths, and commands are not broken.

    >>> print(wrapped("rapo train: no data; run rapo train CONFIG data.path=FILE again.", 34, hang=12))
    rapo train: no data; run
                rapo train CONFIG data.path=FILE
                again.
    """
    return "\n".join(
        _wrapped_line(line, width, hang if number == 0 else 0) for number, line in enumerate(text.split("\n"))
    )


def _wrapped_line(line: str, width: int, hang: int) -> str:
    if len(line) < width:
        return line
    begin = line[:hang]
    indent = " " * (hang or len(line) - len(line.lstrip()) + 2)
    kept = begin + COMMAND.sub(lambda found: found[0].replace(" ", KEPT_SPACE), line[hang:])
    lines = textwrap.wrap(
        kept,
        width - 1,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
    return "\n".join(lines).replace(KEPT_SPACE, " ")

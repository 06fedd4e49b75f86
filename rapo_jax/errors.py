"""What a user got wrong (UserError) or stopped (Interrupted), and other processes that did not come (Lost).

Any other exception is a bug and shows its traceback.
"""

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

SECRETS = (  # a password or token: before the host of an address, in its query, and as Hugging Face writes them
    (re.compile(r"(?<=://)[^/\s@]+@"), "***@"),
    (re.compile(r"(?i)(?<=[?&])([\w-]*(?:token|key|secret|signature|password|sig)=)[^&\s'\"]+"), r"\1***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
)

MOST_CHARACTERS = 3000  # of a message


class UserError(ValueError):
    """A file, column, score or option that the user supplied is wrong.

    The message gives the fact with its values, the constraint, and the option that changes it. The command line prints the
    message without a traceback and exits with code 2. What a message quotes may be anything: its middle is left out where
    it is very long, and characters that a terminal would obey are written as escapes.
    """

    def __init__(self, message: str):
        if len(message) > MOST_CHARACTERS:
            half = MOST_CHARACTERS // 2
            message = f"{message[:half]} ... {message[-half:]}"
        super().__init__("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in message))


class Interrupted(Exception):
    """A signal stopped the work after everything done so far was saved; the same command continues.

    The message says what was saved. The command line prints it and exits with code 75.
    """


class Lost(Exception):
    """Other processes of a pod did not come. The message says which; the command line prints it and exits with code 76."""


def nearest(name: str, known: list[str]) -> str:
    """A hint for a misspelt name: the nearest known name, or all known names if none is near."""
    close = near(name, known)
    return f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(known))}"


def near(name: str, known: list[str]) -> str | None:
    """The known name that a misspelt or shortened one is nearest to, if any is near."""
    import difflib

    completions = [candidate for candidate in known if name and candidate.startswith(name)]
    return next(iter(completions or difflib.get_close_matches(name, known, n=1, cutoff=0.5)), None)


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun, in the plural where there is not one of it; `many` is one that does not end in s.

    >>> counted(1, "row"), counted(1200, "row"), counted(1, "row holds", "rows hold")
    ('1 row', '1,200 rows', '1 row holds')
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def axes_in_words(sizes: Mapping[str, Any]) -> str:
    """The axes of a mesh with their sizes; the context axis only where it is in use.

    >>> axes_in_words({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
    '1 data x 4 fsdp x 2 tensor'
    """
    return " x ".join(f"{size} {axis}" for axis, size in sizes.items() if (axis, size) != ("context", 1))


def masked(text: str) -> str:
    """A text for the screen or for publication, without the passwords and tokens of its addresses.

    >>> masked("https://me:secret@host/rows.jsonl?token=abc&rows=3")
    'https://***@host/rows.jsonl?token=***&rows=3'
    """
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


def first_line(error: BaseException) -> str:
    """What an error says, of at most 300 characters; its type where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:300]


MOST_PARTS, MOST_LEVELS = 6, 4  # of a value that a message shows


def shown(value: Any, most: int = 60) -> str:
    """A value as messages show it: its repr, of at most so many characters, however long, deep or circular the value is.

    >>> shown({"a": ["x"] * 10**6}, 30)
    "{'a': ['x', 'x', 'x', 'x', ..."
    """
    text = _brief(value, MOST_LEVELS)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _brief(value: Any, levels: int) -> str:
    if isinstance(value, (dict, list, tuple)) and value and levels == 0:
        return "..."
    if isinstance(value, dict):
        parts = [f"{_brief(key, 0)}: {_brief(each, levels - 1)}" for key, each in islice(value.items(), MOST_PARTS)]
        return f"{{{', '.join(parts)}{', ...' * (len(value) > MOST_PARTS)}}}"
    if isinstance(value, (list, tuple)):
        parts = ", ".join(_brief(each, levels - 1) for each in value[:MOST_PARTS]) + ", ..." * (len(value) > MOST_PARTS)
        one = "," * (len(value) == 1)
        return f"[{parts}]" if isinstance(value, list) else f"({parts}{one})"
    if isinstance(value, (str, bytes)):
        return repr(value[:200])
    try:
        return repr(value)
    except ValueError:  # Python does not print integers of thousands of digits
        return "an integer of thousands of digits"

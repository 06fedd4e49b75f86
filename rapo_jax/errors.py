"""What a user got wrong (UserError) or stopped (Interrupted), and other processes that did not come (Lost). Any other exception is a bug and shows its traceback."""

import re

SECRETS = (  # a password or token: before the host of an address, in its query, and as Hugging Face writes them
    (re.compile(r"(?<=://)[^/\s@]+@"), "***@"),
    (re.compile(r"(?i)(?<=[?&])([\w-]*(?:token|key|secret|signature|password|sig)=)[^&\s'\"]+"), r"\1***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
)


class UserError(ValueError):
    """A file, column, score or option that the user supplied is wrong.

    The message gives the fact with its values, the constraint, and the option that changes it. The command line prints the
    message without a traceback and exits with code 2.
    """


class Interrupted(Exception):
    """A signal stopped the work after everything done so far was saved; the same command continues.

    The message says what was saved. The command line prints it and exits with code 75.
    """


class Lost(Exception):
    """Other processes of a pod did not come. The message says which; the command line prints it and exits with code 76."""


def nearest(name: str, known: list[str]) -> str:
    """A hint for a misspelt name: the nearest known name, or all known names if none is near."""
    import difflib

    completions = [candidate for candidate in known if name and candidate.startswith(name)]
    close = completions[:1] or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def masked(text: str) -> str:
    """A text for the screen or for publication, without the passwords and tokens of its addresses.

    >>> masked("https://me:secret@host/rows.jsonl?token=abc&rows=3")
    'https://***@host/rows.jsonl?token=***&rows=3'
    """
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text

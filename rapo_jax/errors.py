"""What a user can get wrong, and what a user can stop. Everything else that is raised is our own mistake and deserves
its traceback."""


class UserError(ValueError):
    """Something outside this package is wrong: a file, a column, a score, an option.

    The message gives the fact with its values, the constraint, and the option that changes it. The command line prints
    it as one line and exits with code 2.
    """


class Interrupted(Exception):
    """A signal stopped the work, and what was done is saved; the same command goes on from there.

    The message says what is saved. The command line prints it and exits with code 75.
    """


def nearest(name: str, known: list[str]) -> str:
    """A hint for a misspelt name: the nearest known one if there is any, else all of them."""
    import difflib

    begin_so = [candidate for candidate in known if name and candidate.startswith(name)]
    close = begin_so[:1] or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"

"""How a server is reached, by options of the command line. Needs no package, so that options are read without one."""

from collections.abc import Mapping
from dataclasses import dataclass

from rapo_jax.errors import UserError, counted


@dataclass(frozen=True)
class Access:
    """A server's address and key, which is never printed, and how it is asked.

    `concurrency` requests are on their way at once, and each has `timeout` seconds. A server that was there and is away is
    waited for, up to `patience` seconds. `option` is the name of the address on the command line; those of the others begin
    with `prefix`.
    """

    url: str
    model: str = ""
    key: str = ""
    key_from: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 120.0
    patience: float = 0.0
    option: str = "--judge-url"
    prefix: str = "--judge"

    @property
    def said(self) -> str:
        """The address as messages name it."""
        return f"{self.option}={self.url}"

    def told(self, text: str) -> str:
        """What a server or a library says, as errors quote it: without the key, and only then cut to 200 characters."""
        return " ".join(without_key(text, self.key).split())[:200].rstrip(".")


def without_key(text: str, key: str) -> str:
    """A text without the key, which servers and libraries quote."""
    return text.replace(key, "***") if key else text


def usable_key(key: str, *, key_from: str, option: str) -> str:
    """The key without white space around it, such as the line feed of a file. Raises UserError for what no header can hold.
    `option` names another variable than `key_from`."""
    key = key.strip()
    wrong = sum(not "!" <= character <= "~" for character in key)
    if wrong:
        raise UserError(
            f"the key in {key_from} has {counted(wrong, 'character')} that no key has (spaces, line feeds or letters beyond "
            f"ASCII); correct it there, or name another variable with {option}."
        )
    return key


def key_of_environment(environment: Mapping[str, str], name: str | None, *, default: str, option: str) -> str:
    """The key in the variable that the user names, or else in the default one, where it may be missing. Raises UserError
    for a variable that is named and not set."""
    if name and not environment.get(name, "").strip():
        raise UserError(f"{option}={name}: this environment variable is not set; put the server's key in it.")
    return environment.get(name or default, "")

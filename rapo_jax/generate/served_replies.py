"""A server's replies as typed values: one sample, and what the server says it read."""

from dataclasses import dataclass
from typing import Any, Literal

from rapo_jax.errors import shown
from rapo_jax.servers.server import Temporary, first_choice


@dataclass(frozen=True)
class ServedAnswer:
    """`tokens` of the answer and of the `prompt` as the server read it are None where it does not tell them, as are the
    numbers of tokens that it read and wrote. The last token may be one that stopped it."""

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: list[int] | None = None
    prompt: list[int] | None = None
    num_read: int | None = None
    num_written: int | None = None


def answer_of(body: bytes, *, vocabulary: int, most: int) -> ServedAnswer:
    """The answer in a reply of /completions or /chat/completions, of at most so many tokens. Raises Temporary for one that
    is none, or that the server broke off."""
    choice = first_choice(body)
    ended = choice.fields.get("finish_reason")
    if ended not in ("stop", "length"):
        raise Temporary(f"an answer that ended with {shown(ended)}", kind="broken off")
    tokens = ids_of(choice.fields.get("token_ids"), vocabulary=vocabulary, said="token_ids")
    asked = choice.fields.get("prompt_token_ids", choice.whole.get("prompt_token_ids"))
    message = choice.fields.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.fields.get("text")
    if text is None and tokens is not None:
        text = ""  # such as that of a call of tools, which the tokens hold
    if not isinstance(text, str):
        raise Temporary(f"an answer whose text is {shown(text)}")
    num_written = choice.num_written if tokens is None else len(tokens)
    if (num_written or 0) > most:
        raise Temporary(f"an answer of {num_written:,} tokens, where {most:,} were asked for")
    prompt = ids_of(asked, vocabulary=vocabulary, said="prompt_token_ids")
    return ServedAnswer(text, ended, tokens, prompt, choice.num_read, num_written)


def ids_of(value: Any, *, vocabulary: int, said: str) -> list[int] | None:
    """Token ids, or None where there are none. Raises Temporary for what is none."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(each) is int and 0 <= each < vocabulary for each in value):
        raise Temporary(f"an answer whose {said} are {shown(value)}, not ids of a vocabulary of {vocabulary:,}")
    return value

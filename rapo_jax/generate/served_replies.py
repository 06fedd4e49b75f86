"""A server's replies as typed values: one sample, and what the server says it read."""

from dataclasses import dataclass
from typing import Any, Literal

from rapo_jax.errors import shown
from rapo_jax.intervals import is_finite
from rapo_jax.servers.server import Choice, Refused, Temporary, first_choice


@dataclass(frozen=True)
class ServedAnswer:
    """`tokens` of the answer and of the `prompt` as the server read it are None where it does not tell them, as are the
    numbers of tokens that it read and wrote. The last token may be one that stopped it. `logps` are None where they are not
    asked for."""

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: list[int] | None = None
    prompt: list[int] | None = None
    num_read: int | None = None
    num_written: int | None = None
    logps: list[float] | None = None


def answer_of(body: bytes, *, vocabulary: int, most: int, logps: bool = False) -> ServedAnswer:
    """The answer in a reply of /completions or /chat/completions, of at most so many tokens, with their log-probabilities if
    that is asked. Raises Temporary for one that is none, or that the server broke off, and Refused without log-probabilities."""
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
    found = logps_of(choice, number=num_written) if logps else None
    return ServedAnswer(text, ended, tokens, prompt, choice.num_read, num_written, found)


def logps_of(choice: Choice, *, number: int | None) -> list[float]:
    """The log-probabilities of an answer of so many tokens, None where it does not say. Raises Refused where there are none."""
    told = choice.fields.get("logprobs")
    told = told if isinstance(told, dict) else {}
    each = told.get("content")
    found: Any = [one.get("logprob") for one in each if isinstance(one, dict)] if isinstance(each, list) else None
    found = told.get("token_logprobs") if found is None else found
    if found is None:
        raise Refused("the server gives no log-probabilities; leave out --logps")
    right = isinstance(found, list) and all(type(one) in (int, float) and is_finite(one) for one in found)
    if not right or (number is not None and len(found) != number):
        raise Temporary(f"an answer of {number} tokens whose log-probabilities are {shown(found)}")
    return [float(one) for one in found]


def ids_of(value: Any, *, vocabulary: int, said: str) -> list[int] | None:
    """Token ids, or None where there are none. Raises Temporary for what is none."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(each) is int and 0 <= each < vocabulary for each in value):
        raise Temporary(f"an answer whose {said} are {shown(value)}, not ids of a vocabulary of {vocabulary:,}")
    return value

"""A conversation through a tokenizer's chat template, or in words why there is no text."""

from collections.abc import Sequence
from typing import Any, cast

import jinja2
from transformers import PreTrainedTokenizerBase

from rapo_jax.chat.bounds import BYTES, TookTooLong
from rapo_jax.messages import Message

MOST_CHARACTERS = 2**26  # of one rendered conversation; tokenizers abort on gigabytes
LONGEST_FACT = 200  # characters of an error that are shown


class CannotRender(Exception):
    """Why a chat template gave no text for a conversation. Callers say for which row."""

    @property
    def beyond_bounds(self) -> bool:
        """Whether it took too long or too much memory, which it would take another time, too."""
        return isinstance(self.__cause__, (TookTooLong, MemoryError))


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **variables: Any) -> str:
    """The conversation as text, with the assistant's header appended unless an assistant turn is last.

    `variables` are given to the template, such as the goal for one that asks for a goal by itself. A repeated bos token at
    the start is written once. Raises CannotRender for whatever a template can do wrong; bounds on its time and memory are
    the caller's.
    """
    try:
        text = tokenizer.apply_chat_template(
            [message.as_dict() for message in messages],
            tokenize=False,
            add_generation_prompt=messages[-1].role != "assistant",
            **variables,
        )
        assert isinstance(text, str)  # a list only for a batch of conversations
        text.encode()
    except Exception as error:  # a template is a program: anything can be raised in it
        fact = " ".join(_in_words(error).split())
        raise CannotRender(fact if len(fact) <= LONGEST_FACT else f"{fact[:LONGEST_FACT]} ...") from error
    if len(text) > MOST_CHARACTERS:
        raise CannotRender(f"it writes {len(text):,} characters")
    bos = cast(str | None, tokenizer.bos_token)
    while bos and text.startswith(bos + bos):
        text = text.removeprefix(bos)
    return text


def _in_words(error: Exception) -> str:
    if isinstance(error, (jinja2.TemplateError, TookTooLong)):
        return str(error)
    if isinstance(error, MemoryError):
        return f"it needs more than {BYTES / 2**30:g} GiB of memory"
    if isinstance(error, UnicodeEncodeError):
        return "it writes half of a surrogate pair, which is not Unicode"
    return f"{type(error).__name__}: {error}"

"""Texts -> tokens, with every part that several texts share tokenized once: a response under both of its goals, a prompt with
and without a response.

A tokenizer splits a text at its added tokens first, and what stands between two of them becomes the same tokens whatever
stands around them. Some added tokens split every text wherever they are written: the fences.

    <|user|>Score: 9. Hi<|end|><|bot|>Hello<|end|>      parts  <|user|>Score: 9. Hi  <|end|>  <|bot|>Hello  <|end|>
    <|user|>Score: 8. Hi<|end|><|bot|>Hello<|end|>      of these only <|user|>Score: 8. Hi is new
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from rapo_jax.chat.templates import tokenize

Fences = re.Pattern[str]  # matches the empty text before each fence


def fences_of(tokenizer: PreTrainedTokenizerBase, written: str) -> Fences | None:
    """The fences among the tokens in `written`, a text of the chat template's; None where it has none.

    A fence is looked for before the text is normalized, within words too, takes no white space before it, changes nothing
    for a token beside it that must stand alone, and shares no character with another added token in any text.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    splits_them = getattr(backend, "encode_special_tokens", False) or getattr(tokenizer, "split_special_tokens", False)
    if backend is None or splits_them or getattr(backend.model, "dropout", None):
        return None
    added = list(backend.get_added_tokens_decoder().values())
    found = [
        token.content
        for token in added
        if token.content in written
        and not (token.normalized or token.single_word or token.lstrip)
        and not re.search(r"^[\w\s]|[\w\s]$", token.content)
        and not any(may_overlap(token.content, other.content) for other in added)
    ]
    if not found:
        return None
    fences = re.compile(f"(?={'|'.join(map(re.escape, found))})")
    return fences if tokenize_parts(tokenizer, [written], fences) == tokenize(tokenizer, [written]) else None


def may_overlap(one: str, other: str) -> bool:
    """Whether a text can hold both tokens so that they share characters; of a token with itself: without being the same place.

    >>> may_overlap("<end>", "<eos>"), may_overlap("<end>", "><"), may_overlap("<a><a>", "<a><a>")
    (False, True, True)
    """
    if one != other and (one in other or other in one):
        return True
    shorter = min(len(one), len(other))
    return any(one.endswith(other[:n]) or other.endswith(one[:n]) for n in range(1, shorter))


def tokenize_parts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], fences: Fences | None) -> list[list[int]]:
    """Token ids of texts, the same as `tokenize` gives."""
    if fences is None:
        return tokenize(tokenizer, list(texts))
    parts = [[part for part in fences.split(text) if part] for text in texts]
    different = list(dict.fromkeys(chain.from_iterable(parts)))
    ids = dict(zip(different, tokenize(tokenizer, different), strict=True)) if different else {}
    return [cast(list[int], list(chain.from_iterable(ids[part] for part in of_text))) for of_text in parts]

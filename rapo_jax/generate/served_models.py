"""Opening a server's engine: the server is there, serves the model that is meant, and has room for every prompt."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from rapo_jax.distributed import say
from rapo_jax.errors import UserError, counted
from rapo_jax.generate.engine import Question, ServerOptions
from rapo_jax.generate.served import ServedEngine
from rapo_jax.opened import OpenedTokenizer
from rapo_jax.servers.access import Access, usable_key
from rapo_jax.servers.server import Request, Server, Temporary, Unknown, client_of, opened_reply


@dataclass(frozen=True)
class Card:
    """A model as a server lists it: its name there, the directory or hub id that it was read from, and the most tokens of a
    prompt and its answer together; "" and None where that is not told."""

    name: str
    source: str = ""
    most_tokens: int | None = None


def open_served(options: ServerOptions, opened: OpenedTokenizer, *, model: str, vocabulary: int) -> ServedEngine:
    """The engine of a server. Raises UserError where it is not there, or does not serve `model`, which is MODEL_DIR."""
    if jax.process_count() > 1:
        raise UserError(f"{options.access.said}: one process asks a server; leave out --distributed and --coordinator.")
    access = options.access
    key = usable_key(access.key, key_from=access.key_from, option=f"{access.prefix}-key-from")
    access = replace(access, key=key)
    cards = asyncio.run(listed_models(access))
    if cards is None and not access.model:
        raise UserError(
            f"{access.said} does not list its models; correct the address, or name one with --engine-model."
        )
    if cards is None:
        say(f"  note   the server does not list its models: whether {access.model} is {model} is not compared")
        card = Card(access.model)
    else:
        card = served_card(cards, access, model=model, directory=opened.directory)
    say(f"server {card.name} at {access.url}; prompts are sent as {options.sends}, {access.concurrency} at once")
    return ServedEngine(replace(access, model=card.name), options.sends, opened, vocabulary, card.most_tokens)


async def listed_models(access: Access) -> list[Card] | None:
    """The models of a server; None where it does not list them."""
    async with client_of(access) as client:
        try:
            return await Server(access, client).ask(Request("models", cards_of))
        except Unknown:
            return None


def cards_of(body: bytes) -> list[Card]:
    """The models in a reply of /models. Raises Temporary for what is none."""
    listed = opened_reply(body).get("data")
    cards = []
    for each in listed if isinstance(listed, list) else [None]:
        if not isinstance(each, dict) or not isinstance(each.get("id"), str):
            raise Temporary(f"a list of models that is none: {body.decode(errors='replace')}")
        source, most = each.get("root"), each.get("max_model_len")
        most = most if type(most) is int and most > 0 else None
        cards.append(Card(each["id"], source if isinstance(source, str) else "", most))
    return cards


def served_card(cards: Sequence[Card], access: Access, *, model: str, directory: Path) -> Card:
    """The model that is asked: the one that the user names, or else the one whose name or source is MODEL_DIR's. Raises
    UserError for none, or several."""
    names = ", ".join(card.name for card in cards) or "no model"
    if access.model:
        named = [card for card in cards if card.name == access.model]
        if not named:
            raise UserError(
                f"{access.said} does not serve --engine-model={access.model}; it serves {names}: name one of these."
            )
        return named[0]
    alike = [card for card in cards if any(same_model(each, model, directory) for each in (card.name, card.source))]
    if len(alike) != 1:
        raise UserError(
            f"{access.said} serves {names}, and "
            f"{'none of them' if not alike else 'more than one'} has the name of MODEL_DIR={model}; serve that model, or say "
            "which of them it is with --engine-model."
        )
    return alike[0]


def same_model(said: str, model: str, directory: Path) -> bool:
    """Whether what a server says names MODEL_DIR: the same text or directory, or, of a directory that is not on this machine
    or a hub id, the same last part.

    >>> same_model("HuggingFaceTB/SmolLM2-135M-Instruct", "models/SmolLM2-135M-Instruct", Path("models/SmolLM2-135M-Instruct"))
    True
    """
    if not said:
        return False
    here = Path(said)
    if said == model or here.is_dir():
        return said == model or here.resolve() == Path(directory).resolve()
    return here.name == Path(model).name


def refuse_long(engine: ServedEngine, questions: Sequence[Question], places: Sequence[str]) -> None:
    """Raises UserError for prompts whose answers do not fit the server's model; `places` are where they were given."""
    most = engine.most_tokens
    if most is None:
        return
    long = [at for at, each in enumerate(questions) if len(each.tokens) + each.sampling.max_new_tokens > most]
    if long:
        first = questions[long[0]]
        raise UserError(
            f"{counted(len(long), 'prompt does', 'prompts do')} not fit the model of {engine.access.said}, which takes "
            f"{most:,} tokens (the first: {places[long[0]]}, {len(first.tokens):,} tokens and {first.sampling.max_new_tokens:,} new "
            "ones); lower --max-prompt-length or --max-new-tokens, or serve the model with a longer context."
        )

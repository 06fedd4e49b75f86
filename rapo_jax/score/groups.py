"""Rows of a source as groups of tokens to score: every usable row, without goals, in the chat template of the configuration, or
else in the model's own."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from rapo_jax.batching.batch_plan import Group
from rapo_jax.batching.groups import NAN, with_empty_responses
from rapo_jax.chat.dates import pin
from rapo_jax.chat.encoding import Encoded, Item, encode_all
from rapo_jax.config.tree import Config
from rapo_jax.data.configured import read_source, sources_of_part
from rapo_jax.data.row_needs import RowNeeds
from rapo_jax.distributed import is_first, say
from rapo_jax.errors import UserError, counted
from rapo_jax.messages import Record
from rapo_jax.opened import ClosedModel, Rendering, require_ids_fit
from rapo_jax.score.prompting import notes_of

Encode = Callable[[list[Item]], list[Encoded | None]]


def read_all(config: Config) -> list[Record]:
    """Every usable row of data.path with all its responses.

    Rows that training would drop are included, because training drops them after reading the scores, by settings that
    may change.
    """
    if config.data.sources:
        raise UserError("data.sources: scores are made for one source at a time; give data.path=... in its place.")
    data = replace(config.data, rewards="", drop_sources=(), drop_prompts="")
    plain = replace(config, data=data, relabel=replace(config.relabel, goals=(), attributes=()))
    (source,) = sources_of_part(plain, "train")
    return read_source(plain, source, RowNeeds("each")).records


def groups_to_score(records: list[Record], config: Config, model: ClosedModel, *, scored: ClosedModel) -> list[Group]:
    """The records as groups of equally many responses, in the tokens of `model`. Says where `scored`, the model that gives the
    scores, was prompted in another way.

    Raises UserError for rows that do not fit data.max_length, and for token ids beyond the vocabulary.
    """
    data = config.data
    opened = model.open_tokenizer(Rendering(data.chat_template, data.template_options))
    tokenizer = opened.tokenizer
    if data.date:
        tokenizer.chat_template = pin(opened.goal_prompt.chat_template, data.date)
    assert isinstance(tokenizer.chat_template, str)
    for note in notes_of(scored, written=tokenizer.chat_template, reader=model, config=config):
        say(f"  note   {note}")

    def encode(items: list[Item], *, progress: bool = False) -> list[Encoded | None]:
        return encode_all(
            tokenizer,
            items,
            placement="user",
            max_length=data.max_length,
            max_prompt_length=data.max_prompt_length,
            progress=progress,
        )[0]

    items = [
        Item(record.row, record.prompt, None, record.responses, record.more or (), record.tools) for record in records
    ]
    encoded = encode(items, progress=is_first())
    encoded = [one_by_one(item, encode) if each is None else each for item, each in zip(items, encoded, strict=True)]
    unfit = [record.row for record, each in zip(records, encoded, strict=True) if each is None]
    if unfit:
        raise UserError(
            f"{len(unfit)} of {counted(len(records), 'row')} do not fit data.max_length={data.max_length} and would have no "
            f"scores (the first: row {unfit[0]}); raise it."
        )
    fitting = [each for each in encoded if each is not None]
    num_cut = sum(any(each.response_tokens_cut) for each in fitting)
    if num_cut:
        say(
            f"{num_cut:,} of {counted(len(records), 'row')} have responses that are scored up to data.max_length={data.max_length} "
            "tokens only."
        )
    texts = (tokens for each in fitting for tokens in (each.prompt, *each.responses))
    require_ids_fit(texts, tokenizer, model.spec, said=model.name)
    width = max(len(record.responses) for record in records)
    return [
        with_empty_responses(Group(each.prompt, each.responses, (NAN,) * len(each.responses), 0, record.row), width)
        for record, each in zip(records, fitting, strict=True)
    ]


def alone_with(item: Item, index: int) -> Item:
    """The row with one of its responses."""
    return item._replace(responses=item.responses[index : index + 1], more=item.more[index : index + 1])


def one_by_one(item: Item, encode: Encode) -> Encoded | None:
    """A row with each response encoded alone, for rows that are dropped because two responses have the same tokens.

    None if the prompt does not fit, or is truncated differently for different responses.
    """
    alone = [
        each for each in encode([alone_with(item, index) for index in range(len(item.responses))]) if each is not None
    ]
    if len(alone) < len(item.responses) or any(not np.array_equal(each.prompt, alone[0].prompt) for each in alone):
        return None
    responses = tuple(each.responses[0] for each in alone)
    return replace(
        alone[0], responses=responses, response_tokens_cut=tuple(each.response_tokens_cut[0] for each in alone)
    )

"""Rows of two responses, chosen and rejected, or of a single one, in columns of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rapo_jax.config.tree import Columns
from rapo_jax.data.schemas.responses import attributes_column, prompt_and_response, prompt_column
from rapo_jax.data.schemas.schema import FirstRow, Parsed, ReadOptions, Schema
from rapo_jax.data.values import BadRow, check_turns, finite_score, is_transcript, present
from rapo_jax.errors import UserError
from rapo_jax.messages import Record, more_of

# What published data sets call the scores of (chosen, rejected), in the order in which they are tried.
SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("overall_score_chosen", "overall_score_rejected"),
    ("chosen_reward", "rejected_reward"),
    ("chosen_reward", "reject_reward"),
)
SINGLE_SCORES = ("score", "reward")
# Columns that are likely an instruction or an answer to it, where the usual ones are absent.
QUESTIONS, ANSWERS = ("instruction", "question", "query"), ("output", "answer")
# Where a single response is looked for.
SINGLE_RESPONSES = ("chosen", "messages", "response", "completion")


def read_pair(values: Mapping[str, Any], columns: Columns, _: ReadOptions) -> Parsed:
    """One or two responses in their order of preference."""
    given = prompt_column(values, columns.prompt)
    names = [name for name in (columns.chosen, columns.rejected) if name]
    found = [prompt_and_response(present(values, name), name, given) for name in names]
    prompts, responses = [prompt for prompt, _ in found], [response for _, response in found]
    if len(set(prompts)) > 1:
        raise BadRow("prompt_mismatch", f"the turns before the last one differ between {' and '.join(names)}")
    check_turns(prompts[0])
    scores = [name for name in (columns.score_chosen, columns.score_rejected) if name]
    rewards = tuple(finite_score(values.get(name), name) for name in scores) or None
    attributes = attributes_column(values, columns.attributes, len(responses))
    texts = tuple(response.content for response in responses)
    more = more_of(responses)
    return Parsed(Record(row=0, prompt=prompts[0], responses=texts, rewards=rewards, attributes=attributes, more=more))


def read_after(
    turns: Sequence[Any],
    answers: Mapping[str, Sequence[Any]],
    values: Mapping[str, Any],
    columns: Columns,
    options: ReadOptions,
) -> Parsed:
    """The pair, or the single response, of a row whose answers, by column, follow the same turns."""
    whole = {name: [*turns, *answer] for name, answer in answers.items()}
    return read_pair({**values, **whole}, replace(columns, prompt=""), options)


def wants_single(first: FirstRow) -> bool:
    """Whether the objective takes single responses, and the row is not a pair that could be split."""
    has_rejected = first.first_of([first.columns.rejected, "rejected"])
    return first.want == "one" or (first.want in ("each", "any") and not has_rejected)


def names_a_column(first: FirstRow) -> bool:
    return bool(first.columns.chosen or first.columns.rejected)


def is_single(first: FirstRow) -> bool:
    return names_a_column(first) and wants_single(first)


def is_pair(first: FirstRow) -> bool:
    return names_a_column(first) and not wants_single(first)


def wants_pair(first: FirstRow) -> bool:
    return not wants_single(first)


def resolve_single(schema: Schema, first: FirstRow) -> Columns:
    given = first.columns
    chosen = given.chosen or given.response or first.first_of(SINGLE_RESPONSES)
    if not chosen:
        raise UserError(
            f"{first.present}; needed: one of {', '.join(SINGLE_RESPONSES)}. Name it with "
            f"{named_as(first, 'response', ANSWERS)}{also_prompt(first)}."
        )
    prompt = resolve_prompt(first, chosen)
    (score_chosen,) = resolve_scores(first, 1) or ("",)
    return Columns(prompt=prompt, chosen=chosen, score_chosen=score_chosen)


def resolve_pair(schema: Schema, first: FirstRow) -> Columns:
    chosen = first.columns.chosen or first.first_of(["chosen"])
    rejected = first.columns.rejected or first.first_of(["rejected"])
    if not chosen or not rejected:
        raise UserError(
            f"{first.present}; needed: chosen and rejected. Name them with data.columns.chosen=... and "
            "data.columns.rejected=...."
        )
    prompt = resolve_prompt(first, chosen)
    score_chosen, score_rejected = resolve_scores(first, 2) or ("", "")
    return Columns(prompt, chosen, rejected, score_chosen, score_rejected)


def resolve_prompt(first: FirstRow, chosen: str) -> str:
    """The prompt's column, "" where the responses are whole conversations."""
    prompt = first.columns.prompt or first.first_of(["prompt"])
    value = first.values[chosen]
    if not prompt and isinstance(value, str) and not is_transcript(value):
        raise UserError(
            f"{first.present}; {chosen!r} is a plain string, so the instruction must be in a column of its own. Name it "
            f"with {named_as(first, 'prompt', QUESTIONS)}{also_input(first)}."
        )
    return prompt


def named_as(first: FirstRow, role: str, usual: Sequence[str]) -> str:
    """The key that names a column of this role, with the column that is likely meant."""
    return f"data.columns.{role}={first.first_of(usual) or '...'}"


def also_prompt(first: FirstRow) -> str:
    """What else to name where the instruction is in a column that is not taken for the prompt, as in Alpaca's rows."""
    has_prompt = first.columns.prompt or first.has("prompt") or not first.first_of(QUESTIONS)
    return also_input(first) if has_prompt else f" and {named_as(first, 'prompt', QUESTIONS)}{also_input(first)}"


def also_input(first: FirstRow) -> str:
    """Alpaca's rows have a text that follows the instruction; no column is taken for it."""
    wanted = first.has("input") and isinstance(first.values["input"], str) and not first.columns.input
    return "; data.columns.input=input adds the text of 'input' to it, which is not read otherwise" if wanted else ""


def resolve_scores(first: FirstRow, num_responses: int) -> Sequence[str]:
    """The columns of as many scores as there are responses; () where there are none."""
    named = (first.columns.score_chosen, first.columns.score_rejected)[:num_responses]
    if all(named):
        return named
    if any(named):
        raise UserError(
            f"{first.present}; data.columns.score_chosen={named[0]!r} and data.columns.score_rejected={named[1]!r} must "
            "be given together, or neither."
        )
    return next((names for names in score_columns(num_responses) if first.has(*names)), ())


def score_columns(num_responses: int) -> list[tuple[str, ...]]:
    """Names of as many scores as there are responses, in the order in which they are tried."""
    pairs = dict.fromkeys(pair[:num_responses] for pair in SCORE_COLUMNS)
    return [*pairs, *((name,) for name in SINGLE_SCORES if num_responses == 1)]


def sought(num_responses: int) -> str:
    return f"a score (tried {', '.join(' + '.join(names) for names in score_columns(num_responses))})"


SCORES_KNOB = "their columns with data.columns.score_chosen=... and data.columns.score_rejected=..."
PAIRS = Schema(
    name="pairs",
    meaning="chosen and rejected, perhaps with a score of each",
    read=read_pair,
    named=is_pair,
    detects=wants_pair,
    resolve=resolve_pair,
    scores_sought=sought(2),
    scores_knob=SCORES_KNOB,
)
SINGLE = Schema(
    name="single",
    meaning=f"one response, in {', '.join(SINGLE_RESPONSES)}, perhaps with its score",
    read=read_pair,
    named=is_single,
    detects=wants_single,
    resolve=resolve_single,
    scores_sought=sought(1),
    scores_knob=SCORES_KNOB,
)

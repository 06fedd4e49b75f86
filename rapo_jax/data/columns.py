"""Which shape the rows of a source have, and which of their columns holds what: decided once, on the first row."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Literal

from rapo_jax.config.tree import Columns
from rapo_jax.data.values import is_transcript
from rapo_jax.errors import UserError, nearest

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
# Where a single response is looked for.
RESPONSE_COLUMNS = ("chosen", "messages", "response", "completion")
LABELLED_COLUMNS = ("completion", "response")
# What the published sets of several responses a row call theirs, and what of it must be there.
SETS = {
    "ultrafeedback": Columns(prompt="instruction", responses="completions", rewards="overall_score"),
    "sampled": Columns(prompt="prompt", responses="all_generated_responses", rewards="all_rm_scores"),
    "nectar": Columns(prompt="prompt", responses="answers", rewards="rank"),
    "helpsteer": Columns(prompt="prompt", response="response", rewards="helpfulness"),
    "numbered": Columns(prompt="prompt", responses="response_0", rewards="response_0_reward"),
    "lists": Columns(prompt="prompt", responses="responses", rewards="rewards"),
}
INSIDE = {("ultrafeedback", "rewards"), ("nectar", "rewards")}  # not columns: they stand within each response

# How many responses of a row are needed: the best one, every one by itself, two, one or two with labels, all of two or
# more, or all of one or more.
Want = Literal["one", "each", "pair", "labelled", "all", "any"]
# Why scores are needed, and how to do without.
FOR_GOALS = ("goals come from scores", "or train without goals by relabel.goals=[]")


def resolve(
    said: str,
    columns: Columns,
    values: dict[str, Any],
    *,
    want: Want,
    scores_required: bool,
    schema: str = "auto",
    scores_for: tuple[str, str] = FOR_GOALS,
) -> tuple[str, Columns]:
    """The schema of rows like this first one, and its columns. `said` is what the user calls the source."""
    present = f"{said} has the columns {', '.join(map(repr, values))}"
    schema = detect(values, columns, want) if schema == "auto" else schema
    for field in fields(columns):
        name = getattr(columns, field.name)
        if name and name not in values and (schema, field.name) not in INSIDE:
            raise UserError(f"{present}, not data.columns.{field.name}={name!r}; {nearest(name, list(values))}")
    optional = {name: _first([getattr(columns, name), name], values) for name in ("source", "attributes")}
    optional |= {"weight": columns.weight}
    if schema in SETS:
        resolved = _resolve_set(schema, columns, values, present)
    elif schema == "labels":
        resolved = _resolve_label(columns, values, present)
    else:
        resolved = _resolve_text(columns, values, present, schema)
        scores = _resolve_scores(columns, values, present, 2 if resolved.rejected else 1)
        if scores_required and not scores:
            raise UserError(_without_scores(present, 2 if resolved.rejected else 1, scores_for))
        score_chosen, score_rejected = (*scores, "", "")[:2]
        resolved = replace(resolved, score_chosen=score_chosen, score_rejected=score_rejected)
    if scores_required and schema in (*SETS, "labels") and not resolved.rewards:
        raise UserError(
            f"{present}, none of which is known as the scores of its responses; {scores_for[0]}: name their column "
            f"with data.columns.rewards=..., give a file of them with data.rewards=FILE.jsonl, {scores_for[1]}."
        )
    return schema, replace(resolved, **optional)


def detect(values: dict[str, Any], columns: Columns, want: Want) -> str:
    """The schema's name. Published sets are known by columns that no other has."""
    alone = (
        "single"
        if want == "one" or (want in ("each", "any") and not _first([columns.rejected, "rejected"], values))
        else "pairs"
    )
    if columns.responses:
        return "lists"
    if columns.chosen or columns.rejected:
        return alone
    if columns.label:
        return "labels"
    if isinstance(values.get("completions"), list):
        return "ultrafeedback"
    if "all_generated_responses" in values and "all_rm_scores" in values:
        return "sampled"
    if _has_ranks(values.get("answers")):
        return "nectar"
    if "response" in values and "helpfulness" in values:
        return "helpsteer"
    if "response_0" in values and "response_0_reward" in values:
        return "numbered"
    if isinstance(values.get("responses"), list) and "prompt" in values:
        return "lists"
    if "chosen" not in values and isinstance(values.get("label"), bool) and _first(LABELLED_COLUMNS, values):
        return "labels"
    return alone


def _has_ranks(answers: Any) -> bool:
    return isinstance(answers, list) and all(isinstance(a, dict) and "rank" in a for a in answers[:1]) and answers != []


def _first(names: Sequence[str], values: dict[str, Any]) -> str:
    return next((name for name in names if name and name in values), "")


def _resolve_set(schema: str, columns: Columns, values: dict[str, Any], present: str) -> Columns:
    usual = SETS[schema]
    named = {field.name: getattr(columns, field.name) or getattr(usual, field.name) for field in fields(Columns)}
    needed = [name for role in ("prompt", "responses", "response") if (name := named[role]) and name not in values]
    if needed:
        raise UserError(f"{present}; data.schema={schema} needs {' and '.join(needed)}. Name them with data.columns.*.")
    if (schema, "rewards") not in INSIDE and named["rewards"] not in values:
        named["rewards"] = "scores" if schema == "lists" and "scores" in values else ""
    return Columns(**named)


def _resolve_label(columns: Columns, values: dict[str, Any], present: str) -> Columns:
    response = columns.response or _first(LABELLED_COLUMNS, values)
    label = columns.label or _first(["label"], values)
    prompt = columns.prompt or _first(["prompt"], values)
    if not response or not label:
        raise UserError(
            f"{present}; needed: one of {', '.join(LABELLED_COLUMNS)}, and label. Name them with "
            "data.columns.response=... and data.columns.label=..."
        )
    rewards = columns.rewards or _first(SINGLE_SCORES, values)
    return Columns(prompt=prompt, response=response, label=label, rewards=rewards)


def _resolve_text(columns: Columns, values: dict[str, Any], present: str, schema: str) -> Columns:
    prompt = columns.prompt or _first(["prompt"], values)
    single = schema == "single"
    known = RESPONSE_COLUMNS if single else ("chosen",)
    chosen = columns.chosen or (columns.response if single else "") or _first(known, values)
    rejected = "" if single else columns.rejected or _first(["rejected"], values)
    if not chosen or not (single or rejected):
        needed = f"one of {', '.join(known)}" if single else "chosen and rejected"
        knobs = "data.columns.chosen=..." + " and data.columns.rejected=..." * (not single)
        raise UserError(f"{present}; needed: {needed}. Name them with {knobs}.")
    value = values[chosen]
    if not prompt and isinstance(value, str) and not is_transcript(value):
        raise UserError(
            f"{present}; {chosen!r} is a plain string, so the instruction must be in a column of its own. Name it with "
            "data.columns.prompt=..."
        )
    return Columns(prompt=prompt, chosen=chosen, rejected=rejected)


def _resolve_scores(columns: Columns, values: dict[str, Any], present: str, num_responses: int) -> Sequence[str]:
    named = (columns.score_chosen, columns.score_rejected)[:num_responses]
    if all(named):
        return named
    if any(named):
        raise UserError(
            f"{present}; data.columns.score_chosen={named[0]!r} and data.columns.score_rejected={named[1]!r} must be "
            "given together, or neither."
        )
    found = (names for names in _score_columns(num_responses) if all(name in values for name in names))
    return next(found, ())


def _without_scores(present: str, num_responses: int, scores_for: tuple[str, str]) -> str:
    tried = ", ".join(" + ".join(names) for names in _score_columns(num_responses))
    return (
        f"{present}, none of which is known as a score (tried {tried}); {scores_for[0]}: name their columns "
        "with data.columns.score_chosen=... and data.columns.score_rejected=..., give a file of them with "
        f"data.rewards=FILE.jsonl, {scores_for[1]}."
    )


def _score_columns(num_responses: int) -> list[tuple[str, ...]]:
    """Names of as many scores as there are responses, in the order in which they are tried."""
    pairs = dict.fromkeys(pair[:num_responses] for pair in SCORE_COLUMNS)
    return [*pairs, *((name,) for name in SINGLE_SCORES if num_responses == 1)]

"""Which records take part: mixture shares, held-out prompts, subsets, decontamination.

Held-out prompts and fractions are chosen by a hash of the prompt, so a prompt is never on both sides of a split; samples
by one of prompt and responses. The order of rows never matters.
"""

from collections.abc import Sequence

from rapo_jax.borders import path_of, read_text
from rapo_jax.data.draws import prompt_share, record_share
from rapo_jax.data.files import read_rows
from rapo_jax.errors import UserError
from rapo_jax.messages import Record

QUESTION_COLUMNS = ("question", "prompt", "instruction")


def is_held_out(record: Record, fraction: float, *, seed: int) -> bool:
    """Whether the prompt belongs to the evaluation."""
    return prompt_share(record.prompt, seed=seed, purpose="held out") < fraction


def is_within(record: Record, fraction: float, *, seed: int) -> bool:
    """Whether the prompt belongs to the subset that relabel.fraction keeps."""
    return fraction >= 1 or prompt_share(record.prompt, seed=seed, purpose="fraction") < fraction


def sample(records: Sequence[Record], number: int, *, seed: int) -> list[Record]:
    """`number` of the records, in their order. Samples are nested: a larger number takes the same ones and more."""
    if number >= len(records):
        return list(records)
    shares = [record_share(record, seed=seed, purpose="sample") for record in records]
    kept = sorted(range(len(records)), key=lambda index: (shares[index], index))[:number]
    return [records[index] for index in sorted(kept)]


def mixture_sizes(sizes: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    """Records per source in a mixture: as many as the weights allow without repeating any.

    A source without a weight contributes all its records.

    >>> mixture_sizes([100, 60, 7], [1.0, 3.0, None])
    [20, 60, 7]
    """
    limits = [size / weight for size, weight in zip(sizes, weights, strict=True) if weight is not None]
    unit = min(limits, default=0)
    return [
        size if weight is None else min(size, round(unit * weight)) for size, weight in zip(sizes, weights, strict=True)
    ]


def read_questions(path: str, *, option: str = "data.drop_prompts") -> frozenset[str]:
    """Questions to keep out of the training data: one per line, or in a column question, prompt or instruction."""
    file = path_of(path, said=f"{option}={path}")
    if not file.is_file():
        raise UserError(
            f"{option}={path}: no such file; give a text with a question a line, .jsonl, .json or .parquet."
        )
    if file.suffix not in (".jsonl", ".json", ".parquet"):
        return frozenset(line.strip() for line in read_text(file).split("\n") if line.strip())
    questions = set()
    for row in read_rows(path, split="", option=option):
        found = [row.values[name] for name in QUESTION_COLUMNS if isinstance(row.values.get(name), str)]
        if not found:
            raise UserError(f"{row.place}: no question in a column {' or '.join(QUESTION_COLUMNS)} ({option}={path}).")
        questions.add(found[0].strip())
    return frozenset(questions)


def contamination(record: Record, *, sources: Sequence[str], questions: frozenset[str]) -> str | None:
    """Why a record is left out: its source is dropped, or a user turn is one of the questions. None if it is kept."""
    if record.source and set(record.source.split(", ")) & set(sources):
        return "source_dropped"
    asks = any(message.role == "user" and message.content.strip() in questions for message in record.prompt)
    return "prompt_dropped" if asks else None

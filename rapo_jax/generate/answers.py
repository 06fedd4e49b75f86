"""A file of prompts to a file of answers."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from rapo_jax.chat.encoding import Item, encode_all
from rapo_jax.chat.goal_prompt import PAPER_GOAL_PROMPT, GoalPrompt, read_goal_prompt
from rapo_jax.chat.templates import Placement, end_of_turn, load_tokenizer, resolve_placement
from rapo_jax.data.files import Row, read_rows
from rapo_jax.errors import UserError
from rapo_jax.generate.decode import Continuation, Sampling, answer_tokens
from rapo_jax.messages import Message
from rapo_jax.models.directory import eos_tokens, model_directory
from rapo_jax.models.spec import read_config, require_vocabulary, spec_from_config

PROMPT_COLUMNS = ("prompt", "messages", "instruction", "question")

Prompt = tuple[Row, tuple[Message, ...]]


@dataclass(frozen=True)
class Request:
    """The options of `rapo generate`. `goal` None asks as the chat template does; `no_goal` asks for none at all."""

    prompts: str
    out: str
    goal: float | None = None
    no_goal: bool = False
    raw: bool = False
    max_new_tokens: int = 512
    max_prompt_length: int = 4096
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 16
    dtype: str = "float32"
    chat_template: str | None = None


def read_prompts(path: str) -> list[Prompt]:
    """Rows with a prompt: a text, or a list of messages that ends with a user turn."""
    prompts = []
    for row in read_rows(path, split="train", option="--prompts"):
        column = next((name for name in PROMPT_COLUMNS if name in row.values), None)
        if column is None:
            raise UserError(
                f"{row.place} has no prompt; it has the columns {', '.join(row.values)}, "
                f"and a prompt is looked for under {', '.join(PROMPT_COLUMNS)}."
            )
        prompts.append((row, as_messages(row.values[column], row.place)))
    if not prompts:
        raise UserError(f"{path} holds no prompts.")
    return prompts


def as_messages(prompt: object, place: str) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    if not isinstance(prompt, list) or not all(
        isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content")) for turn in prompt
    ):
        raise UserError(
            f"{place}: a prompt must be a text or a list of messages, each with the texts role and content."
        )
    messages = tuple(Message(turn["role"], turn["content"]) for turn in prompt)
    if not messages or messages[-1].role != "user":
        raise UserError(f"{place}: a prompt must end with a user turn.")
    return messages


def chat_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    goal: str | None,
    placement: Placement,
    max_length: int,
) -> list[np.ndarray]:
    """Token ids of each prompt through the chat template, by the code that training uses. Raises UserError for a prompt
    that does not fit `max_length` even when its middle is cut."""
    items = [Item(row.number, messages, goal, ()) for row, messages in prompts]
    encoded, _ = encode_all(
        tokenizer, items, placement=placement, max_length=max_length, max_prompt_length=max_length - 1
    )
    unfit = [row.place for (row, _), e in zip(prompts, encoded, strict=True) if e is None]
    if unfit:
        raise UserError(
            f"{len(unfit)} prompt(s) do not fit {max_length} tokens: {', '.join(unfit[:5])}; raise --max-prompt-length."
        )
    return [e.prompt for e in encoded]


def raw_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[np.ndarray]:
    """Token ids of each text as it stands, with the tokenizer's own special tokens and no chat template."""
    ids = [tokenizer(messages[-1].content).input_ids for _, messages in prompts]
    empty = [row.place for (row, _), tokens in zip(prompts, ids, strict=True) if not tokens]
    if empty:
        raise UserError(f"{empty[0]}: an empty prompt, and this tokenizer begins with no special token.")
    return [np.asarray(tokens, np.int32) for tokens in ids]


def answer_file(model_dir: str, request: Request) -> str:
    """Answers every prompt of a file into another; returns a line on how fast. The file appears whole or not at all."""
    out = Path(request.out)
    if out.exists():
        raise UserError(f"{out} exists; nothing was written. Choose another --out.")
    directory = model_directory(model_dir, option="MODEL_DIR")
    config = read_config(directory)
    require_vocabulary(spec_from_config(config), path=model_dir)  # refuses an unsupported model before anything is read
    prompts = read_prompts(request.prompts)
    known = read_goal_prompt(directory)
    if known and request.goal is None and not request.no_goal and not request.raw and request.chat_template is None:
        request = replace(request, goal=known.baked)  # what the exported chat template asks for by itself
    tokenizer, tokens = encode_prompts(directory, known, prompts, request)
    stops = eos_tokens(directory, config) or [tokenizer.eos_token_id]
    if not request.raw:
        stops = [*stops, end_of_turn(tokenizer)]
    started = time.monotonic()
    answers = answer_tokens(
        directory,
        tokens,
        sampling=Sampling(request.max_new_tokens, request.temperature, request.top_p, request.seed),
        stop_tokens=stops,
        dtype=jnp.dtype(request.dtype),
        batch_size=request.batch_size,
    )
    write_answers(out, [row for row, _ in prompts], answers, tokenizer=tokenizer, request=request)
    num_tokens = sum(len(answer.tokens) for answer in answers)
    return f"{len(prompts)} answers, {num_tokens / (time.monotonic() - started):.0f} new tokens/s"


def encode_prompts(
    directory: Path, known: GoalPrompt | None, prompts: Sequence[Prompt], request: Request
) -> tuple[PreTrainedTokenizerBase, list[np.ndarray]]:
    """Token ids of the prompts, and the tokenizer. An exported directory knows its template without and with a goal."""
    if request.raw:
        tokenizer = load_tokenizer(str(directory), chat_template="plain")  # any template will do: none is applied
        return tokenizer, raw_prompts(tokenizer, prompts)
    tokenizer = load_tokenizer(str(directory), chat_template=request.chat_template, option="--chat-template")
    if known and request.chat_template is None:
        tokenizer.chat_template = known.chat_template
    placement = known.placement if known else resolve_placement(tokenizer, "auto")
    sentence = (known or PAPER_GOAL_PROMPT).sentence(request.goal)
    return tokenizer, chat_prompts(
        tokenizer, prompts, goal=sentence, placement=placement, max_length=request.max_prompt_length
    )


def write_answers(
    out: Path,
    rows: Sequence[Row],
    answers: Sequence[Continuation],
    *,
    tokenizer: PreTrainedTokenizerBase,
    request: Request,
) -> None:
    """The rows as they came, in their own order, each with its answer and how it was asked for."""
    asked = {name: getattr(request, name) for name in ("goal", "temperature", "top_p", "seed")}
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    with temporary.open("w") as file:
        for row, answer in zip(rows, answers, strict=True):
            text = tokenizer.decode(answer.tokens, skip_special_tokens=True)
            written = {"response": text, "finish_reason": answer.finish_reason, "num_tokens": len(answer.tokens)}
            file.write(json.dumps(row.values | written | asked, ensure_ascii=False) + "\n")
    temporary.replace(out)

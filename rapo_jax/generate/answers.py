"""`rapo generate`: a file of prompts becomes a file of answers. Sampling itself is in decode.py."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int32

from rapo_jax.borders import write_json_lines
from rapo_jax.errors import UserError
from rapo_jax.generate.decode import answer_tokens
from rapo_jax.generate.sampling import Sampling
from rapo_jax.generate.prompts import Prompt, chat_tokens, raw_tokens, read_prompts
from rapo_jax.models.directory import model_directory
from rapo_jax.models.spec import read_config, require_vocabulary, spec_from_config
from rapo_jax.opened import OpenedTokenizer, answer_text, load_model, open_tokenizer
from rapo_jax.relabel import Goal


@dataclass(frozen=True)
class Request:
    """The options of `rapo generate`.

    Without `goal` a model is asked as its own chat template would ask; `no_goal` asks for none in any case. `raw`
    continues texts without a chat template. Lengths are in tokens, `batch_size` in prompts.
    """

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

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.seed)


def answer_file(model_dir: str, request: Request) -> str:
    """Answers every prompt of a file and writes the answers to another, atomically; returns a line about the speed.

    With several processes, all of them decode and the first one writes.
    """
    out = Path(request.out)
    if out.exists():
        raise UserError(f"{out} exists; nothing was written. Choose another --out.")
    directory = model_directory(model_dir, option="MODEL_DIR")
    # The cheap checks come first: an unsupported model, a bad prompt. Weights are read last.
    require_vocabulary(spec_from_config(read_config(directory)), path=model_dir)
    prompts = read_prompts(request.prompts)
    opened = open_tokenizer(directory, chat_template=request.chat_template, option="--chat-template", raw=request.raw)
    goal = goal_asked(opened, request)
    tokens = encode(opened, prompts, goal=goal, request=request)
    started = time.monotonic()
    model = load_model(opened, dtype=request.dtype)
    answers = answer_tokens(model, tokens, sampling=request.sampling, batch_size=request.batch_size)
    if jax.process_index() == 0:
        asked = {"goal": goal, "temperature": request.temperature, "top_p": request.top_p, "seed": request.seed}
        rows = []
        for prompt, answer in zip(prompts, answers, strict=True):
            text = answer_text(opened.tokenizer, answer.tokens)
            written = {"response": text, "finish_reason": answer.finish_reason, "num_tokens": len(answer.tokens)}
            rows.append({**prompt.row.values, **written, **asked})
        write_json_lines(out, rows)
    num_tokens = sum(len(answer.tokens) for answer in answers)
    return f"{len(prompts)} answers, {num_tokens / (time.monotonic() - started):.0f} new tokens/s"


def goal_asked(opened: OpenedTokenizer, request: Request) -> float | None:
    """The goal that is written into the prompts: the requested one, else what the exported chat template asks for."""
    if request.goal is not None or request.no_goal or request.raw:
        return request.goal
    return opened.goal_prompt.baked


def encode(
    opened: OpenedTokenizer, prompts: Sequence[Prompt], *, goal: Goal | None, request: Request
) -> list[Int32[np.ndarray, " _"]]:
    if request.raw:
        return raw_tokens(opened.tokenizer, prompts)
    return chat_tokens(opened, prompts, goal=goal, max_length=request.max_prompt_length)

"""The adapter: an opened model as a backend of lm-evaluation-harness, called `rapo` there.

Contexts and continuations are tokenized, cut and scored as by the harness's own backend for transformers, so that numbers can
be compared; the goal stands where the model was trained to read it. Importing this module registers the model.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports] (an extra)
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs  # pyright: ignore[reportMissingImports]
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from rapo_jax.borders import shaped
from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.distributed import is_first
from rapo_jax.errors import UserError, shown
from rapo_jax.evaluate.harness.scoring import Continued, TokenScorer
from rapo_jax.generate.asked import require_on_scale
from rapo_jax.generate.batches import BatchLimits
from rapo_jax.generate.engine import Question
from rapo_jax.generate.own import OwnEngine
from rapo_jax.generate.sampling import Sampling
from rapo_jax.messages import Message
from rapo_jax.models.spec import read_config, require_vocabulary
from rapo_jax.opened import ClosedModel, ModelDirectory, OpenedTokenizer, Rendering, answer_text, load_model
from rapo_jax.parallel import make_mesh
from rapo_jax.relabel import format_score
from rapo_jax.runs.trained import RunModel, find_model

MAX_LENGTH = 2048  # tokens, where neither model nor tokenizer says, as in the harness
UNLIMITED = 10**9  # a tokenizer's model_max_length that says nothing
SAMPLES = 64  # at once, where the harness has its default batch_size of 1
MAX_NEW_TOKENS = 256  # where a task does not say, as in the harness
NO_GOAL, HIGHEST = "none", "highest"


@dataclass(frozen=True)
class ModelArguments:
    """Further --model_args. `data`, `fsdp` and `tensor` are the mesh; `batch_tokens` bounds prompts and answers together."""

    step: int | None = None
    dtype: str = "float32"
    max_length: int | None = None
    batch_tokens: int = 16384
    max_batch_size: int | None = None
    chat_template: str | None = None
    seed: int = 0
    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@register_model("rapo")
class RapoLM(TemplateLM):
    """`path` is a model or run directory (`step` chooses its checkpoint). `goal` is a number, "highest" or "none"; without it the
    highest is asked for, of a model that asks for goals."""

    def __init__(self, path: str, goal: float | str | None = None, batch_size: int | str | None = None, **options: Any):
        super().__init__()
        options.pop("device", None)  # torch's, which the harness's command line always gives; JAX takes what there is
        given = shaped(options, ModelArguments, said="--model_args")
        rows = int(batch_size) if batch_size is not None and str(batch_size).isdecimal() else 1
        rows = rows if rows > 1 else SAMPLES
        limits = BatchLimits(min(rows, given.max_batch_size or rows), given.batch_tokens)
        mesh = functools.partial(make_mesh, data=given.data, fsdp=given.fsdp, tensor=given.tensor)
        closed = find_model(str(path), step=given.step, mesh=mesh, option="path")
        require_vocabulary(closed.spec, path=closed.name)
        self.opened, self.has_template = opened_for_tasks(closed, given.chat_template)
        self.tokenizer = self.opened.tokenizer
        self.goal = goal_of(self.opened.goal_prompt, goal, model=closed.name)
        self.goal_is_given, self.was_templated = goal is not None and self.goal is not None, False
        self.model, self.seed = load_model(closed, self.opened, dtype=given.dtype), given.seed
        self.max_length = given.max_length or longest(closed, self.opened)
        self.scorer, self.engine = TokenScorer.of(self.model, limits), OwnEngine.of(self.model, limits)

    # How texts are read: as by the harness's backend for transformers.

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id  # pyright: ignore[reportReturnType]

    @property
    def prefix_token_id(self) -> int:
        begins = self.tokenizer.bos_token_id
        return self.eot_token_id if begins is None else begins  # pyright: ignore[reportReturnType]

    @property
    def tokenizer_name(self) -> str:
        """For caches of requests, which hold the goal's sentence."""
        said = NO_GOAL if self.goal is None else format_score(self.goal)
        return f"{self.opened.directory}_goal_{said}".replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None and has_bos_prefix(string, str(self.tokenizer.decode(self.prefix_token_id))):
            add_special_tokens = False
        how: dict[str, Any] = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **how)

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """The conversation through the model's template, with the goal in the turn that the model was trained to read it in."""
        if not self.has_template:
            raise UserError(
                f"{self.opened.directory} has no chat template; leave out --apply_chat_template, or add chat_template= to --model_args."
            )
        self.was_templated = True
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        if not any(turn.role in ("system", "user") for turn in messages):
            raise UserError("a conversation without a turn of the user has no place for the goal.")
        turns = [turn.as_dict() for turn in self.opened.goal_prompt.write(messages, self.goal)]
        text = self.tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        assert isinstance(text, str)
        return text

    def refuse_goal_without_template(self) -> None:
        """Raises UserError where a goal was asked for and nothing wrote it."""
        if self.goal_is_given and not self.was_templated:
            raise UserError(
                f"goal={format_score(self.goal or 0)} is written through the chat template, which is not in use; add "
                "--apply_chat_template, or leave the goal out."
            )

    # What is asked.

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """What is too long loses its beginning."""
        self.refuse_goal_without_template()
        asked = []
        for _, context, continuation in requests:
            most = self.max_length + 1 - len(continuation)
            if most < 1:
                raise UserError(
                    f"a continuation of {len(continuation):,} tokens does not fit max_length={self.max_length}; raise it."
                )
            asked.append(Continued(context[-most:], continuation))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(asked)
        hidden = disable_tqdm or not is_first()
        bar = tqdm(self.scorer.likelihoods(asked), total=len(asked), desc="loglikelihood", disable=hidden)
        for index, (logp, is_greedy) in bar:
            found[index] = (logp, is_greedy)
            if (key := requests[index][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", key, found[index])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows of max_length."""
        windows, owners = [], []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            rolling = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            for window in map(make_disjoint_window, rolling):
                windows.append((None, *window))
                owners.append(index)
        sums = [0.0] * len(requests)
        for owner, (logp, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[owner] += logp
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers until one of a task's texts, a stop token of the model, or max_gen_toks."""
        self.refuse_goal_without_template()
        questions = []
        for index, request in enumerate(requests):
            context, given = request.args
            sampling = sampling_of(given, seed=self.seed)
            room = self.max_length - sampling.max_new_tokens
            if room < 1:
                raise UserError(
                    f"max_gen_toks={sampling.max_new_tokens} leaves no room in max_length={self.max_length} for a prompt; lower it."
                )
            questions.append(Question(index, np.asarray(self.tok_encode(context)[-room:], np.int32), sampling))
        found = [""] * len(requests)
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm or not is_first()) as bar:
            for drawn in self.engine.sample(questions, num_samples=1):
                for sample in drawn.samples:
                    text = answer_text(self.tokenizer, sample.tokens) if sample.text is None else sample.text
                    for stop in questions[sample.prompt].sampling.stop:
                        text = text.split(stop)[0]
                    found[sample.prompt] = text
                    self.cache_hook.add_partial("generate_until", requests[sample.prompt].args, text)
                bar.update(len(drawn.samples))
        return found


def opened_for_tasks(closed: ClosedModel, chat_template: str | None) -> tuple[OpenedTokenizer, bool]:
    """The tokenizer, and whether it has a chat template: base models have none, and need none for most tasks."""
    has_template = chat_template is not None or closed.own_goal_prompt() is not None
    how = Rendering(chat_template, option="chat_template") if has_template else Rendering(raw=True)
    return closed.open_tokenizer(how), has_template


def goal_of(prompt: GoalPrompt, goal: float | str | None, *, model: str) -> float | None:
    """The goal that `goal` is. Raises UserError for what is none, and for one outside the scale."""
    if goal in (NO_GOAL, None) and (goal == NO_GOAL or prompt.baked is None):
        return None
    if goal in (HIGHEST, None):
        return prompt.goal_max
    try:
        number = float(goal)  # pyright: ignore[reportArgumentType]
    except ValueError:
        raise UserError(f"goal={shown(goal)} must be a number, {HIGHEST} or {NO_GOAL}.") from None
    require_on_scale(prompt, {"goal": number}, model=model)
    return number


def longest(closed: ClosedModel, opened: OpenedTokenizer) -> int:
    """The longest text that the model reads: what its configuration says, else its tokenizer, else 2,048 tokens."""
    assert isinstance(closed, ModelDirectory | RunModel)
    directory = closed.directory if isinstance(closed, ModelDirectory) else closed.setup.model_dir
    said = read_config(directory).get("max_position_embeddings")
    if isinstance(said, int):
        return said
    of_tokenizer = opened.tokenizer.model_max_length
    return of_tokenizer if of_tokenizer < UNLIMITED else MAX_LENGTH


def sampling_of(given: dict[str, Any], *, seed: int) -> Sampling:
    """A task's generation options. Raises UserError for those that our engine does not have."""
    options = normalize_gen_kwargs(given, MAX_NEW_TOKENS)
    until = [text for text in options.pop("until", None) or [] if text]
    most, is_random = options.pop("max_gen_toks"), options.pop("do_sample", False)
    temperature = options.pop("temperature", 1.0 if is_random else 0.0)
    kept = {name: options.pop(name) for name in ("top_p", "top_k", "min_p", "repetition_penalty") if name in options}
    if options:
        raise UserError(f"generation options of the task that are not known here: {', '.join(options)}.")
    return Sampling(max_new_tokens=most, temperature=temperature, stop=tuple(until), seed=seed, **kept)

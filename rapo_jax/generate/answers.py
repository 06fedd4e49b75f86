"""`rapo generate`: a file of prompts becomes a file of answers. Sampling itself is in decode.py.

Answers are kept in OUT.partial as they end, so that a repeated command goes on where one was stopped or killed, with the
answers that it would have given.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from rapo_jax.borders import write_json_lines
from rapo_jax.chat.dates import pin, pinned_day, today
from rapo_jax.distributed import each_process, from_first, interruptible, on_first, require_same, say
from rapo_jax.errors import Interrupted, UserError, counted
from rapo_jax.generate.asked import Asked, GivenSampling, goal_of_row, require_on_scale
from rapo_jax.generate.batches import BatchLimits
from rapo_jax.generate.columns import LOGPS, beside, renamed_columns
from rapo_jax.generate.engine import Engine, OpenedEngine, Question, ServerOptions
from rapo_jax.generate.own import OwnEngine
from rapo_jax.generate.progress import Progress
from rapo_jax.generate.prompts import Prompt, chat_tokens, raw_tokens, read_prompts
from rapo_jax.generate.sampling import LATER, Sampling, used
from rapo_jax.generate.store import Key, SampleStore, day_of, open_store
from rapo_jax.models.spec import require_vocabulary
from rapo_jax.opened import ClosedModel, OpenedTokenizer, Rendering, answer_text, load_model, require_ids_fit


@dataclass(frozen=True)
class Request:
    """The options of `rapo generate`.

    Without `goal` a prompt asks for the goal in its own row, or else for what the model's chat template asks for; `no_goal`
    asks for none in any case, and `any_goal` allows goals outside the model's scale. `raw` continues texts without a chat
    template. Settings of sampling that are None come from columns of the rows, or else are the defaults of `Sampling`. With
    `logps` the rows have the answers' tokens and their log-probabilities. Every prompt is answered `num_samples` times, each answer with random numbers of its own.
    A `server` samples in place of ours, which then reads no weights.
    Lengths are in tokens. A batch has at most `batch_size` prompts and `batch_tokens` tokens, prompts and answers together.
    """

    prompts: str
    out: str
    goal: float | None = None
    no_goal: bool = False
    any_goal: bool = False
    raw: bool = False
    max_new_tokens: int | None = None
    max_prompt_length: int = 4096
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] | None = None
    logps: bool = False
    seed: int | None = None
    num_samples: int = 1
    batch_size: int = 16
    batch_tokens: int = 16384
    dtype: str = "float32"
    chat_template: str | None = None
    template_options: dict[str, Any] = field(default_factory=dict)
    server: ServerOptions | None = None

    @property
    def sampling(self) -> GivenSampling:
        return GivenSampling(**{field.name: getattr(self, field.name) for field in fields(GivenSampling)})

    @property
    def limits(self) -> BatchLimits:
        return BatchLimits(self.batch_size, self.batch_tokens)


@dataclass(frozen=True)
class Job:
    """Everything but the weights: the prompts, how each is asked, its tokens, and the columns written beside its answer.

    `renamed` are columns of the user's that are kept under another name. `engine` is None for ours, which needs the weights.
    """

    model: ClosedModel
    opened: OpenedTokenizer
    prompts: list[Prompt]
    asked: list[Asked]
    tokens: list[Int32[np.ndarray, " _"]]
    columns: list[dict[str, Any]]
    renamed: dict[str, str]
    engine: OpenedEngine | None = None


def answer_file(model: ClosedModel, request: Request) -> str:
    """Answers every prompt of a file with the model and writes the answers to another, atomically; returns a line about the speed.

    With several processes, all of them decode and the first one writes. Raises Interrupted when a signal came, with the
    answers so far in OUT.partial.
    """
    out = Path(request.out)
    kept = out.with_name(out.name + ".partial")
    on_first(lambda: refuse_output(out, goes_on=kept.exists()))
    day = day_to_write(kept)
    # The cheap checks come first: an unsupported model, a bad prompt. Weights are read last.
    require_vocabulary(model.spec, path=model.name)
    prompts = read_prompts(request.prompts, raw=request.raw)
    job = prepare(model, open_to_answer(model, request, day=day), prompts, request)
    with drawn_into(kept, job, request, day=day) as answers:
        on_first(lambda: refuse_output(out, goes_on=answers.complete))
        answers.fill(lambda: own_engine(job, request))
        if answers.store:
            write_json_lines(out, answer_rows(job, answers.store, num_samples=request.num_samples))
            kept.unlink()
    return f"{counted(answers.progress.total, 'answer')}, {answers.progress.rate}"


def day_to_write(kept: Path) -> str:
    """The day that chat templates write for today's: that of the answers kept so far, if there are any."""
    return each_process(on_first(lambda: day_of(kept) or today()))[0]


@dataclass
class Answers:
    """The answers to a job, and how many there are; those that are known are in `store`, which the first process alone has."""

    job: Job
    request: Request
    kept: Path
    store: SampleStore | None
    known: set[Key]
    progress: Progress

    @property
    def complete(self) -> bool:
        return len(self.known) == self.progress.total

    def fill(self, engine: Callable[[], Engine]) -> None:
        """Samples what is not known and appends it to the store. `engine` is called where none of a server is open, and anything
        is to be sampled. Raises Interrupted."""
        if self.complete:
            return
        opened, progress = self.job.engine or engine(), self.progress
        progress.start()
        asked = questions(self.job, self.request)
        with interruptible() as interrupted:
            for number, drawn in enumerate(
                opened.sample(asked, num_samples=self.request.num_samples, known=self.known)
            ):
                if self.store:
                    self.store.append(drawn.samples)
                progress.add(drawn)
                if interrupted(number) and progress.answers < progress.total:
                    of_all = counted(progress.total, "answer")
                    raise Interrupted(f"{progress.answers:,} of {of_all} are kept in {self.kept}")


@contextmanager
def drawn_into(kept: Path, job: Job, request: Request, *, day: str) -> Iterator[Answers]:
    """The answers to a job, kept at `kept`, which other processes cannot use while the block runs; says what is there already."""
    identity = identity_of(job, request)
    require_same(identity)
    with ExitStack() as stack:
        store = on_first(lambda: stack.enter_context(open_store(kept, identity, day=day)))
        wanted = [(index, number) for index in range(len(job.prompts)) for number in range(request.num_samples)]
        is_known = from_first(np.array([bool(store) and key in store.known for key in wanted]))
        known = {wanted[at] for at in np.flatnonzero(is_known)}
        announce(job, kept, num_known=len(known), num_wanted=len(wanted), num_damaged=store.damaged if store else 0)
        yield Answers(job, request, kept, store, known, Progress(len(wanted), len(known)))


def own_engine(job: Job, request: Request) -> Engine:
    """Ours, with the model's weights."""
    return OwnEngine.of(load_model(job.model, job.opened, dtype=request.dtype), request.limits)


def refuse_output(out: Path, *, goes_on: bool) -> None:
    """Raises UserError for an output that exists. Where answers are kept, it may: the last command was killed between writing
    it and removing them."""
    if out.exists() and not goes_on:
        raise UserError(f"{out} exists; nothing was written. Choose another --out.")


def open_to_answer(model: ClosedModel, request: Request, *, day: str) -> OpenedTokenizer:
    """The model's tokenizer, whose template writes `day` for today's date."""
    if request.raw and request.template_options:
        raise UserError(
            "--template-options is about the chat template, which --raw does without; leave out one of them."
        )
    how = Rendering(request.chat_template, request.template_options, option="--chat-template", raw=request.raw)
    opened = model.open_tokenizer(how)
    template = opened.tokenizer.chat_template
    assert isinstance(template, str)
    if not pinned_day(template):
        opened.tokenizer.chat_template = pin(template, day)
    return opened


def prepare(model: ClosedModel, opened: OpenedTokenizer, prompts: list[Prompt], request: Request) -> Job:
    """The job of these prompts. Raises UserError for whatever does not fit."""
    asked = how_asked(opened, prompts, request, model=model.name)
    tokens = encode(opened, prompts, goals=[None if each.said else each.goal for each in asked], request=request)
    require_ids_fit(tokens, opened.tokenizer, model.spec, said=model.name)
    given = {name for prompt in prompts for name, value in prompt.columns.items() if value is not None}
    later = [name for name in LATER if name != "logps" and name in {*used([each.sampling for each in asked]), *given}]
    columns = [columns_of(each, num_samples=request.num_samples, later=later) for each in asked]
    more = (*later, *LOGPS) if request.logps else later
    renamed = renamed_columns([prompt.columns for prompt in prompts], columns, said=request.prompts, more=more)
    job = Job(model, opened, prompts, asked, tokens, columns, renamed)
    return job if request.server is None else replace(job, engine=served_engine(request, request.server, job))


def served_engine(request: Request, server: ServerOptions, job: Job) -> OpenedEngine:
    """The engine of a server, to which a package is needed that nothing else needs. Raises UserError for what it cannot do."""
    refuse_chat(request, server, job)
    try:
        from rapo_jax.generate.served_models import open_served, refuse_long
    except ModuleNotFoundError as error:
        if error.name != "httpx2":
            raise
        raise UserError(
            f"{server.access.said} needs the package httpx2, which is not installed: pip install 'rapo_jax[server]'."
        ) from error
    engine = open_served(server, job.opened, model=job.model.name, vocabulary=job.model.spec.V)
    refuse_long(engine, questions(job, request), [prompt.row.place for prompt in job.prompts])
    return engine


def refuse_chat(request: Request, server: ServerOptions, job: Job) -> None:
    """Raises UserError for what the chat template of a server cannot do, which --engine-sends=chat leaves the goal to."""
    if server.sends != "chat":
        return
    remedy = "leave out one of them, or send tokens"
    for option, given in (("--raw", request.raw), ("--chat-template", request.chat_template)):
        if given:
            raise UserError(
                f"--engine-sends=chat leaves the chat template to the server, and {option} does not; {remedy}."
            )
    without = sum(asked.said or asked.goal is None for asked in job.asked)
    if without and job.opened.goal_prompt.baked is not None:
        raise UserError(
            f"--engine-sends=chat: the chat template of {job.model.name} asks for a goal by itself, and "
            f"{counted(without, 'prompt is', 'prompts are')} to be asked without it; send tokens."
        )


def how_asked(opened: OpenedTokenizer, prompts: Sequence[Prompt], request: Request, *, model: str) -> list[Asked]:
    """The goal and the sampling of every prompt: those of the request, else of its row, else of the model."""
    fixed = request.goal is not None or request.no_goal or request.raw
    own = [None if fixed else goal_of_row(prompt.row, opened.goal_prompt.attributes) for prompt in prompts]
    if not request.any_goal:
        given = {prompt.row.place + ": goal": goal for prompt, goal in zip(prompts, own, strict=True)}
        require_on_scale(opened.goal_prompt, {"--goal": request.goal} if fixed else given, model=model)
    otherwise = request.goal if fixed else opened.goal_prompt.baked
    found = [None] * len(prompts)
    if not (request.no_goal or request.raw):
        found = opened.goal_prompt.recognise(prompt.messages for prompt in prompts)
        refuse_second_goal(prompts, found, request)
    return [
        Asked(goal if goal is not None or sentence else otherwise, request.sampling.of(prompt.row), bool(sentence))
        for prompt, goal, sentence in zip(prompts, own, found, strict=True)
    ]


def refuse_second_goal(prompts: Sequence[Prompt], sentences: Sequence[str | None], request: Request) -> None:
    """Raises UserError where --goal would be written into prompts that ask for a goal already."""
    asking = [(prompt.row.place, sentence) for prompt, sentence in zip(prompts, sentences, strict=True) if sentence]
    if asking and request.goal is not None:
        place, sentence = asking[0]
        raise UserError(
            f"{len(asking):,} of {counted(len(prompts), 'prompt')} ask for a goal already (the first: {place}, ...{sentence[-40:]!r}), "
            "and --goal would write a second sentence; leave out --goal, or give the prompts without goals."
        )
    if asking:
        say(f"  note   {counted(len(asking), 'prompt asks', 'prompts ask')} for a goal already, which is left as it is")


def encode(
    opened: OpenedTokenizer, prompts: Sequence[Prompt], *, goals: Sequence[Any], request: Request
) -> list[Int32[np.ndarray, " _"]]:
    if request.raw:
        return raw_tokens(opened.tokenizer, prompts)
    return chat_tokens(opened, prompts, goals=goals, max_length=request.max_prompt_length)


def columns_of(asked: Asked, *, num_samples: int, later: Sequence[str]) -> dict[str, Any]:
    """How a prompt is asked, as columns, with these later settings of `Sampling`. Those of several samples are numbered from 0."""
    goal, sampling = asked.goal, asked.sampling
    written = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
    written |= {name: value_of(sampling, name) for name in later}
    numbered = {"sample": 0} if num_samples > 1 else {}
    return {"goal": list(goal) if isinstance(goal, tuple) else goal, **written, **numbered}


def identity_of(job: Job, request: Request) -> dict[str, Any]:
    """What the answers depend on, by the names that a user knows; of many values the beginning of a SHA-256.

    Batches are not among it: an answer depends on them by rounding at most.
    """
    samplings = [each.sampling for each in job.asked]
    later = used(samplings)
    names = [name for name in vars(samplings[0]) if name not in LATER or name in later]
    settings = {name: [value_of(each, name) for each in samplings] for name in names}
    model = job.model.identity() | {"--dtype": request.dtype} if job.engine is None else job.engine.identity()
    return (
        model
        | {
            "--prompts": digest(
                *(tokens.tobytes() for tokens in job.tokens), str([len(each) for each in job.tokens]).encode()
            ),
            "stop tokens": list(job.opened.stop_tokens),
        }
        | {
            f"--{name.replace('_', '-')}": values[0]
            if values.count(values[0]) == len(values)
            else digest(json.dumps(values).encode())
            for name, values in settings.items()
        }
    )


def value_of(sampling: Sampling, name: str) -> Any:
    """A setting as JSON has it."""
    value = getattr(sampling, name)
    return list(value) if isinstance(value, tuple) else value


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def announce(job: Job, kept: Path, *, num_known: int, num_wanted: int, num_damaged: int) -> None:
    """Says what is not as the command alone would have it."""
    for name, new in job.renamed.items():
        say(f"  note   the prompts' column {name} is kept as {new}")
    if num_damaged:
        say(
            f"  note   {counted(num_damaged, 'damaged line')} of {kept} {'is' if num_damaged == 1 else 'are'} sampled again"
        )
    if num_known:
        say(f"{num_known:,} of {counted(num_wanted, 'answer')} found in {kept}")


def questions(job: Job, request: Request) -> list[Question]:
    """The prompts as an engine is asked them. The chat template of a server asks for a goal as ours does: by a sentence that is
    written into the messages, or, where it writes one by itself, by a variable."""
    goal_prompt = job.opened.goal_prompt
    by_variable = request.server is not None and request.server.sends == "chat" and goal_prompt.baked is not None
    found = []
    for index, (prompt, tokens, asked) in enumerate(zip(job.prompts, job.tokens, job.asked, strict=True)):
        goal = None if asked.said else asked.goal
        variables = dict(request.template_options)
        if by_variable:
            names = goal_prompt.attributes
            variables["goal"] = dict(zip(names, goal, strict=True)) if isinstance(goal, tuple) else goal
        messages = prompt.messages if by_variable else goal_prompt.write(prompt.messages, goal)
        sentence = goal_prompt.sentence(goal) or ""
        found.append(Question(index, tokens, asked.sampling, messages, prompt.tools, variables, sentence))
    return found


def answer_rows(job: Job, store: SampleStore, *, num_samples: int) -> list[dict[str, Any]]:
    """The rows of the answer file, one for each sample, in the order of the prompts."""
    rows = []
    for index, (prompt, asked) in enumerate(zip(job.prompts, job.columns, strict=True)):
        for number in range(num_samples):
            sample = store.known[index, number]
            text = answer_text(job.opened.tokenizer, sample.tokens) if sample.text is None else sample.text
            answer = {"response": text, "finish_reason": sample.finish_reason, "num_tokens": sample.num_tokens}
            answer |= asked if num_samples == 1 else asked | {"sample": number}
            answer |= {} if sample.logps is None else {"tokens": sample.tokens, "logps": sample.logps}
            rows.append(beside(prompt.columns, answer, renamed=job.renamed))
    return rows

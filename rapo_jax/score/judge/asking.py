"""The judge as a scorer: the questions of all rows, asked a few at a time, each once, and the scores by their verdicts.

A reply that gives no verdict is answered with what is wrong with it, once. A response that has no verdict then is counted,
and no file of scores is written: a score made up for it would be trained on.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from rapo_jax.config.tree import Config
from rapo_jax.distributed import say
from rapo_jax.errors import UserError, counted, masked
from rapo_jax.messages import Record
from rapo_jax.score.judge.replies import Reply, key_of, opened_replies
from rapo_jax.score.judge.rubric import (
    COMPARISONS,
    RATINGS,
    BadReply,
    JudgeQuestion,
    Rubric,
    Verdict,
    num_contradictions,
    quoted,
)
from rapo_jax.score.judge.server import JudgeServer
from rapo_jax.score.outside import Found, OutsideScorer
from rapo_jax.score.scorer import JudgeOptions, MakeMesh, ScoreRequest, refuse_options
from rapo_jax.servers.access import usable_key, without_key
from rapo_jax.servers.server import Server, client_of
from rapo_jax.servers.together import Answered, ask_all

CHARACTERS_A_TOKEN = 4  # about, of English
ENOUGH_FAILED = 20  # responses without a verdict, and none with one: the model cannot do this


def open_judge(config: Config, request: ScoreRequest, mesh: MakeMesh) -> OutsideScorer:
    """--scorer=judge. Raises UserError where its server or its model has no name."""
    refuse_options(request, of=())
    options = request.judge
    if options is None or not options.url or not options.model:
        raise UserError("--scorer=judge needs --judge-url (such as http://localhost:8000/v1) and --judge-model.")
    key = usable_key(options.key, key_from=options.key_from, option="--judge-key-from")
    options = replace(options, key=key)
    rubric = COMPARISONS if options.compare else RATINGS
    client_of(options.access)  # raises for what is no address
    origin = {
        "kind": "judge",
        "model": options.model,
        "url": masked(options.url),
        "asked_for": rubric.name,
        "rubric": rubric.digest,
    }
    identity = {"--judge-model": options.model, "--judge-url": masked(options.url), "the rubric": rubric.digest}
    return OutsideScorer(dict(origin), identity, Judge(options, rubric).ask)


@dataclass
class Failures:
    """Responses without a verdict."""

    number: int = 0
    first: str = ""

    def add(self, record: Record, fact: str) -> None:
        self.number += 1
        self.first = self.first or f"row {record.row}: {fact}"


@dataclass
class Judge:
    """Asks a model about rows. `server` and `file` are there while it asks."""

    options: JudgeOptions
    rubric: Rubric
    repaired: int = 0  # verdicts that needed a second question
    failures: Failures = field(default_factory=Failures)

    def ask(self, records: Sequence[Record]) -> Found:
        """The scores of rows, as the last verdict on each comes."""
        places: dict[JudgeQuestion, list[tuple[int, int]]] = {}
        num_questions = []
        for at, record in enumerate(records):
            questions = self.rubric.questions_of(record)
            num_questions.append(len(questions))
            for number, question in enumerate(questions):
                places.setdefault(question, []).append((at, number))
        with opened_replies(self.options.cache) as self.file:
            self.tell_cost(places)
            verdicts: list[dict[int, Verdict]] = [{} for _ in records]
            for answered in self.answers(list(places)):
                for question, verdict in answered:
                    for at, number in places[question]:
                        if isinstance(verdict, Exception):
                            self.failures.add(records[at], str(verdict))
                            continue
                        verdicts[at][number] = verdict
                        if len(verdicts[at]) == num_questions[at]:
                            yield at, self.rubric.scores_of(records[at], in_order(verdicts[at]))
                    self.see_failures(any(verdicts))
        self.tell_end([in_order(each) for each, n in zip(verdicts, num_questions, strict=True) if len(each) == n])

    def answers(self, questions: Sequence[JudgeQuestion]) -> Iterator[Answered[JudgeQuestion, Verdict]]:
        """The verdicts as they come, or why there is none. At most `concurrency` questions are on their way."""
        client, concurrency = client_of(self.options.access), self.options.concurrency
        self.server = JudgeServer(Server(self.options.access, client))
        return ask_all(questions, self.verdict, session=client, concurrency=concurrency, passed_on=BadReply, most=1)

    async def verdict(self, question: JudgeQuestion) -> Verdict:
        """The verdict on a question, which is asked once more where the reply gives none. Raises BadReply."""
        if (kept := self.kept_verdict(question)) is not None:
            return kept
        reply = await self.reply(question)
        try:
            return self.verdict_of(reply)
        except BadReply as bad:
            second = await self.reply(question.again(reply.text, str(bad)))
        verdict = self.verdict_of(second)
        self.repaired += 1
        return verdict

    def kept_verdict(self, question: JudgeQuestion) -> Verdict | None:
        """The verdict that replies of the file gave in the end. Those that gave none are asked for anew."""
        reply = self.file.known.get(self.key(question))
        if reply is None:
            return None
        try:
            return self.verdict_of(reply)
        except BadReply as bad:
            second = self.file.known.get(self.key(question.again(reply.text, str(bad))))
        with suppress(BadReply):
            return None if second is None else self.verdict_of(second)
        return None

    def verdict_of(self, reply: Reply) -> Verdict:
        try:
            return self.rubric.verdict_of(reply.text)
        except BadReply as bad:
            cut = "it was cut off (--judge-max-tokens): " if reply.finish_reason == "length" else ""
            raise BadReply(f"{cut}{bad}: {quoted(without_key(reply.text, self.options.key))}") from bad

    async def reply(self, question: JudgeQuestion) -> Reply:
        """The reply of the server to a question, which is kept."""
        reply = await self.server.reply(self.payload(question), self.rubric.schema())
        self.file.add(self.key(question), reply)
        return reply

    def payload(self, question: JudgeQuestion) -> dict[str, Any]:
        """The request of a question."""
        messages = [{"role": role, "content": content} for role, content in question.messages]
        options = self.options
        return {"model": options.model, "messages": messages, "temperature": 0, "max_tokens": options.max_tokens}

    def key(self, question: JudgeQuestion) -> str:
        return key_of({"url": self.options.url, **self.payload(question)})

    def see_failures(self, any_verdict: bool) -> None:
        """Raises UserError early for a model that gives no verdict at all."""
        if self.failures.number >= ENOUGH_FAILED and not any_verdict:
            raise self.without_scores(f"any of the first {self.failures.number:,} questions")

    def without_scores(self, fact: str) -> UserError:
        return UserError(
            f"--judge-model={self.options.model} gave no verdict on {fact} ({self.failures.first}); the others are kept. Leave "
            "such rows out, or ask another --judge-model."
        )

    def tell_cost(self, questions: Iterable[JudgeQuestion]) -> None:
        """Says what is about to be asked, and about how much that is."""
        asked = list(questions)
        new = [question for question in asked if self.kept_verdict(question) is None]
        tokens = sum(len(content) for question in new for _, content in question.messages) // CHARACTERS_A_TOKEN
        say(
            f"judge  {self.options.model} at {self.options.url}, {self.rubric.name}: {counted(len(asked), 'question')}, of which "
            f"{len(asked) - len(new):,} are answered in {self.options.cache}"
        )
        most = len(new) * self.options.max_tokens
        say(
            f"       {counted(len(new), 'call')}, about {tokens:,} tokens to read and at most {most:,} to write, or twice that"
        )

    def tell_end(self, verdicts: Sequence[Sequence[Verdict]]) -> None:
        """Says what it cost and how well it went. Raises UserError where responses are without a verdict."""
        spent, repeated = self.server.spent, self.server.server.repeated.total()
        tokens = f"{spent.prompt_tokens:,} tokens read and {spent.completion_tokens:,} written"
        tokens += f" (not told of {counted(spent.untold, 'call')})" if spent.untold else ""
        say(f"       {counted(spent.calls, 'call')} answered, {repeated:,} sent again; {tokens}")
        say(
            f"       replies without a verdict: {self.repaired + self.failures.number:,}, of which {self.repaired:,} gave one when asked again"
        )
        if self.rubric is COMPARISONS:
            pairs = sum(len(each) for each in verdicts) // 2
            turned = sum(num_contradictions(each) for each in verdicts)
            say(
                f"       {counted(pairs, 'pair')} in both orders; in {turned:,} the position decided, which counts as a tie"
            )
        if self.failures.number:
            raise self.without_scores(counted(self.failures.number, "question"))


def in_order(verdicts: dict[int, Verdict]) -> list[Verdict]:
    return [verdicts[number] for number in sorted(verdicts)]

"""The engine of an OpenAI-compatible server, such as vLLM or SGLang: a client that asks for one sample at a time.

A prompt is sent as token ids, so that goal and chat template are exactly those of our engine, or as text or messages for
servers that take no ids; what the server says it read is compared with our tokens. One request is one sample, with a seed
of its own, so that what is asked for after a restart, or by a repeated command, is what would have come before.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rapo_jax.borders import parse_json
from rapo_jax.distributed import say
from rapo_jax.errors import UserError, counted
from rapo_jax.generate.engine import Drawn, Question, Sends
from rapo_jax.generate.sampling import stopped_at, used
from rapo_jax.generate.served_replies import ServedAnswer, answer_of
from rapo_jax.generate.store import Key, Sample
from rapo_jax.opened import OpenedTokenizer, answer_text
from rapo_jax.servers.access import Access
from rapo_jax.servers.server import Extra, Refused, Request, Server, client_of
from rapo_jax.servers.together import ask_all

LARGEST = 2**26  # bytes of a reply: a million token ids
ENOUGH_FAILED = 20  # questions without an answer, and none with one: nothing will come of it
# What a request calls the settings of a sample; `seed_of` gives its seed.
SETTINGS = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p"}
# Of vLLM and SGLang alone, with what is off there. Said in every request, or they take them from the model's
# generation_config.json, which our engine does not; a server that does not know one may leave it out where it is off.
THEIR_OWN = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass
class Tally:
    """How a server's answers went."""

    good: int = 0
    compared: int = 0  # prompts whose tokens were those that the server read
    untold: int = 0  # prompts of which the server said nothing
    failed: int = 0
    first: str = ""  # failure

    def fail(self, question: Question, number: int, why: Exception) -> None:
        self.failed += 1
        self.first = self.first or f"prompt {question.index + 1}, sample {number}: {why}"


@dataclass
class ServedEngine:
    """`access.model` is the name of the model there, `most_tokens` what it takes, where that is told. `tally` is of the last
    call."""

    access: Access
    sends: Sends
    opened: OpenedTokenizer
    vocabulary: int
    most_tokens: int | None = None
    tally: Tally = field(default_factory=Tally)

    def identity(self) -> dict[str, Any]:
        """What its samples belong to, by the names that a user knows. The address is not part of it: a server may move."""
        return {"--engine": "a server", "--engine-model": self.access.model, "--engine-sends": self.sends}

    def sample(
        self, questions: Sequence[Question], *, num_samples: int, known: Collection[Key] = ()
    ) -> Iterator[Drawn]:
        """Raises UserError at the end where questions have no answer, and before where the server gives none."""
        tally = self.tally = Tally()
        client, concurrency = client_of(self.access), self.access.concurrency
        server = Server(self.access, client, has_answered=True)  # it has told its models
        todo = ((question, n) for question in questions for n in range(num_samples) if (question.index, n) not in known)
        ask = partial(self.answer, server)
        for answered in ask_all(todo, ask, session=client, concurrency=concurrency, passed_on=Refused):
            samples = [answer for _, answer in answered if isinstance(answer, Sample)]
            for (question, number), answer in answered:
                if isinstance(answer, Exception):
                    tally.fail(question, number, answer)
            tally.good += len(samples)
            yield Drawn(samples, sum(sample.num_tokens for sample in samples), at_once=concurrency)
            if tally.failed >= ENOUGH_FAILED and not tally.good:
                raise self.without_answer(f"any of the first {tally.failed:,} requests")
        self.tell(server)
        if tally.failed:
            raise self.without_answer(counted(tally.failed, "request"))

    async def answer(self, server: Server, asked: tuple[Question, int]) -> Sample:
        """One sample. Raises Refused where the server gives none, or reads another prompt."""
        question, number = asked
        answer = await server.ask(self.request(question, number))
        self.compare(question, answer)
        return self.sample_of(question, number, answer)

    def request(self, question: Question, number: int) -> Request[ServedAnswer]:
        sampling = question.sampling
        payload: dict[str, Any] = {"model": self.access.model}
        payload |= {theirs: getattr(sampling, ours) for ours, theirs in SETTINGS.items()}
        later, chat = used([sampling]), self.sends == "chat"
        payload |= {name: getattr(sampling, name) for name in THEIR_OWN if name in later}
        if sampling.stop:
            payload["stop"] = list(sampling.stop)
        if sampling.logps:
            payload["logprobs"] = True if chat else 1
        extras = {"return_token_ids": True, "stop_token_ids": list(self.opened.stop_tokens)}
        extras |= {name: off for name, off in THEIR_OWN.items() if name not in later}
        if sampling.temperature:
            extras["seed"] = seed_of(sampling.seed, question.index, number)
        if chat:
            payload["messages"] = [message.as_dict() for message in question.messages]
            if question.tools:
                payload["tools"] = parse_json(question.tools, said="its tools")
            if question.variables:
                payload["chat_template_kwargs"] = dict(question.variables)
        elif self.sends == "text":
            payload["prompt"] = self.text_of(question.tokens.tolist())
            extras["add_special_tokens"] = False
        else:
            payload["prompt"] = question.tokens.tolist()
        return Request(
            "chat/completions" if chat else "completions",
            partial(answer_of, vocabulary=self.vocabulary, most=sampling.max_new_tokens, logps=sampling.logps),
            payload,
            tuple(Extra(name, value) for name, value in extras.items()),
            LARGEST,
        )

    def text_of(self, tokens: list[int]) -> str:
        """A prompt as text, special tokens included."""
        text = self.opened.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # a list only for a batch
        return text

    def compare(self, question: Question, answer: ServedAnswer) -> None:
        """Compares what the server read with the prompt. Raises Refused where it is another."""
        ours, theirs = question.tokens.tolist(), answer.prompt
        if theirs is not None:
            if theirs != ours:
                raise Refused(self.difference(question, theirs))
        elif "goal" in question.variables:
            raise Refused(
                "the server does not tell which tokens it read, so that the goal it asks for cannot be compared with the one "
                "asked for (--engine-sends tokens)"
            )
        elif answer.num_read is None:
            self.tally.untold += 1
            return
        elif answer.num_read != len(ours):
            raise Refused(
                f"the server read {answer.num_read:,} tokens where the chat template of MODEL_DIR writes {len(ours):,} "
                "(--engine-sends tokens leaves it no choice)"
            )
        self.tally.compared += 1

    def difference(self, question: Question, theirs: list[int]) -> str:
        ours, said = question.tokens.tolist(), question.sentence
        times = self.text_of(theirs).count(said) if said else 1
        if times != 1:
            return f"the server's chat template asks for the goal {times} times, not once (--engine-sends tokens)"
        at = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
        return (
            f"the server read other tokens, from number {at + 1} on: {self.text_of(theirs[at : at + 8])!r} where the chat "
            f"template of MODEL_DIR writes {self.text_of(ours[at : at + 8])!r} (--engine-sends tokens leaves it no choice)"
        )

    def sample_of(self, question: Question, number: int, answer: ServedAnswer) -> Sample:
        """As our engine has it: the tokens before the first that stops, or up to the one that completes a stop string."""
        stop = question.sampling.stop
        if answer.tokens is None:
            count = answer.num_written
            if count is None:
                count = len(self.opened.tokenizer(answer.text, add_special_tokens=False).input_ids)
            return Sample(question.index, [], answer.finish_reason, number, answer.logps, answer.text, count)
        stops, text = set(self.opened.stop_tokens), None
        end = next((n for n, token in enumerate(answer.tokens) if token in stops), None)
        found = stopped_at(answer.tokens[:end], 0, stop, partial(answer_text, self.opened.tokenizer)) if stop else None
        if found:
            end, text = found
        finish = answer.finish_reason if end is None else "stop"
        logps = None if answer.logps is None else answer.logps[:end]
        return Sample(question.index, answer.tokens[:end], finish, number, logps, text)

    def tell(self, server: Server) -> None:
        """Says how it went, and what the server did not know."""
        again = ", ".join(f"{kind} {number:,}" for kind, number in sorted(server.repeated.items()))
        say(f"  server {counted(server.answered, 'request')} answered, {server.repeated.total():,} sent again" + f" ({again})" * bool(again))  # fmt: skip
        if "seed" in server.not_known:
            say("  note   the server takes no seeds: the same command draws other answers")
        if "stop_token_ids" in server.not_known:
            say("  note   the server takes no stop tokens: answers end where it ends them by itself")
        if self.tally.untold:
            say(
                f"  note   of {counted(self.tally.untold, 'prompt')} the server does not tell what it read: goal and template are not compared"
            )

    def without_answer(self, fact: str) -> UserError:
        return UserError(
            f"{self.access.said} gave no answer to {fact} (the first: {self.tally.first}); the others are kept. Mend what is "
            "said, and run the same command again."
        )


def seed_of(seed: int, prompt: int, sample: int) -> int:
    """The seed of a sample, which follows from these three alone; of 31 bits, since some servers take no more."""
    digest = hashlib.sha256(f"{seed} {prompt} {sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1

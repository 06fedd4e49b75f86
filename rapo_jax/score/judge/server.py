"""One OpenAI-compatible server: a request at a time, asked again where that can help, and every failure in a sentence.

httpx2 and not the openai package: what is sent is one POST, whose reply has to be checked here in any case, and attempts are
counted, which that package makes itself and in silence.
"""

import asyncio
import email.utils
import math
import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx2

from rapo_jax.borders import json_line, parse_json
from rapo_jax.errors import UserError
from rapo_jax.score.judge.replies import Reply
from rapo_jax.score.judge.rubric import BadReply
from rapo_jax.score.scorer import JudgeOptions

ATTEMPTS = 12  # at one question, over about three and a half minutes
ATTEMPTS_AT_FIRST = 3  # while the server has never answered: it is not there
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before the second attempt, doubled after each
LONGEST_ASKED_WAIT = 300.0  # that a server may ask for
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
NOT_THIS_ONE = (400, 413, 422)  # the question is at fault, such as one that is too long
NAMES_OF_FORMS = (b"response_format", b"json_schema")  # by one of which a server says that it takes none
LARGEST = 2**22  # bytes of a reply


class Temporary(Exception):
    """A failure after which the same may succeed. wait: seconds that the server asks for."""

    def __init__(self, fact: str, wait: float = 0.0):
        super().__init__(fact)
        self.wait = wait


@dataclass
class Spent:
    """What a judge cost: requests that were answered, those that were sent again, tokens where the server tells them."""

    calls: int = 0
    repeated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    untold: int = 0  # replies without a number of tokens

    def add(self, reply: Reply) -> None:
        self.calls += 1
        self.untold += reply.prompt_tokens is None
        self.prompt_tokens += reply.prompt_tokens or 0
        self.completion_tokens += reply.completion_tokens or 0


@dataclass
class Server:
    """A connection. `takes_schema` becomes False where the server knows no forms of replies."""

    options: JudgeOptions
    client: httpx2.AsyncClient
    spent: Spent = field(default_factory=Spent)
    has_answered: bool = False
    takes_schema: bool = True

    async def reply(self, payload: dict[str, Any], schema: dict[str, Any]) -> Reply:
        """The reply to a request. Raises BadReply where the server refuses this request, and UserError where it refuses all, or
        does not answer in the end."""
        fact = ""
        for attempt in range(ATTEMPTS):
            asked_wait = 0.0
            try:
                async with asyncio.timeout(self.options.timeout):
                    reply = await self.attempt(payload, schema)
            except TimeoutError:
                fact = f"no answer within {self.options.timeout:g} s (--judge-timeout)"
            except httpx2.RequestError as error:
                fact = self.told(said_of(error))
            except Temporary as error:
                fact, asked_wait = self.told(str(error)), error.wait
            else:
                self.spent.add(reply)
                return reply
            if not self.has_answered and attempt + 1 == ATTEMPTS_AT_FIRST:
                raise UserError(
                    f"--judge-url={self.options.url} does not answer ({fact}); start the server, or correct the address."
                )
            if attempt + 1 < ATTEMPTS:
                self.spent.repeated += 1
                await asyncio.sleep(pause(attempt, asked_wait))
        raise UserError(
            f"--judge-url={self.options.url} gave no answer in {ATTEMPTS} attempts (the last: {fact}); what was answered is "
            "kept: run the same command when it is well again."
        )

    async def attempt(self, payload: dict[str, Any], schema: dict[str, Any]) -> Reply:
        """One attempt at a request."""
        with_schema = self.takes_schema  # others on their way may find out in the meantime that it does not
        sent = json_line(payload | {"response_format": schema} if with_schema else payload).encode()
        async with self.client.stream("POST", "chat/completions", content=sent) as answer:
            body = b""
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > LARGEST:
                    raise Temporary(f"an answer of more than {LARGEST:,} bytes")
        self.has_answered = True
        if answer.status_code in (400, 422) and with_schema and any(name in body for name in NAMES_OF_FORMS):
            self.takes_schema = False
            return await self.attempt(payload, schema)
        if answer.status_code == 200:
            return reply_of(body)
        raise self.refusal(answer.status_code, body, answer.headers.get("retry-after"))

    def refusal(self, status: int, body: bytes, retry_after: str | None) -> Exception:
        """What to do about an answer that is no reply."""
        said = self.told(sentence_of(body))
        fact = f"HTTP {status}" + (f": {said}" if said else "")
        if status == 429 and b"insufficient_quota" in body:
            return UserError(
                f"--judge-url={self.options.url} has no more quota for this key ({fact}); what was answered is kept."
            )
        if status in AGAIN or status > 500:
            return Temporary(fact, seconds_of(retry_after))
        if status in NOT_THIS_ONE:
            return BadReply(f"the server refused the question ({fact})")
        if status in (401, 403):
            return UserError(
                f"--judge-url={self.options.url} refused the key in {self.options.key_from} ({fact}); correct it there."
            )
        return UserError(
            f"--judge-url={self.options.url} answers {fact}; correct the address, or --judge-model={self.options.model}."
        )

    def told(self, text: str) -> str:
        """What a server or a library says, as errors quote it: without the key, and only then cut to 200 characters."""
        return " ".join(without_key(text, self.options.key).split())[:200].rstrip(".")


def without_key(text: str, key: str) -> str:
    """A text without the key, which servers and libraries quote."""
    return text.replace(key, "***") if key else text


def client_of(options: JudgeOptions) -> httpx2.AsyncClient:
    """A client of the server's address. Raises UserError for what is no address."""
    address = options.url.rstrip("/").removesuffix("/chat/completions")
    headers = {"Content-Type": "application/json"}
    if options.key:
        headers["Authorization"] = f"Bearer {options.key}"
    limits = httpx2.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency)
    try:
        url = httpx2.URL(f"{address}/")
        if url.scheme not in ("http", "https") or not url.host:
            raise httpx2.InvalidURL("it needs http:// or https:// and a host")
        return httpx2.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=None)
    except (httpx2.InvalidURL, UnicodeError, ValueError) as error:
        raise UserError(
            f"--judge-url={options.url} is no address ({error}); it must be like http://localhost:8000/v1."
        ) from error


def reply_of(body: bytes) -> Reply:
    """The reply in an answer. Raises Temporary for an answer of another form: something stands between us and the model."""
    try:
        tree = parse_json(body, said="its answer")
        choice = tree["choices"][0]
        text, usage = choice["message"]["content"], tree.get("usage") or {}
        tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except UserError as error:
        raise Temporary(str(error).rstrip(".")) from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Temporary(f"an answer without a reply: {body.decode(errors='replace')}") from error
    if not isinstance(text, (str, type(None))):
        raise Temporary(f"an answer whose reply is no text: {json_line(text)}")
    counts = [count if type(count) is int and count >= 0 else None for count in tokens]
    return Reply(text or "", str(choice.get("finish_reason") or ""), *counts)


def sentence_of(body: bytes) -> str:
    """What a server says about an error."""
    try:
        tree = parse_json(body, said="it")
        error = tree.get("error", tree)
        return str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
    except (UserError, AttributeError):
        return body.decode(errors="replace")


def said_of(error: httpx2.RequestError) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'the connection was lost'}"


def pause(attempt: int, asked_wait: float) -> float:
    """Seconds before the next attempt: doubled each time, at least what the server asks for, and scattered, so that not all
    come back together."""
    ours = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
    return max(ours, min(asked_wait, LONGEST_ASKED_WAIT) * random.uniform(1.0, 1.1))


def seconds_of(retry_after: str | None) -> float:
    """The header Retry-After in seconds: a number, or a date; 0 for what is neither, or past."""
    if not retry_after:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0

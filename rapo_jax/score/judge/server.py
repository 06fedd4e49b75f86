"""One OpenAI-compatible server: a request at a time, asked again where that can help, and every failure in a sentence.

httpx2 and not the openai package: what is sent is one POST, whose reply has to be checked here in any case, and attempts are
counted, which that package makes itself and in silence.
"""

import asyncio
import email.utils
import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx2

from rapo_jax.borders import parse_json
from rapo_jax.errors import UserError, shown
from rapo_jax.score.judge.replies import Reply
from rapo_jax.score.judge.rubric import BadReply
from rapo_jax.score.scorer import JudgeOptions

ATTEMPTS = 12  # at one question, over about three and a half minutes
ATTEMPTS_AT_FIRST = 3  # while the server has never answered: it is not there
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before the second attempt, doubled after each
LONGEST_ASKED_WAIT = 300.0  # that a server may ask for
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
NOT_THIS_ONE = (400, 413, 422)  # the question is at fault, such as one that is too long
LARGEST = 2**22  # bytes of a reply


class Temporary(Exception):
    """A failure after which the same may succeed. wait: seconds that the server asks for."""

    def __init__(self, fact: str, wait: float | None = None):
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
            try:
                async with asyncio.timeout(self.options.timeout):
                    reply = await self.attempt(payload, schema)
            except TimeoutError:
                fact, wait = f"no answer within {self.options.timeout:g} s (--judge-timeout)", None
            except httpx2.TransportError as error:
                fact, wait = said_of(error), None
            except Temporary as error:
                fact, wait = str(error), error.wait
            else:
                self.spent.add(reply)
                return reply
            if not self.has_answered and attempt + 1 == ATTEMPTS_AT_FIRST:
                raise UserError(
                    f"--judge-url={self.options.url} does not answer ({fact}); start the server, or correct the address."
                )
            self.spent.repeated += 1
            await asyncio.sleep(pause(attempt) if wait is None else min(wait, LONGEST_ASKED_WAIT))
        raise UserError(
            f"--judge-url={self.options.url} gave no answer in {ATTEMPTS} attempts (the last: {fact}); what was answered is "
            "kept: run the same command when it is well again."
        )

    async def attempt(self, payload: dict[str, Any], schema: dict[str, Any]) -> Reply:
        """One attempt at a request."""
        sent = payload | {"response_format": schema} if self.takes_schema else payload
        async with self.client.stream("POST", "chat/completions", json=sent) as answer:
            body = b""
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > LARGEST:
                    raise Temporary(f"an answer of more than {LARGEST:,} bytes")
        self.has_answered = True
        if answer.status_code == 400 and self.takes_schema and b"response_format" in body:
            self.takes_schema = False
            return await self.attempt(payload, schema)
        if answer.status_code == 200:
            return reply_of(body)
        raise self.refusal(answer.status_code, body, answer.headers.get("retry-after"))

    def refusal(self, status: int, body: bytes, retry_after: str | None) -> Exception:
        """What to do about an answer that is no reply."""
        said = self.masked(sentence_of(body))
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

    def masked(self, text: str) -> str:
        """A text without the key, which servers quote."""
        return text.replace(self.options.key, "***") if self.options.key else text


def client_of(options: JudgeOptions) -> httpx2.AsyncClient:
    """A client of the server's address. Raises UserError for what is no address."""
    address = options.url.rstrip("/").removesuffix("/chat/completions")
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
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
        raise Temporary(f"an answer without a reply: {shown(body[:80].decode(errors='replace'))}") from error
    if not isinstance(text, (str, type(None))):
        raise Temporary(f"an answer whose reply is no text: {shown(text)}")
    counts = [count if type(count) is int and count >= 0 else None for count in tokens]
    return Reply(text or "", str(choice.get("finish_reason") or ""), *counts)


def sentence_of(body: bytes) -> str:
    """What a server says about an error, of at most 200 characters."""
    try:
        tree = parse_json(body, said="it")
        error = tree.get("error", tree)
        text = str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
    except (UserError, AttributeError):
        text = body[:200].decode(errors="replace")
    return " ".join(text.split())[:200].rstrip(".")


def said_of(error: httpx2.TransportError) -> str:
    text = str(error).strip() or "the connection was lost"
    return f"{type(error).__name__}: {text}"[:200].rstrip(".")


def pause(attempt: int) -> float:
    """Seconds before the next attempt: doubled each time, and scattered, so that not all come back together."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)


def seconds_of(retry_after: str | None) -> float | None:
    """The header Retry-After in seconds: a number, or a date."""
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None

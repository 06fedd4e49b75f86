"""One OpenAI-compatible server: a request at a time, asked again where that can help, and every failure in a sentence.

httpx2 and not the openai package: what is sent is one request, whose reply has to be checked here in any case, and attempts
are counted, which that package makes itself and in silence.
"""

import asyncio
import email.utils
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx2

from rapo_jax.borders import json_line, parse_json
from rapo_jax.distributed import say
from rapo_jax.errors import UserError
from rapo_jax.servers.access import Access

ATTEMPTS = 12  # at one request, over about three and a half minutes
ATTEMPTS_AT_FIRST = 3  # while the server has never answered: it is not there
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before the second attempt, doubled after each
LONGEST_ASKED_WAIT = 300.0  # that a server may ask for
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
AWAY = (
    429,
    502,
    503,
    504,
    529,
)  # those of them that say nothing of the request: the server has no time, or is not there yet
NOT_THIS_ONE = (400, 413, 422)  # the request is at fault, such as one that is too long
LARGEST = 2**22  # bytes of a reply
SAY_AFTER = 5.0  # seconds that a server is away before a line says so

Found = TypeVar("Found")


class Temporary(Exception):
    """A failure after which the same may succeed. `kind` is what it is counted as. `wait`: seconds that the server asks for.
    `away`: it says nothing of this request."""

    def __init__(self, fact: str, *, kind: str = "malformed", wait: float = 0.0, away: bool = False):
        super().__init__(fact)
        self.kind, self.wait, self.away = kind, wait, away


class Refused(Exception):
    """The server answers others, and not this request. The message says why."""


class Unknown(UserError):
    """The server knows no such address, or no such model."""


@dataclass(frozen=True)
class Extra:
    """A field of a request that a server may not know; it is left out then. `words`: by one of which the server says so."""

    name: str
    value: Any
    words: tuple[str, ...] = ()

    def is_meant(self, body: bytes) -> bool:
        return any(word.encode() in body for word in (self.name, *self.words))


@dataclass(frozen=True)
class Request(Generic[Found]):
    """What is sent to an address below the server's, and what reads the reply, which may raise Temporary. `payload` None asks
    with GET. `largest`: bytes of a reply."""

    path: str
    read: Callable[[bytes], Found]
    payload: Mapping[str, Any] | None = None
    extras: tuple[Extra, ...] = ()
    largest: int = LARGEST

    def content(self, without: set[str]) -> bytes | None:
        if self.payload is None:
            return None
        more = {extra.name: extra.value for extra in self.extras if extra.name not in without}
        return json_line({**self.payload, **more}).encode()


@dataclass(frozen=True)
class Reply:
    """What came over the wire."""

    status: int
    body: bytes
    retry_after: str | None


@dataclass
class Server:
    """A connection. `not_known` are the names of extras that the server does not know, `repeated` counts what was sent again
    by the reason, `answered` the replies. `lost`: since when the server is away."""

    access: Access
    client: httpx2.AsyncClient
    answered: int = 0
    repeated: Counter[str] = field(default_factory=Counter)
    not_known: set[str] = field(default_factory=set)
    has_answered: bool = False
    lost: float | None = None
    said_lost: bool = False
    back: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, request: Request[Found]) -> Found:
        """What the reply to a request says. Raises Refused where the server answers others and not this one, and UserError
        where it refuses all, or does not answer in the end."""
        answered_before, attempt, times_away = self.answered, 0, 0
        while True:
            try:
                async with asyncio.timeout(self.access.timeout):
                    found = await self.attempt(request)
            except TimeoutError:
                fact = f"no answer within {self.access.timeout:g} s ({self.access.prefix}-timeout)"
                error = Temporary(fact, kind="no answer in time")
            except httpx2.RequestError as lost:
                away = isinstance(lost, httpx2.ConnectError | httpx2.ConnectTimeout)
                error = Temporary(said_of(lost), kind="no connection" if away else "connection lost", away=away)
            except Temporary as temporary:
                error = temporary
            else:
                self.is_back()
                self.answered += 1
                return found
            fact = self.access.told(str(error))
            if not self.has_answered and attempt + 1 >= ATTEMPTS_AT_FIRST:
                raise UserError(
                    f"{self.access.said} does not answer ({fact}); start the server, or correct the address."
                )
            waits = error.away and self.waits_for_it(fact)
            attempt, times_away = (attempt, times_away + 1) if waits else (attempt + 1, 0)
            if attempt == ATTEMPTS:
                raise self.given_up(fact, others=self.answered > answered_before)
            self.repeated[error.kind] += 1
            seconds = pause((times_away or attempt) - 1, error.wait)
            if self.said_lost and not error.wait:
                await self.until_back(seconds)
            else:
                await asyncio.sleep(seconds)

    async def until_back(self, seconds: float) -> None:
        """Waits so long, or until somebody else has an answer, and then a moment, so that not all come back together."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.back.wait()
                await asyncio.sleep(random.uniform(0, FIRST_WAIT))

    def given_up(self, fact: str, *, others: bool) -> Exception:
        if others:
            return Refused(f"the server answered others and not this one, in {ATTEMPTS} attempts (the last: {fact})")
        return UserError(
            f"{self.access.said} gave no answer in {ATTEMPTS} attempts (the last: {fact}); what was answered is "
            "kept: run the same command when it is well again."
        )

    def waits_for_it(self, fact: str) -> bool:
        """Whether a server that is away is waited for. Raises UserError where it was for too long."""
        if not (self.has_answered and self.access.patience):
            return False
        self.lost = self.lost or time.monotonic()
        self.back.clear()
        seconds, most = time.monotonic() - self.lost, self.access.patience
        if seconds > most:
            raise UserError(
                f"{self.access.said} has been away for {seconds:.0f} s ({fact}; {self.access.prefix}-patience); what was answered "
                "is kept: run the same command when it is well again."
            )
        if seconds > SAY_AFTER and not self.said_lost:
            self.said_lost = True
            say(f"  the server is away ({fact}); waiting for it, for at most {most:g} s")
        return True

    def is_back(self) -> None:
        if self.said_lost and self.lost:
            say(f"  the server answers again, after {time.monotonic() - self.lost:.0f} s")
        self.lost, self.said_lost = None, False
        self.back.set()

    async def attempt(self, request: Request[Found]) -> Found:
        """One attempt at a request, without the extras that the server does not know."""
        without = set(self.not_known)  # others on their way may find out more in the meantime
        reply = await self.send(request, without)
        while reply.status in (400, 422):
            body = reply.body
            doubted = {each.name for each in request.extras if each.name not in without and each.is_meant(body)}
            if not doubted:
                break
            without |= doubted
            reply = await self.send(request, without)
        if reply.status != 200:
            raise self.refusal(reply)
        self.not_known |= without
        return request.read(reply.body)

    async def send(self, request: Request[Any], without: set[str]) -> Reply:
        method, content = "GET" if request.payload is None else "POST", request.content(without)
        async with self.client.stream(method, request.path, content=content) as answer:
            body = bytearray()
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > request.largest:
                    raise Temporary(f"an answer of more than {request.largest:,} bytes")
        self.has_answered = True
        return Reply(answer.status_code, bytes(body), answer.headers.get("retry-after"))

    def refusal(self, reply: Reply) -> Exception:
        """What to do about an answer that is no reply."""
        access, status = self.access, reply.status
        said = access.told(sentence_of(reply.body))
        fact = f"HTTP {status}" + (f": {said}" if said else "")
        if status == 429 and b"insufficient_quota" in reply.body:
            return UserError(f"{access.said} has no more quota for this key ({fact}); what was answered is kept.")
        if status in AGAIN or status > 500:
            wait = seconds_of(reply.retry_after)
            return Temporary(fact, kind=f"HTTP {status}", wait=wait, away=status in AWAY)
        if status in NOT_THIS_ONE:
            return Refused(f"the server refused the question ({fact})")
        if status in (401, 403):
            if not access.key:
                return UserError(
                    f"{access.said} needs a key ({fact}); put it in the environment variable {access.key_from}, or name another "
                    f"with {access.prefix}-key-from."
                )
            return UserError(f"{access.said} refused the key in {access.key_from} ({fact}); correct it there.")
        model = f", or {access.prefix}-model={access.model}" if access.model else ""
        kind = Unknown if status in (404, 405) else UserError
        return kind(f"{access.said} answers {fact}; correct the address{model}.")


def client_of(access: Access) -> httpx2.AsyncClient:
    """A client of the server's address. Raises UserError for what is no address."""
    address = access.url.rstrip("/").removesuffix("/chat/completions").removesuffix("/completions")
    headers = {"Content-Type": "application/json"}
    if access.key:
        headers["Authorization"] = f"Bearer {access.key}"
    limits = httpx2.Limits(max_connections=access.concurrency, max_keepalive_connections=access.concurrency)
    try:
        url = httpx2.URL(f"{address}/")
        if url.scheme not in ("http", "https") or not url.host:
            raise httpx2.InvalidURL("it needs http:// or https:// and a host")
        return httpx2.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=None)
    except (httpx2.InvalidURL, UnicodeError, ValueError) as error:
        raise UserError(f"{access.said} is no address ({error}); it must be like http://localhost:8000/v1.") from error


def opened_reply(body: bytes) -> dict[str, Any]:
    """The object that a server answers with. Raises Temporary for anything else: something stands between us and the model."""
    try:
        tree = parse_json(body, said="its answer")
    except UserError as error:
        raise Temporary(str(error).rstrip(".")) from error
    if not isinstance(tree, dict):
        raise Temporary(f"an answer without a reply: {body.decode(errors='replace')}")
    return tree


@dataclass(frozen=True)
class Choice:
    """The one choice of a reply, the whole of which it is a part, and the numbers of tokens that the model read and wrote,
    None where they are not told."""

    fields: dict[str, Any]
    whole: dict[str, Any]
    num_read: int | None
    num_written: int | None


def first_choice(body: bytes) -> Choice:
    """The choice of a reply. Raises Temporary for an answer of another form."""
    whole = opened_reply(body)
    try:
        fields, usage = dict(whole["choices"][0]), whole.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Temporary(f"an answer without a reply: {body.decode(errors='replace')}") from error
    return Choice(fields, whole, *(count if type(count) is int and count >= 0 else None for count in counts))


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


def pause(tries: int, asked_wait: float) -> float:
    """Seconds before the next attempt: doubled each time, at least what the server asks for, and scattered, so that not all
    come back together."""
    ours = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(tries, 16)) * random.uniform(0.5, 1.0)
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

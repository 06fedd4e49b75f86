"""What a judge's server is asked, and its replies; how a server is asked at all is in rapo_jax/servers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rapo_jax.borders import json_line
from rapo_jax.score.judge.replies import Reply
from rapo_jax.score.judge.rubric import BadReply
from rapo_jax.servers.server import Extra, Refused, Request, Server, Temporary, first_choice

NAMES_OF_FORMS = ("json_schema",)  # by which, too, a server says that it takes no response_format


@dataclass
class Spent:
    """What a judge cost: requests that were answered, tokens where the server tells them."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    untold: int = 0  # replies without a number of tokens

    def add(self, reply: Reply) -> None:
        self.calls += 1
        self.untold += reply.prompt_tokens is None
        self.prompt_tokens += reply.prompt_tokens or 0
        self.completion_tokens += reply.completion_tokens or 0


@dataclass
class JudgeServer:
    """A server that is asked for verdicts, and what that cost so far."""

    server: Server
    spent: Spent = field(default_factory=Spent)

    async def reply(self, payload: Mapping[str, Any], schema: dict[str, Any]) -> Reply:
        """The reply to a request. Raises BadReply where the server refuses this request, and UserError where it refuses all, or
        does not answer in the end."""
        extras = (Extra("response_format", schema, NAMES_OF_FORMS),)
        try:
            reply = await self.server.ask(Request("chat/completions", reply_of, payload, extras))
        except Refused as refused:
            raise BadReply(str(refused)) from refused
        self.spent.add(reply)
        return reply


def reply_of(body: bytes) -> Reply:
    """The reply in an answer. Raises Temporary for an answer of another form."""
    choice = first_choice(body)
    try:
        text = choice.fields["message"]["content"]
    except (KeyError, TypeError) as error:
        raise Temporary(f"an answer without a reply: {body.decode(errors='replace')}") from error
    if not isinstance(text, (str, type(None))):
        raise Temporary(f"an answer whose reply is no text: {json_line(text)}")
    ended = str(choice.fields.get("finish_reason") or "")
    return Reply(text or "", ended, choice.num_read, choice.num_written)

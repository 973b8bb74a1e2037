"""LLM client: asks a model behind an OpenAI-compatible endpoint for one decision.

The endpoint is as untrusted as its text. One deadline covers the whole call, however slowly the bytes arrive; the
response is limited to a few kilobytes; redirects are not followed, because they would send the key to another host.
Every failure becomes `ModelUnavailable` with a message of our own that repeats nothing the endpoint sent, so that an
endpoint that echoes the key cannot get it into a log or the journal.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, Field

from control_plane.addresses import is_in_the_clear, is_loopback, plain_url
from control_plane.agent.asking.answers import (
    MAX_ANSWER_BYTES,
    OPINION_SCHEMA,
    UNREADABLE,
    Opinion,
    actions_of,
    check_no_key_twice,
    json_schema_of,
    parse_proposal,
)
from control_plane.agent.asking.prompt import messages, review_messages
from control_plane.agent.grants import Proposal
from control_plane.agent.policy import AgentBounds, Observation
from control_plane.core.model.errors import Invalid, Unavailable
from control_plane.core.model.intents.grants import NO_GRANTS, Grants

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = "o4-mini"

MAX_ANSWER_TOKENS = 2000
"""Bounds what one decision may cost. Reasoning models think inside this budget, so it is not a few dozen."""

DEFAULT_TIMEOUT_S = 30.0
"""A decision that takes longer is stale when it arrives; training does not wait for it either way."""

FENCED = re.compile(r"\s*```(?:json)?\s*(\{.*\})\s*```\s*", re.DOTALL)
HTTP_MEANINGS = {401: "the API key was rejected", 403: "the API key was rejected", 429: "rate limit reached"}
NO_JSON_MODE = (400, 422)
TOKENS_AROUND = 200
"""Tokens that the endpoint may count around the messages; a message has at most one token per byte of UTF-8."""


class ModelUnavailable(Unavailable):
    """The model gave no usable decision: timeout, connection error, refusal, or an invalid answer."""

    slug = "model-unavailable"


class BudgetSpent(ModelUnavailable):
    """The model was not asked: a budget of the run's agent is used up."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address and credentials of a model. Built by `endpoint`, which checks them."""

    base_url: str
    model: str
    key: str = field(repr=False)
    timeout_s: float = DEFAULT_TIMEOUT_S


def endpoint(environ: Mapping[str, str], timeout_s: float = DEFAULT_TIMEOUT_S) -> Endpoint | None:
    """Return the endpoint configured in the environment, or None without `OPENAI_API_KEY`. Raises `Invalid`."""
    key = environ.get("OPENAI_API_KEY", "").strip()
    if not key:
        return None
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise Invalid("OPENAI_API_KEY contains invalid characters; expected one line of printable ASCII without spaces")
    base_url = environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
    check_base_url(base_url)
    return Endpoint(base_url, environ.get("STEERWAY_AGENT_MODEL") or DEFAULT_MODEL, key, timeout_s)


def check_base_url(base_url: str) -> None:
    """Raise `Invalid` unless the URL is https, or http on the loopback: the key must not be sent in the clear."""
    allowed = "use https://host/path, or http://127.0.0.1:port/path on this machine, without user or query"
    parts = plain_url(base_url)
    if parts is None:
        raise Invalid(f"OPENAI_BASE_URL is not a plain URL; {allowed}")
    host = parts.hostname or ""
    if is_in_the_clear(parts):
        raise Invalid(f"OPENAI_BASE_URL would send the key in the clear to {host}; {allowed}")
    if _is_link_local(host):
        raise Invalid(f"OPENAI_BASE_URL points to the link-local address {host}, a cloud metadata service; {allowed}")


def _is_link_local(host: str) -> bool:
    try:
        return ip_address(host).is_link_local
    except ValueError:
        return False


class Budget(Protocol):
    """Budget of the calls, see `ledger.Ledger`."""

    @property
    def reason(self) -> str | None:
        """Why the last call of `reserve` returned None."""
        ...

    def reserve(self, max_prompt_tokens: int, max_completion_tokens: int) -> Any:
        """Reserve the most that one call can take, durably; None if the budget is used up."""
        ...

    def settle(self, reservation: Any, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Settle a call with the usage that the endpoint reported."""
        ...


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0, le=10**9)
    completion_tokens: int = Field(ge=0, le=10**9)


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    """Schema of the part of a chat completion that is read. The SDK builds its own types without validation."""

    choices: list[_Choice] = Field(min_length=1)


class _Bill(BaseModel):
    usage: _Usage


class _Turned(Exception):
    """The endpoint answered with another status than 200, or compressed; its body is not read."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class ChatModel:
    """Client of one endpoint. Stateless, but for the answer formats that the endpoint supports."""

    def __init__(self, where: Endpoint, budget: Budget | None = None) -> None:
        import openai  # takes a second: imported only when a model is used, and not within a call's deadline

        self._sdk = openai
        self._where, self._budget = where, budget
        self._formats = ["json_schema", "json_object"]

    @property
    def name(self) -> str:
        """Return the model's name, shortened and made printable."""
        return re.sub(r"[^\w.:/-]", "", self._where.model)[:40] or "model"

    def propose(self, seen: Observation, bounds: AgentBounds, grants: Grants = NO_GRANTS) -> Proposal:
        """Ask for one decision. Raises `ModelUnavailable` within the endpoint's timeout, whatever the endpoint does."""
        text = self.ask(messages(seen, bounds, grants), json_schema_of(seen, grants))
        try:
            return parse_proposal(text, seen, grants, self.without_key)
        except UNREADABLE:
            allowed = "|".join(actions_of(seen, grants))
            raise ModelUnavailable(f'{self.name} did not answer {{"action": "{allowed}", "reason": "..."}}') from None

    def review(self, seen: Observation, bounds: AgentBounds, proposed: str) -> Opinion:
        """Ask for a second opinion about a change, told in words of ours. Raises `ModelUnavailable` as `propose`."""
        text = self.ask(review_messages(seen, bounds, proposed), OPINION_SCHEMA)
        try:
            check_no_key_twice(text)
            opinion = Opinion.model_validate_json(text)
        except UNREADABLE:
            raise ModelUnavailable(f'{self.name} did not answer {{"agree": true|false, "reason": "..."}}') from None
        return Opinion(agree=opinion.agree, reason=self.without_key(opinion.reason))

    def ask(self, chat: list[dict[str, str]], schema: dict[str, Any]) -> str:
        """Return the text of the answer to a chat. Raises `ModelUnavailable` within the endpoint's timeout."""
        try:
            body = asyncio.run(self._ask_in_time(chat, schema))
        except ModelUnavailable:
            raise
        except Exception as error:  # nothing that a hostile endpoint provokes may end the loop
            raise ModelUnavailable(self._what_happened(error)) from None
        text = self._read(body)
        fenced = FENCED.fullmatch(text)
        return fenced[1] if fenced else text

    async def _ask_in_time(self, chat: list[dict[str, str]], schema: dict[str, Any]) -> bytes:
        async with asyncio.timeout(self._where.timeout_s):
            return await self._ask(chat, schema)

    async def _ask(self, chat: list[dict[str, str]], schema: dict[str, Any]) -> bytes:
        while True:
            try:
                return await self._paid(chat, schema)
            except Exception as error:
                turned = _turned(error)
                if not self._formats or turned is None or turned.status not in NO_JSON_MODE:
                    raise
            # An older endpoint lacks this `response_format`; the prompt asks for JSON as well.
            self._formats.pop(0)

    async def _paid(self, chat: list[dict[str, str]], schema: dict[str, Any]) -> bytes:
        """Make one call within the budget. A call that fails counts with the most that it can have cost."""
        if self._budget is None:
            return await self._complete(chat, schema)
        most = sum(len(message["content"].encode()) for message in chat) + TOKENS_AROUND
        reservation = self._budget.reserve(most, MAX_ANSWER_TOKENS)
        if reservation is None:
            raise BudgetSpent(self._budget.reason or "the agent's budget is used up")
        body = await self._complete(chat, schema)
        try:
            usage = _Bill.model_validate_json(body).usage
        except UNREADABLE:
            return body  # no bill: the reservation stays, and counts in full
        self._budget.settle(reservation, usage.prompt_tokens, usage.completion_tokens)
        return body

    async def _complete(self, chat: list[dict[str, str]], schema: dict[str, Any]) -> bytes:
        where = self._where
        on_loopback = is_loopback(urlsplit(where.base_url).hostname or "")
        http = self._sdk.DefaultAsyncHttpxClient(
            follow_redirects=False,
            trust_env=not on_loopback,  # a proxy would see the unencrypted loopback traffic
            timeout=where.timeout_s,
            event_hooks={"response": [_turn_away]},
        )
        request: dict[str, Any] = {
            "model": where.model,
            "messages": chat,
            "max_completion_tokens": MAX_ANSWER_TOKENS,
            "extra_headers": {"Accept-Encoding": "identity"},
        }
        if self._formats:
            named = {"name": "answer", "schema": schema, "strict": False}
            chosen = {"type": self._formats[0]}
            request["response_format"] = chosen | ({"json_schema": named} if chosen["type"] == "json_schema" else {})
        async with (
            self._sdk.AsyncOpenAI(
                api_key=where.key, base_url=where.base_url, http_client=http, max_retries=0
            ) as client,
            client.chat.completions.with_streaming_response.create(**request) as response,
        ):
            return await _bounded(response.iter_bytes(4096))

    def _what_happened(self, error: Exception) -> str:
        turned = _turned(error)
        if turned is not None:
            meaning = HTTP_MEANINGS.get(turned.status, "not a usable response")
            return f"{self.name} answered HTTP {turned.status}: {meaning}"
        if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
            return f"{self.name} did not answer within {self._where.timeout_s:g} s"
        if type(error).__name__ == "APIConnectionError":
            return f"{self.name} could not be reached"
        return f"the request to {self.name} failed ({type(error).__name__})"

    def _read(self, body: bytes) -> str:
        try:
            check_no_key_twice(body)
            message = _Completion.model_validate_json(body).choices[0].message
        except UNREADABLE:
            raise ModelUnavailable(f"{self.name} did not answer with a chat completion") from None
        if message.refusal:
            raise ModelUnavailable(f"{self.name} declined to answer")
        return message.content or ""

    def without_key(self, value: Any) -> Any:
        """Mask the API key wherever an answer repeats it."""
        if isinstance(value, dict):
            return {self.without_key(name): self.without_key(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self.without_key(item) for item in value]
        return value.replace(self._where.key, "***") if isinstance(value, str) else value


async def _turn_away(response: Any) -> None:
    """Reject a response before its body is read, unless it is a 200 without compression (decompression bombs)."""
    packed = response.headers.get("content-encoding", "identity") != "identity"
    if response.status_code != 200 or packed:
        raise _Turned(response.status_code)


async def _bounded(chunks: Any) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ModelUnavailable(f"the response exceeds {MAX_ANSWER_BYTES // 1024} KiB")
    return bytes(body)


def _turned(error: BaseException | None) -> _Turned | None:
    """Return the endpoint's status from the exceptions that the SDK wrapped around it, if any."""
    while error is not None:
        if isinstance(error, _Turned):
            return error
        error = error.__cause__
    return None

"""LLM client: asks a model behind an OpenAI-compatible endpoint for one decision.

The endpoint is as untrusted as its text. One deadline covers the whole call, however slowly the bytes arrive; the
response is limited to a few kilobytes; redirects are not followed, because they would send the key to another host.
Every failure becomes `ModelUnavailable` with a message of our own that repeats nothing the endpoint sent, so that an
endpoint that echoes the key cannot get it into a log or the journal.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from control_plane.addresses import is_in_the_clear, is_loopback, plain_url
from control_plane.agent.grants import Proposal, Run, Scale, SetTo
from control_plane.agent.policy import AgentAction, AgentBounds, Decision, Observation
from control_plane.agent.prompt import messages
from control_plane.core.model.errors import Invalid, Unavailable
from control_plane.core.model.intent_base import Message
from control_plane.core.model.intents.grants import MAX_SHOWN_CHARS, NO_GRANTS, Grants
from control_plane.core.model.values import MAX_ARGUMENTS, Finite, KnobValue, Scalar

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = "o4-mini"

MAX_ANSWER_BYTES = 64 * 1024
"""A decision takes a few hundred bytes; the rest of a completion is bookkeeping."""

MAX_ANSWER_TOKENS = 2000
"""AgentBounds what one decision may cost. Reasoning models think inside this budget, so it is not a few dozen."""

DEFAULT_TIMEOUT_S = 30.0
"""A decision that takes longer is stale when it arrives; training does not wait for it either way."""

FENCED = re.compile(r"\s*```(?:json)?\s*(\{.*\})\s*```\s*", re.DOTALL)
HTTP_MEANINGS = {401: "the API key was rejected", 403: "the API key was rejected", 429: "rate limit reached"}
NO_JSON_MODE = (400, 422)


class ModelUnavailable(Unavailable):
    """The model gave no usable decision: timeout, connection error, refusal, or an invalid answer."""

    slug = "model-unavailable"


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


class Answer(Message):
    """Schema of the model's answer; any other key is rejected."""

    action: AgentAction
    reason: str = Field(max_length=MAX_ANSWER_BYTES)


Told = Annotated[str, Field(min_length=1, max_length=MAX_SHOWN_CHARS)]
Why = Annotated[str, Field(max_length=MAX_ANSWER_BYTES)]


class _Tuned(Message):
    action: Literal["double", "halve", "keep"]
    reason: Why = ""

    def proposal(self) -> Proposal:
        return Decision(AgentAction(self.action), self.reason)


class _Scaled(Message):
    action: Literal["scale"]
    knob: Told
    factor: Finite
    reason: Why = ""

    def proposal(self) -> Proposal:
        return Scale(self.knob, self.factor, self.reason)


class _Set(Message):
    action: Literal["set"]
    knob: Told
    value: KnobValue
    reason: Why = ""

    def proposal(self) -> Proposal:
        return SetTo(self.knob, self.value, self.reason)


class _Ran(Message):
    action: Literal["run"]
    name: Told
    arguments: dict[Told, Scalar] = Field(default={}, max_length=MAX_ARGUMENTS)
    reason: Why = ""

    def proposal(self) -> Proposal:
        return Run(self.name, self.arguments, self.reason)


GRANTED: TypeAdapter[_Tuned | _Scaled | _Set | _Ran] = TypeAdapter(
    Annotated[_Tuned | _Scaled | _Set | _Ran, Field(discriminator="action")]
)
"""Schema of the answer if knobs or actions were granted; any other key is rejected here, too."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    """Schema of the part of a chat completion that is read. The SDK builds its own types without validation."""

    choices: list[_Choice] = Field(min_length=1)


class _Turned(Exception):
    """The endpoint answered with another status than 200, or compressed; its body is not read."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class ChatModel:
    """Client of one endpoint. Stateless, but for whether the endpoint supports JSON mode."""

    def __init__(self, where: Endpoint) -> None:
        import openai  # takes a second: imported only when a model is used, and not within a call's deadline

        self._sdk = openai
        self._where = where
        self._json_mode = True

    @property
    def name(self) -> str:
        """Return the model's name, shortened and made printable."""
        return re.sub(r"[^\w.:/-]", "", self._where.model)[:40] or "model"

    def propose(self, seen: Observation, bounds: AgentBounds, grants: Grants = NO_GRANTS) -> Proposal:
        """Ask for one decision. Raises `ModelUnavailable` within the endpoint's timeout, whatever the endpoint does."""
        chat = messages(seen, bounds, grants)
        try:
            body = asyncio.run(self._ask_in_time(chat))
        except ModelUnavailable:
            raise
        except Exception as error:  # nothing that a hostile endpoint provokes may end the loop
            raise ModelUnavailable(self._what_happened(error)) from None
        return self._parse(self._read(body), grants)

    async def _ask_in_time(self, chat: list[dict[str, str]]) -> bytes:
        async with asyncio.timeout(self._where.timeout_s):
            return await self._ask(chat)

    async def _ask(self, chat: list[dict[str, str]]) -> bytes:
        try:
            return await self._complete(chat)
        except Exception as error:
            turned = _turned(error)
            if not self._json_mode or turned is None or turned.status not in NO_JSON_MODE:
                raise
        self._json_mode = False  # an older endpoint lacks `response_format`; the prompt asks for JSON as well
        return await self._complete(chat)

    async def _complete(self, chat: list[dict[str, str]]) -> bytes:
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
        if self._json_mode:
            request["response_format"] = {"type": "json_object"}
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
        except (ValidationError, ValueError, RecursionError):
            raise ModelUnavailable(f"{self.name} did not answer with a chat completion") from None
        if message.refusal:
            raise ModelUnavailable(f"{self.name} declined to answer")
        return message.content or ""

    def _parse(self, text: str, grants: Grants) -> Proposal:
        fenced = FENCED.fullmatch(text)
        text = fenced[1] if fenced else text
        try:
            check_no_key_twice(text)
            if grants.widen:
                answer = GRANTED.validate_json(text)
                return GRANTED.validate_python(self._without_key(answer.model_dump())).proposal()
            tuned = Answer.model_validate_json(text)
            return Decision(tuned.action, self._without_key(tuned.reason))
        except (ValidationError, ValueError, RecursionError):
            allowed = "double|halve|keep" + ("|scale|set|run" if grants.widen else "")
            raise ModelUnavailable(f'{self.name} did not answer {{"action": "{allowed}", "reason": "..."}}') from None

    def _without_key(self, value: Any) -> Any:
        """Mask the API key wherever an answer repeats it."""
        if isinstance(value, dict):
            return {self._without_key(name): self._without_key(item) for name, item in value.items()}
        return value.replace(self._where.key, "***") if isinstance(value, str) else value


def check_no_key_twice(text: str | bytes) -> None:
    """Raise `ValueError` for duplicate keys in this JSON, which parsers resolve differently."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("duplicate key")
        return dict(pairs)

    json.loads(text, object_pairs_hook=once)


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

"""Webhooks: messages to other services when an alert is raised or has cleared.

Where to is read from `webhooks.json` in the gateway's home (mode 0600), never from a run's config: who may submit a run
may not make the gateway send requests. A message is sent until it was taken (at least once, in order for each webhook),
with growing pauses; how far each webhook has come is kept in a file, so that a restarted gateway continues there.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError, field_validator

from control_plane.api.messages import MAX_TAIL_ENTRIES, RunSummary
from control_plane.api.ports import OperatorPort
from control_plane.api.sentences import describe_alert
from control_plane.config import LOOPBACK_NAMES
from control_plane.core.model.errors import Damaged, SteerwayError
from control_plane.core.model.health import AlertCleared, AlertRaised, Level
from control_plane.core.model.records import Entry
from control_plane.storage.private import make_folder, replace_file, sync_names

LOOK_EVERY_S = 2.0
TIMEOUT_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
GIVE_UP_AFTER_S = 24 * 3600.0
"""A message that nobody has taken for a day is old news; it is left out, and the gateway's log says so."""

TRY_LATER = (408, 425, 429)
"""Client errors that ask for a repetition; others, and redirects, mean that the message will never be taken."""

ENDED = ("finished", "stopped", "failed")
_LEVELS: Mapping[Level, int] = {"info": 0, "warning": 1, "critical": 2}

log = logging.getLogger(__name__)


class Webhook(BaseModel):
    """One receiver. `format`: `slack` sends the sentence alone, which Slack, Mattermost and others show as it is.

    `secret` signs each message. Plain http is refused unless the receiver is this machine, or `insecure` is set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    url: SecretStr
    secret: SecretStr = SecretStr("")
    format: Literal["json", "slack"] = "json"
    level: Level = "warning"
    cleared: bool = True
    insecure: bool = False

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: SecretStr) -> SecretStr:
        parts = urlsplit(url.get_secret_value())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give a URL that begins with https://")
        return url

    def check_transport(self) -> None:
        """Raise `ValueError` if the message would go over the network in the clear."""
        parts = urlsplit(self.url.get_secret_value())
        if parts.scheme == "http" and parts.hostname not in LOOPBACK_NAMES and not self.insecure:
            raise ValueError(f"webhook {self.name}: plain http to another machine; use https, or set insecure to true")

    def wants(self, record: object) -> bool:
        """Return whether a message is sent about this record."""
        if isinstance(record, AlertRaised):
            return _LEVELS[record.alert.level] >= _LEVELS[self.level]
        return isinstance(record, AlertCleared) and self.cleared


WEBHOOKS: TypeAdapter[tuple[Webhook, ...]] = TypeAdapter(tuple[Webhook, ...])


def read_webhooks(path: Path) -> tuple[Webhook, ...]:
    """Return the webhooks of a file; none if there is no file.

    Raises `Damaged` if it cannot be used, without quoting it: it holds secrets.
    """
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError):
        raise Damaged(f"{path} cannot be read; no webhook is used") from None
    if mode & 0o077:
        raise Damaged(f"{path} holds secrets, and others may read it: `chmod 600 {path}`; no webhook is used till then")
    try:
        webhooks = WEBHOOKS.validate_json(text)
        for webhook in webhooks:
            webhook.check_transport()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise Damaged(f"{path}: {where}: {first['msg']}; no webhook is used") from None
    except ValueError as error:
        raise Damaged(f"{path}: {error}; no webhook is used") from None
    names = [webhook.name for webhook in webhooks]
    if len(set(names)) < len(names):
        raise Damaged(f"{path}: two webhooks have the same name; no webhook is used")
    return webhooks


class Cursors:
    """Position of one webhook in the journal of each run: the last entry whose message was taken. On disk."""

    def __init__(self, path: Path) -> None:
        """Read the file; `is_new` if there is none that can be read."""
        self._path = path
        self.is_new = False
        try:
            self.of_run = {str(run): int(seq) for run, seq in json.loads(path.read_text(encoding="utf-8")).items()}
        except FileNotFoundError:
            self.of_run, self.is_new = {}, True
        except (OSError, ValueError, AttributeError, TypeError):
            log.error("the webhooks' position in %s cannot be read: alerts raised until now are not sent", path)
            self.of_run, self.is_new = {}, True

    def move(self, positions: Mapping[str, int]) -> None:
        """Set positions, durably. Raises `OSError`."""
        self.of_run |= positions
        make_folder(self._path.parent)
        replace_file(self._path, json.dumps(self.of_run))
        sync_names(self._path.parent)


class Runs(Protocol):
    """Access to the runs, see `gateway.app.RunDirectory`."""

    async def list(self) -> Sequence[RunSummary]:
        """Return a summary of every run."""
        ...

    async def handle(self, run: str) -> OperatorPort:
        """Return a handle on the run."""
        ...


def text_of(run: str, record: AlertRaised | AlertCleared) -> str:
    """Return the sentence of a message, with the characters escaped by which Slack notifies whole channels."""
    text = f"{run}: {describe_alert(record)}"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def body_of(webhook: Webhook, run: str, entry: Entry, console_url: str = "") -> bytes:
    """Return the body of a message."""
    record = entry.record
    assert isinstance(record, AlertRaised | AlertCleared)
    text = text_of(run, record) + (f"\n{console_url}" if console_url else "")
    if webhook.format == "slack":
        return json.dumps({"text": text}).encode()
    members = {"text": text, "run": run, "seq": entry.seq, "time": entry.time, "type": record.type}
    return json.dumps(members | {"body": record.model_dump(mode="json", exclude={"type"})}).encode()


def headers_of(webhook: Webhook, run: str, seq: int, body: bytes, now_s: float) -> dict[str, str]:
    """Return the headers: an id that a repetition has, too, and the signature of time and body (HMAC-SHA256)."""
    headers = {
        "Content-Type": "application/json",
        "Steerway-Delivery": str(uuid5(NAMESPACE_URL, f"steerway-webhook/{webhook.name}/{run}/{seq}")),
        "Steerway-Timestamp": str(int(now_s)),
    }
    if secret := webhook.secret.get_secret_value():
        signed = headers["Steerway-Timestamp"].encode() + b"." + body
        headers["Steerway-Signature"] = "sha256=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return headers


class Webhooks:
    """Loop that sends messages, one task for each webhook: none waits for another, and nothing waits for them."""

    def __init__(
        self,
        path: Path,
        cursors: Path,
        runs: Runs,
        *,
        console_url: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
        in_thread: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        """`path`: the list of webhooks; `cursors`: folder of their positions. `in_thread` calls what waits."""
        self._path, self._cursors, self._runs, self._console_url = path, cursors, runs, console_url
        self._transport, self._sleep, self._clock, self._in_thread = transport, sleep, clock, in_thread

    async def run_forever(self) -> None:
        """Send messages until cancelled. The list is read once: `steer down` and `steer up` take a new one."""
        try:
            webhooks = await self._in_thread(read_webhooks, self._path)
        except Damaged as error:
            log.error("%s", error.reason)
            webhooks = ()
        if not webhooks:
            await asyncio.Event().wait()
        async with asyncio.TaskGroup() as tasks:
            for webhook in webhooks:
                tasks.create_task(self._serve(webhook))

    async def _serve(self, webhook: Webhook) -> None:
        cursors = await self._in_thread(Cursors, self._cursors / f"{webhook.name}.json")
        ended: dict[str, str] = {}
        async with httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False, transport=self._transport) as client:
            while True:
                try:
                    await self.look(webhook, cursors, ended, client)
                except (SteerwayError, OSError) as error:
                    log.warning("webhook %s: %s", webhook.name, getattr(error, "reason", type(error).__name__))
                await self._sleep(LOOK_EVERY_S)

    async def look(self, webhook: Webhook, cursors: Cursors, ended: dict[str, str], client: httpx.AsyncClient) -> None:
        """Send what has happened since the last look. `ended`: runs that have ended and were read to their end."""
        summaries = await self._runs.list()
        if cursors.is_new:
            await self._begin(cursors, summaries)
        for summary in summaries:
            if ended.get(summary.run) == summary.status:
                continue
            await self._follow(webhook, cursors, summary.run, client)
            if summary.status in ENDED:
                ended[summary.run] = summary.status
            else:
                ended.pop(summary.run, None)

    async def _begin(self, cursors: Cursors, summaries: Sequence[RunSummary]) -> None:
        """Begin at the present end of every run's journal: a new webhook is not told of old alerts."""
        known = {each.run: (await (await self._runs.handle(each.run)).snapshot()).seq for each in summaries}
        await self._in_thread(cursors.move, known)
        cursors.is_new = False

    async def _follow(self, webhook: Webhook, cursors: Cursors, run: str, client: httpx.AsyncClient) -> None:
        handle = await self._runs.handle(run)
        while True:
            after = cursors.of_run.get(run, 0)
            entries = await handle.tail(after, MAX_TAIL_ENTRIES, 0.0)
            for entry in entries:
                if webhook.wants(entry.record):
                    await self._deliver(webhook, run, entry, client)
                    await self._in_thread(cursors.move, {run: entry.seq})
            if entries and cursors.of_run.get(run, 0) < entries[-1].seq:
                await self._in_thread(cursors.move, {run: entries[-1].seq})
            if len(entries) < MAX_TAIL_ENTRIES:
                return

    async def _deliver(self, webhook: Webhook, run: str, entry: Entry, client: httpx.AsyncClient) -> None:
        """Send one message until it is taken. One that is refused, or too old, is left out, and logged."""
        body = body_of(webhook, run, entry, self._console_url)
        began, pause_s = self._clock(), FIRST_PAUSE_S
        while True:
            outcome = await self._post(webhook, run, entry, body, client)
            if outcome is None:
                return
            is_final = outcome.isdecimal() and 300 <= int(outcome) < 500 and int(outcome) not in TRY_LATER
            if is_final or self._clock() - began > GIVE_UP_AFTER_S:
                what = "was refused" if is_final else "could not be sent for a day"
                log.error("webhook %s: entry %d of %s %s (%s)", webhook.name, entry.seq, run, what, outcome)
                return
            await self._sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _post(
        self, webhook: Webhook, run: str, entry: Entry, body: bytes, client: httpx.AsyncClient
    ) -> str | None:
        """Return None once the message is taken, else the status or the kind of error: the URL is a secret."""
        headers = headers_of(webhook, run, entry.seq, body, self._clock())
        try:
            answer = await client.post(webhook.url.get_secret_value(), content=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return type(error).__name__
        return None if answer.is_success else str(answer.status_code)

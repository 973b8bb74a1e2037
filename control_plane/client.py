"""HTTP client of the gateway, for the CLI, the console and the agent.

    with SteerwayClient.from_settings(settings()) as client:
        receipt = client.submit(run, SetLearningRate(value=3e-5), reason="loss plateaued")
        view = client.wait_settled(run, receipt.uuid, timeout_s=60)

Errors have the class that the control server raised (`Refused` and below). Without an answer, or if the answer is not
a gateway's, the error is `Unavailable`: the request may or may not have taken effect. `submit` then retries with the
same uuid, so a command is accepted exactly once.
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, urlsplit, urlunsplit
from uuid import UUID, uuid4

from pydantic import BaseModel, ValidationError

from control_plane.addresses import is_in_the_clear, is_loopback, plain_url, token_of
from control_plane.api.messages import ADOPTION_WAIT_S, CommandView, Measurements, Receipt, RunSummary, Snapshot
from control_plane.api.patience import FIRST_WAIT_S, patience_of, retrying
from control_plane.compare.comparison import Comparison, RunTree
from control_plane.config import Role, Settings
from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import (
    Conflict,
    Invalid,
    NotAllowed,
    NotFound,
    Overloaded,
    Refused,
    SteerwayError,
    Unavailable,
)
from control_plane.core.model.intents import AdoptCheckpoint
from control_plane.core.model.records import Entry
from control_plane.storage.layout import check_run_id

if TYPE_CHECKING:
    import httpx
    from websockets.sync.client import ClientConnection

API = "/api/v1"

LEAST_SUBMIT_TRIES = 4
"""Enough for a restarting control server, which answers within a second or two."""

MAX_LONG_POLL_S = 30.0
"""The gateway's limit of one long poll; longer waits are several polls."""

STREAM_SILENCE_S = 30.0
"""The gateway sends a heartbeat every few seconds; a stream silent for this long is dead."""

RECONNECT_FOR_S = 60.0
"""How long an interrupted stream tries to reconnect before it gives up."""

MAX_STREAM_MESSAGE_BYTES = 4 * 1024 * 1024
"""A generation of thousands of ranks is one journal line of this order."""

STREAM_CLOSE_OVER = 1000
STREAM_CLOSE_ERRORS: dict[int, type[SteerwayError]] = {
    4401: NotAllowed,
    4403: NotAllowed,
    4404: NotFound,
    4422: Invalid,
    4429: Overloaded,
}
"""The gateway's close codes (`gateway/stream.py`) that are final. On any other code the client reconnects."""

_PROBLEM_MEMBERS = frozenset({"type", "title", "status", "detail", "instance"})

Model = TypeVar("Model", bound=BaseModel)


class NotSettledYet(Unavailable):
    """Timeout of `wait_settled`: the command is durable and still pending."""

    exit_code = 124
    slug = "not-settled-yet"


class SteerwayClient:
    """Thread-safe client of a gateway. Every call raises a `SteerwayError` and nothing else."""

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        insecure: bool = False,
        timeout_s: float = 10.0,
        patience_s: float = 0.0,
        transport: "httpx.BaseTransport | None" = None,
    ) -> None:
        """Prepare a client without connecting. Raises `Invalid` for a malformed address or token.

        Args:
            patience_s: how long an unanswered request is retried; submissions are always retried a few times.
            insecure: allow the token over plain http to another machine.
        """
        import httpx

        self._base_url = base_url.rstrip("/")
        self._token = _check_token(token)
        self._timeout_s, self._patience_s = timeout_s, patience_s
        at = _check_url(self._base_url, insecure)
        self._http = httpx.Client(
            base_url=self._base_url + API,
            headers={"Authorization": f"Bearer {self._token}", "Accept": "application/json"},
            timeout=timeout_s,
            transport=transport,
            # The environment's proxy must not see the token: only https goes through it.
            trust_env=at.scheme == "https" and not is_loopback(at.hostname or ""),
        )

    @classmethod
    def from_settings(cls, settings: Settings, role: Role = "operator") -> "SteerwayClient":
        """Return a client of the gateway in the settings. Raises `NotAllowed` if there is no token for this role."""
        insecure, patience_s = settings.may_be_in_the_clear, patience_of(settings)
        return cls(settings.gateway_url, token_of(settings, role), insecure=insecure, patience_s=patience_s)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "SteerwayClient":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def health(self) -> dict[str, Any]:
        """Return `{"status": "ok", "version": ...}`."""
        return self._get_json("/health")

    def runs(self) -> list[RunSummary]:
        """Return every run that the gateway knows."""
        return [_parse(RunSummary, run) for run in _listed(self._get_json("/runs"), "runs")]

    def snapshot(self, run: str) -> Snapshot:
        """Return the run's current state. Raises `NotFound`."""
        return _parse(Snapshot, self._get_json(_path(run)))

    def submit(
        self,
        run: str,
        intent: Intent,
        *,
        reason: str | None = None,
        not_before_step: int | None = None,
        not_after_step: int | None = None,
        based_on_seq: int | None = None,
        uuid: UUID | None = None,
    ) -> Receipt:
        """Submit a command; it is durable when this returns. Raises `Refused`, or `Unavailable` after a few tries.

        Args:
            based_on_seq: the `seq` of the snapshot that the command is based on; if the run has changed since, the
                command is rejected with `Conflict`.
        """
        chosen = uuid or uuid4()
        body: dict[str, Any] = {"intent": intent.model_dump(mode="json"), "uuid": str(chosen)}
        optional = {
            "reason": reason,
            "not_before_step": not_before_step,
            "not_after_step": not_after_step,
            "based_on_seq": based_on_seq,
        }
        body |= {name: value for name, value in optional.items() if value is not None}
        timeout_s = self._timeout_s + (ADOPTION_WAIT_S if isinstance(intent, AdoptCheckpoint) else 0.0)
        tries = retrying(LEAST_SUBMIT_TRIES, self._patience_s, 2 * timeout_s)
        headers = {"Idempotency-Key": str(chosen)}
        path = _path(run, "commands")
        answer = tries(self._request, "POST", path, json=body, headers=headers, timeout=timeout_s)
        return _parse(Receipt, answer)

    def command(self, run: str, uuid: UUID, wait_s: float = 0.0) -> CommandView:
        """Return a command's status; waits up to `wait_s` until it is settled. Raises `NotFound`."""
        return _parse(CommandView, self._get_json(_path(run, "commands", str(uuid)), wait_s=wait_s))

    def wait_settled(self, run: str, uuid: UUID, timeout_s: float) -> CommandView:
        """Wait until the command is settled. Raises `NotSettledYet` on timeout; the command stays pending."""
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            view = self.command(run, uuid, wait_s=min(left_s, MAX_LONG_POLL_S))
            if view.settled is not None:
                return view
            if time.monotonic() >= deadline:
                raise NotSettledYet(
                    f"'{view.what}' was not settled within {timeout_s:g} s; it is still pending and will be applied "
                    "at the next step boundary",
                    uuid=str(uuid),
                    run=run,
                )

    def journal(self, run: str, after: int = 0, limit: int = 1000, wait_s: float = 0.0) -> list[Entry]:
        """Return journal entries after seq `after`; waits up to `wait_s` for the first."""
        answer = self._get_json(_path(run, "journal"), wait_s=wait_s, after=after, limit=limit)
        return [_entry(line) for line in _listed(answer, "entries")]

    def metrics(self, run: str, after: int = 0, limit: int = 20000, names: Sequence[str] = ()) -> Measurements:
        """Return metric points after the cursor `after`, of these names or of all."""
        answer = self._get_json(_path(run, "metrics"), after=after, limit=limit, name=list(names))
        return _parse(Measurements, answer)

    def logs(self, run: str, source: str = "driver", lines: int = 200) -> str:
        """Return the last log lines of the driver or a rank (`rank-0`). Raises `NotFound`."""
        return str(_member(self._get_json(_path(run, "logs"), source=source, lines=lines), "text"))

    def tree(self, run: str) -> RunTree:
        """Return the run's branches, and its forks and replays. Raises `NotFound`."""
        return _parse(RunTree, self._get_json(_path(run, "tree")))

    def compare(self, names: Sequence[str]) -> Comparison:
        """Compare two or more of `RUN`, `RUN:BRANCH`, `RUN@STEP`, `RUN@CHECKPOINT`. Raises `NotFound`, `Invalid`."""
        return _parse(Comparison, self._get_json("/compare", of=list(names)))

    def stream(self, run: str, after: int = 0) -> Iterator[Entry]:
        """Yield journal entries after seq `after` as they become durable, exactly once and in order, until the end.

        Reconnects and continues. Raises `Unavailable` when the gateway stays unreachable for `RECONNECT_FOR_S`.
        """
        cursor, heard_at = after, None
        while True:
            try:
                for message in self._listen(run, cursor):
                    heard_at = time.monotonic()
                    if message.get("type") == "entry":
                        entry = _entry(message.get("entry"))
                        cursor = entry.seq
                        yield entry
                return
            except Unavailable:
                if heard_at is None or time.monotonic() - heard_at > RECONNECT_FOR_S:
                    raise
                time.sleep(FIRST_WAIT_S + random.random())

    def _listen(self, run: str, after: int) -> Iterator[dict[str, Any]]:
        """Yield the messages of one connection until the run ends. Raises `Unavailable` when the connection breaks."""
        from websockets.exceptions import ConnectionClosed

        with self._connect(f"{API}{_path(run, 'stream')}", after) as connection:
            try:
                connection.send(json.dumps({"token": self._token}))
                while True:
                    yield _parse_json(connection.recv(timeout=STREAM_SILENCE_S), self._base_url)
            except ConnectionClosed as closed:
                code, why = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (None, "")
                if code == STREAM_CLOSE_OVER:
                    return
                raise STREAM_CLOSE_ERRORS.get(code or 0, Unavailable)(why or "the stream was closed") from None
            except TimeoutError:
                raise Unavailable(f"the stream of run {run} sent nothing for {STREAM_SILENCE_S:g} s") from None

    def _connect(self, path: str, after: int) -> "ClientConnection":
        from websockets.exceptions import InvalidHandshake, InvalidURI
        from websockets.sync.client import connect

        at = urlsplit(self._base_url)
        url = urlunsplit(("wss" if at.scheme == "https" else "ws", at.netloc, at.path + path, f"after={after}", ""))
        try:
            return connect(url, open_timeout=self._timeout_s, max_size=MAX_STREAM_MESSAGE_BYTES, proxy=None)
        except (InvalidHandshake, InvalidURI, EOFError):
            raise Unavailable(f"{self._base_url} is not a Steerway gateway: it offers no stream") from None
        except OSError:
            raise self._no_answer() from None

    def _get_json(self, path: str, wait_s: float = 0.0, **params: Any) -> Any:
        params |= {"wait_s": wait_s} if wait_s else {}
        timeout_s = self._timeout_s + wait_s
        tries = retrying(1, self._patience_s, self._patience_s)
        return tries(self._request, "GET", path, params=params, timeout=timeout_s)

    def _request(self, method: str, path: str, **options: Any) -> Any:
        import httpx

        try:
            answer = self._http.request(method, path, **options)
        except httpx.TimeoutException:
            raise Unavailable(f"{self._base_url} timed out; the request may or may not have taken effect") from None
        except httpx.ConnectError:
            raise self._no_answer() from None
        except httpx.HTTPError as error:
            raise Unavailable(f"the response of {self._base_url} was interrupted ({type(error).__name__})") from None
        if answer.is_success:
            return _parse_json(answer.content, self._base_url)
        raise _error_of(answer, self._base_url)

    def _no_answer(self) -> Unavailable:
        return Unavailable(f"no gateway answers at {self._base_url}; start one with `steer up`")


def _error_of(answer: "httpx.Response", base_url: str) -> SteerwayError:
    """Return the error in a problem+json response, with the class raised by the server."""
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return _not_ours(base_url, f"HTTP {answer.status_code}")
    problem = _parse_json(answer.content, base_url)
    slug = str(problem.get("type", "")).rsplit("/", 1)[-1]
    kind = _kinds_by_slug(SteerwayError).get(slug) or _kind_by_status(answer.status_code)
    error = kind(str(problem.get("detail") or problem.get("title") or "refused without a reason"))
    error.detail = {name: value for name, value in problem.items() if name not in _PROBLEM_MEMBERS}
    return error


def _kinds_by_slug(kind: type[SteerwayError]) -> dict[str, type[SteerwayError]]:
    kinds = {kind.slug: kind}
    for below in kind.__subclasses__():
        kinds = _kinds_by_slug(below) | kinds  # of two with the same slug, the one nearer to the root wins
    return kinds


def _kind_by_status(status: int) -> type[SteerwayError]:
    """Return the error class for an HTTP status, if a newer gateway sends an unknown slug."""
    if status >= 500:
        return Unavailable
    kinds: tuple[type[Refused], ...] = (NotAllowed, NotFound, Conflict, Overloaded, Invalid)
    by_status: dict[int, type[Refused]] = {kind.status_hint: kind for kind in kinds}
    return ({400: Invalid, 401: NotAllowed, 413: Invalid} | by_status).get(status, Refused)


def _not_ours(base_url: str, what: str) -> Unavailable:
    return Unavailable(f"{base_url} is not a Steerway gateway ({what}): is the address right?")


def _parse_json(content: str | bytes, base_url: str) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except ValueError:
        raise _not_ours(base_url, "its answer is not JSON, or was cut off") from None
    if not isinstance(answer, dict):
        raise _not_ours(base_url, "its answer is not a JSON object")
    return answer


def _parse(model: type[Model], answer: Any) -> Model:
    return _understand(lambda: model.model_validate(answer), model.__name__)


def _entry(line: Any) -> Entry:
    return _understand(lambda: Entry.from_line(line), "journal line")


Value = TypeVar("Value")


def _understand(read: Callable[[], Value], what: str) -> Value:
    """Run a parser; raise `Unavailable` if it fails. Unknown members fail, too: the gateway has another version."""
    try:
        return read()
    except (ValidationError, KeyError, TypeError):
        raise Unavailable(
            f"the gateway's {what} cannot be parsed: do the gateway and this client have the same version?"
        ) from None


def _member(answer: dict[str, Any], name: str) -> Any:
    return _understand(lambda: answer[name], f"answer without '{name}'")


def _listed(answer: dict[str, Any], name: str) -> list[Any]:
    return _understand(lambda: list(answer[name]), f"list of {name}")


def _path(run: str, *below: str) -> str:
    return "/".join(("/runs", check_run_id(run), *below))


def _check_url(url: str, insecure: bool) -> SplitResult:
    """Return the parts of the address. Raises `Invalid` for a malformed one, or one that would expose the token."""
    parts = plain_url(url)
    if parts is None:
        raise Invalid(f"{url!r} is not a gateway address; use one like http://127.0.0.1:8700")
    if is_in_the_clear(parts) and not insecure:
        raise Invalid(
            f"{url} is plain http to another machine and would expose the token on the network: use https, or a "
            f"tunnel (ssh -L 8700:127.0.0.1:8700 {parts.hostname}) and http://127.0.0.1:8700; STEERWAY_INSECURE=1 "
            "sends it anyway"
        )
    return parts


def _check_token(token: str) -> str:
    """Return the token without surrounding white space. The error must not repeat it."""
    stripped = token.strip()
    if not stripped or not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise Invalid("the token is empty or contains invalid characters; copy it again")
    return stripped

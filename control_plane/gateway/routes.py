"""REST routes under `/api/v1`.

Commands are resources: POST answers 202 once the command is durable; its `Location` returns the outcome. Idempotent by
uuid. Pydantic serializes the responses, because JSON has no NaN and a diverged loss must arrive as "NaN", not as null.
"""

import asyncio
import os
import re
import stat
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid4

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import Field, ValidationError

from control_plane.api.messages import (
    MAX_TAIL_ENTRIES,
    MAX_WAIT_S,
    CommandView,
    Measurements,
    Receipt,
    RunSummary,
    Snapshot,
)
from control_plane.api.ports import OperatorPort
from control_plane.api.strict_json import parse_strictly
from control_plane.compare.comparison import MAX_SIDES, Comparison, RunTree
from control_plane.compare.replay_check import ReplayVerdict, judge
from control_plane.core.model.commands import MAX_REASON_CHARS, Command, Intent
from control_plane.core.model.errors import Invalid, NotFound
from control_plane.core.model.intent_base import Message
from control_plane.core.model.records import CommandSettled
from control_plane.core.model.values import MAX_STEP
from control_plane.gateway.auth import PREFIX, authorize, check_may_command
from control_plane.gateway.comparison import comparison_of, tree_of
from control_plane.gateway.scope import scoped
from control_plane.gateway.tokens import Identity
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MAX_POINTS_PER_READ
from control_plane.storage.regular import open_regular

if TYPE_CHECKING:
    from control_plane.gateway.app import RunDirectory

MAX_LONG_POLLS_PER_TOKEN = 64
"""A console with a few tabs holds a handful; each costs a task and a slot in the control server's queue."""

MAX_NAMES = 64
MAX_SIDE_CHARS = 400
MAX_LOG_LINES = 2_000
MAX_LOG_BYTES = 256 * 1024
"""Size of the tail of a log that is served; the whole file is in the run's folder."""

_LOG_NAME = re.compile(r"([a-z0-9][a-z0-9_-]{0,63})\.log")

Seq = Annotated[int, Query(ge=0, le=MAX_STEP)]
WaitS = Annotated[float, Query(ge=0, le=MAX_WAIT_S, allow_inf_nan=False)]


class Health(Message):
    """Response of the health check."""

    status: str = "ok"
    version: str


class RunList(Message):
    """Response: a summary of every run."""

    runs: tuple[RunSummary, ...]


class CommandRequest(Message):
    """Request body of a command. Its author is the owner of the token."""

    intent: Intent
    uuid: UUID | None = None
    reason: str | None = Field(default=None, max_length=MAX_REASON_CHARS)
    not_before_step: int | None = Field(default=None, ge=0, le=MAX_STEP, strict=True)
    not_after_step: int | None = Field(default=None, ge=0, le=MAX_STEP, strict=True)
    based_on_seq: int | None = Field(
        default=None,
        ge=0,
        le=MAX_STEP,
        strict=True,
        description="the `seq` of the snapshot this is based on; rejected if the run has changed since",
    )


class JournalPage(Message):
    """Response: journal lines as `steer journal --json` prints them; `last_seq` is the next cursor."""

    entries: tuple[dict[str, Any], ...]
    last_seq: int


class LogTail(Message):
    """Response: the last lines of one log, and the names of all logs."""

    source: str
    text: str
    sources: tuple[str, ...]


class StrictRequest(Request):
    """A request with strict JSON: no NaN, no 1e999, no duplicate keys, which Python's parser would accept."""

    async def json(self) -> Any:
        """Parse the body. Raises `json.JSONDecodeError` with the reason."""
        return parse_strictly(await self.body())


class StrictRoute(APIRoute):
    """A route that authorizes before it parses the body; FastAPI would parse it before its dependencies run."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """Return the handler, preceded by the authorization."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            authorize(request)
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


def directory_of(request: Request) -> "RunDirectory":
    """Return the runs that the request's token may see."""
    return scoped(request.app.state.runs, request.state.identity)


def respond(answer: Message, status: int = 200, **headers: str) -> Response:
    """Return a message as a JSON response."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(
        answer.model_dump_json(),
        status_code=status,
        media_type="application/json",
        headers={"Cache-Control": "no-store"} | named,
    )


async def health(request: Request) -> Response:
    """Check that the gateway is up, and return its version. Needs no token."""
    return respond(Health(version=request.app.version))


async def openapi_schema(request: Request) -> Response:
    """Return the OpenAPI 3.1 description of this API."""
    return Response(request.app.state.openapi, media_type="application/json")


async def list_runs(request: Request) -> Response:
    """List every run."""
    return respond(RunList(runs=tuple(await directory_of(request).list())))


async def read_run(request: Request, run: str) -> Response:
    """Return the current snapshot of a run. The ETag is the position of its journal."""
    snapshot = await (await directory_of(request).handle(run)).snapshot()
    return respond(snapshot, ETag=f'"{snapshot.seq}"')


async def submit_command(
    request: Request, run: str, body: CommandRequest, idempotency_key: Annotated[str | None, Header()] = None
) -> Response:
    """Submit a command. Idempotent by uuid. Status 202 means that the command is durable."""
    identity: Identity = request.state.identity
    check_may_command(identity, body.intent)
    command = _command_of(body, chosen_uuid(body.uuid, idempotency_key), identity)
    receipt = await (await directory_of(request).handle(run)).submit(command)
    root = request.scope.get("root_path", "")
    return respond(receipt, 202, Location=f"{root}{PREFIX}/runs/{run}/commands/{receipt.uuid}")


def _command_of(body: CommandRequest, uuid: UUID, identity: Identity) -> Command:
    """Build the command. Raises `Invalid` if fields contradict each other."""
    members = body.model_dump(include={"reason", "not_before_step", "not_after_step", "based_on_seq"})
    try:
        return Command(uuid=uuid, author=identity.id, role=identity.role, intent=body.intent, **members)
    except ValidationError as error:
        raise Invalid(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def chosen_uuid(in_body: UUID | None, in_header: str | None) -> UUID:
    """Return a request's uuid from its body or the Idempotency-Key header. Raises `Invalid` if the two differ."""
    if in_header is None:
        return in_body or uuid4()
    try:
        key = UUID(in_header.strip().strip('"'))
    except ValueError:
        raise Invalid("Idempotency-Key must be a UUID: it becomes the request's uuid") from None
    if in_body not in (None, key):
        raise Invalid("Idempotency-Key and the body's uuid differ; send only one, or the same value")
    return key


async def read_command(request: Request, run: str, uuid: UUID, wait_s: WaitS = 0.0) -> Response:
    """Return a command and its outcome; waits up to `wait_s` seconds for it (long poll)."""
    handle = await directory_of(request).handle(run)
    view = await handle.command(uuid)
    if view.settled is None and wait_s > 0:
        with request.app.state.long_polls.take(request.state.identity):
            await _wait_for_end(handle, view, wait_s)
        view = await handle.command(uuid)
    return respond(view)


async def _wait_for_end(handle: OperatorPort, view: CommandView, wait_s: float) -> None:
    """Wait for a command's outcome by following the journal from where the command was accepted."""
    now = asyncio.get_running_loop().time
    deadline, cursor = now() + wait_s, view.accepted_seq
    while (left_s := deadline - now()) > 0:
        entries = await handle.tail(cursor, MAX_TAIL_ENTRIES, left_s)
        for entry in entries:
            if isinstance(entry.record, CommandSettled) and entry.record.uuid == view.command.uuid:
                return
        cursor = entries[-1].seq if entries else cursor


async def read_journal(
    request: Request,
    run: str,
    after: Seq = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_TAIL_ENTRIES)] = MAX_TAIL_ENTRIES,
    wait_s: WaitS = 0.0,
) -> Response:
    """Return journal lines after `after`; waits up to `wait_s` seconds for the first (long poll)."""
    handle = await directory_of(request).handle(run)
    if wait_s > 0:
        with request.app.state.long_polls.take(request.state.identity):
            entries = await handle.tail(after, limit, wait_s)
    else:
        entries = await handle.tail(after, limit, 0.0)
    lines = tuple(entry.line() for entry in entries)
    return respond(JournalPage(entries=lines, last_seq=entries[-1].seq if entries else after))


async def read_metrics(
    request: Request,
    run: str,
    after: Seq = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_POINTS_PER_READ)] = MAX_POINTS_PER_READ,
    name: Annotated[tuple[str, ...], Query(max_length=MAX_NAMES)] = (),
) -> Response:
    """Return metric points after the cursor, of the named series or of all."""
    handle = await directory_of(request).handle(run)
    return respond(await handle.measurements(after, limit, name))


async def read_tree(request: Request, run: str) -> Response:
    """Return the run's branches with their changes and best losses, and the runs that were started from it."""
    return respond(await tree_of(directory_of(request), run))


async def read_comparison(
    request: Request,
    of: Annotated[
        tuple[Annotated[str, Field(max_length=MAX_SIDE_CHARS)], ...],
        Query(min_length=2, max_length=MAX_SIDES, description="`RUN`, `RUN:BRANCH`, `RUN@STEP`, `RUN@CHECKPOINT`"),
    ],
) -> Response:
    """Compare runs or branches from their last common step: knobs, commands, losses."""
    return respond(await comparison_of(directory_of(request), of))


async def read_replay_check(
    request: Request,
    run: str,
    of: Annotated[str, Query(max_length=MAX_SIDE_CHARS, description="the run that this one is a replay of")],
) -> Response:
    """Compare a replay with its run, by the digests and losses of every step: identical, divergent or incomparable."""
    directory = directory_of(request)
    return respond(await asyncio.to_thread(judge, directory.files(run), directory.files(of)))


async def read_logs(
    request: Request,
    run: str,
    source: str = "driver",
    lines: Annotated[int, Query(ge=1, le=MAX_LOG_LINES)] = 200,
) -> Response:
    """Return the last log lines of the driver (`driver`) or of a rank (`rank-0`)."""
    files = directory_of(request).files(run)
    return respond(await asyncio.to_thread(read_log_tail, files, source, lines))


def read_log_tail(files: RunFiles, source: str, lines: int) -> LogTail:
    """Read the last `lines` lines of a log, at most `MAX_LOG_BYTES`. Raises `NotFound`.

    The source is looked up in the folder's listing and never becomes part of a path (no path traversal).
    """
    try:
        folder = os.open(files.logs, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        raise NotFound("this run has no logs yet", sources=()) from None
    try:
        with os.scandir(folder) as listing:
            names = {match[1] for entry in listing if (match := _LOG_NAME.fullmatch(entry.name)) and _is_log(entry)}
        sources = tuple(sorted(names, key=_by_rank))
        if source not in names:
            reason = f"this run has no log of that name; its logs are: {', '.join(sources) or 'none yet'}"
            raise NotFound(reason, sources=sources)
        with open_regular(f"{source}.log", folder, only_name=True) as file:
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(0, size_bytes - MAX_LOG_BYTES))
            text = file.read(MAX_LOG_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        raise NotFound(f"this run's log {source!r} cannot be read: {error.strerror}", sources=()) from None
    finally:
        os.close(folder)
    return LogTail(source=source, text="".join(text.splitlines(keepends=True)[-lines:]), sources=sources)


def _is_log(entry: os.DirEntry[str]) -> bool:
    """Return whether this is a regular file with one name: scripts may plant links or pipes in this folder."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def _by_rank(source: str) -> tuple[str, int]:
    """Sort key that puts `rank-2` before `rank-10`."""
    name, _, number = source.rpartition("-")
    return (name, int(number)) if number.isdecimal() else (source, -1)


def add_routes(app: FastAPI) -> None:
    """Add every REST route. Function names are the operation ids; `auth.ACCESS` lists the allowed roles."""
    app.router.route_class = StrictRoute
    routes: list[tuple[str, str, Callable[..., Awaitable[Response]], int, type[Message] | None]] = [
        ("GET", "/health", health, 200, Health),
        ("GET", "/openapi.json", openapi_schema, 200, None),
        ("GET", "/runs", list_runs, 200, RunList),
        ("GET", "/runs/{run}", read_run, 200, Snapshot),
        ("POST", "/runs/{run}/commands", submit_command, 202, Receipt),
        ("GET", "/runs/{run}/commands/{uuid}", read_command, 200, CommandView),
        ("GET", "/runs/{run}/journal", read_journal, 200, JournalPage),
        ("GET", "/runs/{run}/metrics", read_metrics, 200, Measurements),
        ("GET", "/runs/{run}/logs", read_logs, 200, LogTail),
        ("GET", "/runs/{run}/tree", read_tree, 200, RunTree),
        ("GET", "/runs/{run}/replay-check", read_replay_check, 200, ReplayVerdict),
        ("GET", "/compare", read_comparison, 200, Comparison),
    ]
    for method, path, endpoint, status, model in routes:
        app.add_api_route(PREFIX + path, endpoint, methods=[method], status_code=status, response_model=model)

"""Routes of a run's data: records for a live source, and the sources with their shares and newest shards.

A body is streamed to the disk, checked there, and durable as a shard before the answer, 202; a command that all ranks
apply at one step then brings it into the mixture. The request guard hands these bodies on unread, as those of bundles.
"""

import asyncio
import re
from pathlib import Path
from typing import Annotated
from uuid import UUID

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi import Path as InPath
from starlette.requests import ClientDisconnect

from control_plane.api.bundles import deadline_s
from control_plane.api.data_views import Ingested, RunData, SourceView
from control_plane.api.messages import Snapshot
from control_plane.core.health.weak_spots import HELD_OUT_ERROR, HELD_OUT_LOSS
from control_plane.core.model.data import NO_SOURCES, SOURCE_NAME, SourceSettings
from control_plane.core.model.errors import Invalid, NotAllowed, NotFound, Refused, RunEnded
from control_plane.core.model.limits import AGENT
from control_plane.core.rules.agent.generating import AUTHOR
from control_plane.gateway.auth import DATA_PATH, PREFIX
from control_plane.gateway.bundles import TooSlow
from control_plane.gateway.data.announcer import ShardAnnouncer
from control_plane.gateway.routes import chosen_uuid, directory_of, respond
from control_plane.gateway.tokens import Identity
from control_plane.storage.data.bodies import MEDIA_TYPES, Media, accepted
from control_plane.storage.data.declared import declared_sources
from control_plane.storage.data.index import Sender, SourceIndex
from control_plane.storage.data.store import SourceStore
from control_plane.storage.layout import RunFiles

SourceId = Annotated[str, InPath(pattern=f"^{SOURCE_NAME}$")]

_DIGITS = re.compile(r"\d{1,12}")


class RecordsTooLarge(Refused):
    """The body exceeds the limit of one request."""

    status_hint = 413
    slug = "too-large"


async def add_records(
    request: Request,
    run: str,
    source: SourceId,
    only_good: Annotated[
        bool, Query(description="take in the records that fit the schema, and name the others, instead of refusing all")
    ] = False,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """Add records to a live source: 202 once they are durable; 200 if the source had all of them already.

    The Content-Type says what the body is: JSON, JSON lines, text, or a file of the source's format.
    """
    directory, identity = directory_of(request), _identity(request)
    if identity.role == AGENT and not identity.id.startswith(AUTHOR):
        raise NotAllowed(
            "the role agent may not send records, but for a generator of the run, whose records are proposed"
        )
    snapshot = await (await directory.handle(run)).snapshot()
    files = directory.files(run)
    settings = await asyncio.to_thread(_live_source, files, snapshot, source)
    key = chosen_uuid(None, idempotency_key) if idempotency_key is not None else None
    media = _media_of(request, settings)
    with request.app.state.ingest_slots.take(request):
        store = await asyncio.to_thread(SourceStore, files, source, settings)
        await asyncio.to_thread(store.check_room)
        answer = await _take_in(request, store, media, Sender(identity.id, identity.role), key, only_good)
    announcer: ShardAnnouncer | None = request.app.state.announcer
    if announcer is not None:
        announcer.wake(run, source)
    root = request.scope.get("root_path", "")
    return respond(answer, 202 if answer.shard is not None else 200, Location=f"{root}{PREFIX}/runs/{run}/data")


async def _take_in(
    request: Request, store: SourceStore, media: Media, sender: Sender, key: UUID | None, only_good: bool
) -> Ingested:
    most_bytes = request.app.state.ingest_max_bytes
    declared = request.headers.get("content-length", "")
    if declared and (not _DIGITS.fullmatch(declared) or int(declared) > most_bytes):
        raise _too_large(most_bytes)
    length = int(declared) if declared else most_bytes
    with store.body() as body:
        try:
            async with asyncio.timeout(deadline_s(length)):
                await _receive(request, body, most_bytes)
        except ClientDisconnect:
            raise Invalid("the connection ended within the body; nothing was taken in") from None
        except TimeoutError:
            raise TooSlow(
                f"the body was not received within {deadline_s(length):.0f} s; nothing was taken in"
            ) from None
        return await asyncio.to_thread(store.take_in, body, media, sender, key=key, only_good=only_good)


async def _receive(request: Request, body: Path, most_bytes: int) -> None:
    """Write the body to the disk as it arrives. Raises `RecordsTooLarge`."""
    count = 0
    with await asyncio.to_thread(body.open, "xb") as file:
        async for data in request.stream():
            count += len(data)
            if count > most_bytes:
                raise _too_large(most_bytes)
            await asyncio.to_thread(file.write, data)


def _too_large(most_bytes: int) -> RecordsTooLarge:
    return RecordsTooLarge(f"one request may bring {most_bytes:,} bytes; send several", limit=most_bytes)


def _live_source(files: RunFiles, snapshot: Snapshot, source: str) -> SourceSettings:
    """Return the settings of a source that takes records in. Raises `RunEnded`, `NotFound`, `Invalid`."""
    if snapshot.closed:
        raise RunEnded(
            f"run {files.run} is {snapshot.status}: it takes in no more data; resume it, then send them again"
        )
    sources = _settings_of(files, snapshot)
    if not sources:
        raise NotFound(NO_SOURCES)
    if source not in sources or (snapshot.mixture and source not in snapshot.mixture):
        raise NotFound(f"run {files.run} has no source of that name now; its sources are: {', '.join(sorted(sources))}")
    if not sources[source].live:
        raise Invalid(f"source {source} is not live: its config does not say 'live: true'")
    return sources[source]


def _settings_of(files: RunFiles, snapshot: Snapshot) -> dict[str, SourceSettings]:
    return declared_sources(files) | snapshot.sources_added


def _media_of(request: Request, settings: SourceSettings) -> Media:
    """Return what the body is. Raises `Invalid` if the source does not take it."""
    named = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if named not in accepted(settings):
        raise Invalid(f"this source takes bodies of the Content-Type {', '.join(accepted(settings))}")
    return MEDIA_TYPES[named]


def _identity(request: Request) -> Identity:
    identity: Identity = request.state.identity
    return identity


async def read_data(request: Request, run: str) -> Response:
    """Return a run's sources: settings, weight and share in the mixture, and the newest shards."""
    directory = directory_of(request)
    snapshot = await (await directory.handle(run)).snapshot()
    files = directory.files(run)
    sources = await asyncio.to_thread(lambda: tuple(_views(files, snapshot)))
    most_bytes = request.app.state.ingest_max_bytes
    answer = RunData(run=snapshot.run, step=snapshot.step, max_bytes=most_bytes, sources=sources)
    return respond(answer, ETag=f'"{snapshot.seq}"')


def _views(files: RunFiles, snapshot: Snapshot) -> list[SourceView]:
    settings = _settings_of(files, snapshot)
    return [_view(files, snapshot, name, settings.get(name)) for name in sorted({*settings, *snapshot.mixture})]


def _view(files: RunFiles, snapshot: Snapshot, name: str, settings: SourceSettings | None) -> SourceView:
    measured, folder = snapshot.latest, files.data / name
    view = SourceView(
        name=name,
        settings=settings,
        mixture=snapshot.mixture.get(name, {}),
        loss=measured.get(f"source_loss/{name}"),
        held_out_loss=measured.get(HELD_OUT_LOSS + name),
        held_out_error=measured.get(HELD_OUT_ERROR + name),
    )
    if not (folder / "index.sqlite").is_file():
        return view
    index = SourceIndex(folder, name)
    received, waiting, _ = index.counts()
    came = {"received": received, "waiting": waiting, "by_author": index.by_author(), "shards": index.newest()}
    return view.model_copy(update=came)


def add_data_routes(app: FastAPI) -> None:
    """Add the routes. Function names are the operation ids; `auth.ACCESS` lists the allowed roles."""
    app.add_api_route(PREFIX + "/runs/{run}/data", read_data, methods=["GET"], status_code=200, response_model=RunData)
    app.add_api_route(
        DATA_PATH,
        add_records,
        methods=["POST"],
        status_code=202,
        response_model=Ingested,
        responses={200: {"model": Ingested}},
        # The body is streamed to the disk, and no parameter of the function.
        openapi_extra={"requestBody": {"required": True, "content": {name: {} for name in MEDIA_TYPES}}},
    )

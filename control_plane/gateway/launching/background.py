"""Background work of the gateway: loops that run while the app runs, and work that outlives its request."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI

AGAIN_AFTER_S = 5.0

Work = Callable[[], Awaitable[None]]
Result = TypeVar("Result")

log = logging.getLogger(__name__)


def during(background: Sequence[Work]) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return the lifespan of an app with this work."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_for_ever(work)) for work in background]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return lifespan


def begin(work: Awaitable[Result]) -> "asyncio.Future[Result]":
    """Begin work that nobody may be waiting for, and return it. The event loop alone holds tasks weakly."""
    task = asyncio.ensure_future(work)
    _BEGUN.add(task)
    task.add_done_callback(_BEGUN.discard)
    return task


_BEGUN: set[asyncio.Future[Any]] = set()


async def _for_ever(work: Work) -> None:
    while True:
        try:
            await work()
        except Exception:
            log.exception("background work of the gateway failed; it is started again")
        await asyncio.sleep(AGAIN_AFTER_S)

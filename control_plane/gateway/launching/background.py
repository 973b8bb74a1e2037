"""Background work of the gateway: runs while the app runs, and is started again after an error."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

AGAIN_AFTER_S = 5.0

Work = Callable[[], Awaitable[None]]

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


async def _for_ever(work: Work) -> None:
    while True:
        try:
            await work()
        except Exception:
            log.exception("background work of the gateway failed; it is started again")
        await asyncio.sleep(AGAIN_AFTER_S)

"""Child process of the gateway with a time limit: it ends with all of its own children, whatever happens."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress

MAX_ANSWER_BYTES = 256 * 1024


async def run_child(
    command: Sequence[str], environment: Mapping[str, str], deadline: float, stdin: bytes = b""
) -> tuple[int, bytes, bytes]:
    """Run a program and return its exit code, standard output and standard error.

    Args:
        command: program and arguments.
        environment: added to the gateway's own.
        deadline: on the clock of the running event loop.
        stdin: what the program reads.

    Raises: `TimeoutError` at the deadline; the process and its children are killed by then.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
        start_new_session=True,
        limit=MAX_ANSWER_BYTES,
    )
    try:
        async with asyncio.timeout_at(deadline):
            out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    assert process.returncode is not None, "communicate waits for the end"
    return process.returncode, out, err

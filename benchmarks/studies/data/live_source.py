"""Live source of a run, as the studies of data send to it: requests, and what the ranks have taken in."""

import time
from typing import Any
from uuid import UUID

from control_plane.client import SteerwayClient
from control_plane.core.model.commands import Stop
from control_plane.core.model.errors import Overloaded, SteerwayError

WAIT_S, LOOK_EVERY_S, RETRY_AFTER_S = 600.0, 0.2, 0.5


def wait_for_step(client: SteerwayClient, run: str, step: int, wait_s: float = WAIT_S) -> None:
    """Wait until a run has made a step. Raises `SteerwayError` with the end of its log if it does not."""
    deadline = time.monotonic() + wait_s
    while (snapshot := client.snapshot(run)).step < step:
        if snapshot.closed or time.monotonic() > deadline:
            raise SteerwayError(
                f"run {run} did not reach step {step}: it is at {snapshot.step} ({snapshot.reason}); its log ends:\n"
                f"{client.logs(run, lines=15)}"
            )
        time.sleep(LOOK_EVERY_S)


def stop(client: SteerwayClient, run: str) -> None:
    """Stop a run, if it is not over."""
    try:
        client.submit(run, Stop())
    except SteerwayError:
        return  # it is over already, and so is the cluster soon


def send(client: SteerwayClient, run: str, source: str, body: bytes, media: str, key: UUID) -> Any:
    """Send records, and again where the gateway asks to wait."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return client.add_records(run, source, body, media, key=key)
        except Overloaded:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_AFTER_S)


def wait_taken_in(client: SteerwayClient, run: str, source: str) -> int:
    """Wait until the ranks have read back all records that a source was sent, and return their number.

    Raises `SteerwayError` if the run ends before.
    """
    deadline = time.monotonic() + WAIT_S
    while True:
        sent = next(one for one in client.data(run).sources if one.name == source)
        if sent.waiting == 0 and sent.mixture.get("records") == sent.received:
            return int(sent.mixture["records"])
        if client.snapshot(run).closed or time.monotonic() > deadline:
            raise SteerwayError(f"run {run} ended before it had taken in what it was sent: {sent.waiting} are waiting")
        time.sleep(LOOK_EVERY_S)


def first_steps(client: SteerwayClient, run: str) -> list[int]:
    """Return the first step that each command that brought shards is drawn from."""
    steps, after = list[int](), 0
    while entries := client.journal(run, after=after):
        after = entries[-1].seq
        for record in (entry.record for entry in entries):
            first_step = (getattr(record, "after", None) or {}).get("first_step")
            if first_step is not None:
                steps.append(int(first_step))
    return steps

"""Live run on a cluster of its own, for benchmarks: start, commands, stop, and the ranks' diaries.

The cluster is complete (Ray, gateway, console), with a home and ports of its own. The run is `scripts/witnessed.py` on
two CPU ranks, submitted as a user's own script.
"""

import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Say
from benchmarks.harness.ports import free_ports
from benchmarks.live.latency_evidence import Page, Sent
from cluster import local
from control_plane import config_text
from control_plane.client import SteerwayClient
from control_plane.config import Settings
from control_plane.core.model.commands import SetLearningRate
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.records import CommandSettled
from ray_jobs.config.run_config import load
from ray_jobs.submit import prepare, submit

RANKS = 2
SCRIPT = Path(__file__).parents[1] / "scripts" / "witnessed.py"
MAX_STEPS = 100_000
"""More than any benchmark needs: runs are ended by `stop`."""

RUNNING_STEPS = 20
"""Steps after which a run counts as running."""

MAX_GAP_S = 0.5
LEAST_RATE = 1e-4
RATE_SPACING = 1e-7
"""Every command sets another value, so that each can be recognized."""

RUNNING_WAIT_S = 180.0
SETTLE_WAIT_S = 60.0
END_WAIT_S = 120.0
LOOK_EVERY_S = 0.5


@contextmanager
def own_cluster(say: Say) -> Iterator[Settings]:
    """Start a cluster with a home and ports of its own; end it and remove its home afterwards."""
    home = Path(tempfile.mkdtemp(prefix="steerway-bench-"))
    ports = dict(zip(("gateway_port", "console_port", "ray_port", "dashboard_port"), free_ports(4), strict=True))
    where = Settings.model_validate({"home": home} | ports)
    try:
        local.up(where, lambda line: say(f"cluster: {line}"))
        yield where
    finally:
        local.down(where)
        shutil.rmtree(home, ignore_errors=True)


def start(where: Settings, shape: str, folder: Path, sections: Mapping[str, Any] | None = None) -> str:
    """Submit a run of the `small` or the `default` model, with `sections` of a config; diaries: in `folder`."""
    raw: dict[str, Any] = {
        "name": f"witnessed-{shape}",
        "seed": 1,
        "scaling": {"ranks": RANKS, "use_gpu": False},
        "workload": {"kind": "script", "path": str(SCRIPT), "args": [str(folder), shape, str(MAX_STEPS)]},
    } | dict(sections or {})
    path = folder / f"{shape}.yaml"
    path.write_text(config_text.to_yaml(raw))
    files = prepare(load(path), where.runs_dir, f"witnessed-{shape}")
    submit(files, where)
    return files.run


def wait_running(client: SteerwayClient, run: str) -> None:
    """Wait until a run trains. Raises `SteerwayError` with the end of its log if it does not."""
    deadline = time.monotonic() + RUNNING_WAIT_S
    while time.monotonic() < deadline:
        snapshot = client.snapshot(run)
        if snapshot.closed:
            raise SteerwayError(f"run {run} ended before it trained: {snapshot.reason}")
        if snapshot.phase == "training" and snapshot.step >= RUNNING_STEPS:
            return
        time.sleep(LOOK_EVERY_S)
    raise SteerwayError(
        f"run {run} did not train within {RUNNING_WAIT_S:g} s; its log ends:\n{client.logs(run, lines=15)}"
    )


def send(client: SteerwayClient, run: str, count: int, mean_gap_s: float) -> list[Sent]:
    """Send commands at exponential gaps, so that any moment within a step is equally likely."""
    chance = random.Random(count)
    sent = []
    for number in range(count):
        time.sleep(min(chance.expovariate(1 / mean_gap_s), MAX_GAP_S))
        rate = LEAST_RATE + number * RATE_SPACING
        receipt = client.submit(run, SetLearningRate(value=rate, schedule="hold"))
        sent.append(Sent(receipt.uuid, rate, time.time()))
    return sent


def settled(client: SteerwayClient, run: str, sent: list[Sent]) -> list[CommandSettled]:
    """Return the outcomes in the journal's order, without those of commands that are not settled in time."""
    wanted = {one.uuid for one in sent}
    outcomes: list[CommandSettled] = []
    after, deadline = 0, time.monotonic() + SETTLE_WAIT_S
    while wanted and time.monotonic() < deadline:
        for entry in client.journal(run, after=after, wait_s=1.0):
            after = entry.seq
            if isinstance(entry.record, CommandSettled) and entry.record.uuid in wanted:
                wanted.remove(entry.record.uuid)
                outcomes.append(entry.record)
    return outcomes


def wait_closed(client: SteerwayClient, run: str) -> None:
    """Wait until a run is closed. Raises `SteerwayError` if it is not."""
    deadline = time.monotonic() + END_WAIT_S
    while not client.snapshot(run).closed:
        if time.monotonic() > deadline:
            raise SteerwayError(f"run {run} did not end within {END_WAIT_S:g} s after its stop")
        time.sleep(LOOK_EVERY_S)


def diaries(folder: Path, shape: str) -> list[dict[int, Page]]:
    """Return each rank's diary, by step. Raises `SteerwayError` if a rank has none."""
    return [_diary(folder / f"{shape}-rank-{rank}.json") for rank in range(RANKS)]


def _diary(path: Path) -> dict[int, Page]:
    try:
        return {step: Page(begin_s, rate, end_s) for step, begin_s, rate, end_s in json.loads(path.read_text())}
    except FileNotFoundError:
        raise SteerwayError(f"a rank ended without its diary {path.name}") from None

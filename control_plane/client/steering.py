"""Client of the gateway: what a run is, commands for it, and their outcome."""

import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from control_plane.api.agent_views import AgentReport
from control_plane.api.messages import ADOPTION_WAIT_S, Alerts, CommandView, Measurements, Receipt, RunSummary, Snapshot
from control_plane.api.patience import retrying
from control_plane.client.answers import listed, member, parse, parse_entry
from control_plane.client.bundles import CodeUploads
from control_plane.client.cluster import ClusterReader
from control_plane.client.connection import path_of
from control_plane.client.data import RunRecords
from control_plane.client.housekeeping import RunHousekeeping
from control_plane.client.launches import RunLaunches
from control_plane.client.stream import JournalStream
from control_plane.compare.comparison import Comparison, RunTree
from control_plane.compare.replay_check import ReplayVerdict
from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import Unavailable
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.core.model.records import Entry

LEAST_SUBMIT_TRIES = 4
"""Enough for a restarting control server, which answers within a second or two."""

MAX_LONG_POLL_S = 30.0
"""The gateway's limit of one long poll; longer waits are several polls."""


REPLAY_CHECK_S = 120.0
"""Every digest of two runs is read."""


class NotSettledYet(Unavailable):
    """Timeout of `wait_settled`: the command is durable and still pending."""

    exit_code = 124
    slug = "not-settled-yet"


class SteerwayClient(RunLaunches, CodeUploads, ClusterReader, RunHousekeeping, RunRecords, JournalStream):
    """Thread-safe client of a gateway. Every call raises a `SteerwayError` and nothing else."""

    def health(self) -> dict[str, Any]:
        """Return `{"status": "ok", "version": ...}`."""
        return self._get_json("/health")

    def runs(self) -> list[RunSummary]:
        """Return every run that the gateway knows."""
        return [parse(RunSummary, run) for run in listed(self._get_json("/runs"), "runs")]

    def snapshot(self, run: str) -> Snapshot:
        """Return the run's current state. Raises `NotFound`."""
        return parse(Snapshot, self._get_json(path_of(run)))

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
        path = path_of(run, "commands")
        answer = tries(self._request, "POST", path, json=body, headers=headers, timeout=timeout_s)
        return parse(Receipt, answer)

    def command(self, run: str, uuid: UUID, wait_s: float = 0.0) -> CommandView:
        """Return a command's status; waits up to `wait_s` until it is settled. Raises `NotFound`."""
        return parse(CommandView, self._get_json(path_of(run, "commands", str(uuid)), wait_s=wait_s))

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
        answer = self._get_json(path_of(run, "journal"), wait_s=wait_s, after=after, limit=limit)
        return [parse_entry(line) for line in listed(answer, "entries")]

    def metrics(self, run: str, after: int = 0, limit: int = 20000, names: Sequence[str] = ()) -> Measurements:
        """Return metric points after the cursor `after`, of these names or of all."""
        answer = self._get_json(path_of(run, "metrics"), after=after, limit=limit, name=list(names))
        return parse(Measurements, answer)

    def logs(self, run: str, source: str = "driver", lines: int = 200) -> str:
        """Return the last log lines of the driver or a rank (`rank-0`). Raises `NotFound`."""
        return str(member(self._get_json(path_of(run, "logs"), source=source, lines=lines), "text"))

    def alerts(self, run: str, attention: bool = False) -> Alerts:
        """Return the run's alerts, or those that need attention. Raises `NotFound`."""
        return parse(Alerts, self._get_json(path_of(run, "alerts"), attention=str(attention).lower()))

    def agent(self, run: str) -> AgentReport:
        """Return the run's agent: its process, what it has spent, its proposals. Raises `NotFound`."""
        return parse(AgentReport, self._get_json(path_of(run, "agent")))

    def tree(self, run: str) -> RunTree:
        """Return the run's branches, and its forks and replays. Raises `NotFound`."""
        return parse(RunTree, self._get_json(path_of(run, "tree")))

    def replay_check(self, replay: str, run: str) -> ReplayVerdict:
        """Compare a replay with its run, step by step. Raises `NotFound`."""
        path, timeout_s = path_of(replay, "replay-check"), REPLAY_CHECK_S
        return parse(ReplayVerdict, self._request("GET", path, params={"of": run}, timeout=timeout_s))

    def compare(self, names: Sequence[str]) -> Comparison:
        """Compare two or more of `RUN`, `RUN:BRANCH`, `RUN@STEP`, `RUN@CHECKPOINT`. Raises `NotFound`, `Invalid`."""
        return parse(Comparison, self._get_json("/compare", of=list(names)))

"""Cache of one run in a page: its snapshot, the end of its journal and its metrics, fetched by cursor."""

import time
from collections.abc import Iterable
from uuid import UUID

import streamlit as st

from control_plane.api.messages import Snapshot
from control_plane.compare.comparison import RunTree
from control_plane.compare.lineage import lineage
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import NotAllowed, SteerwayError, Unavailable
from control_plane.core.model.records import CommandAccepted, Entry
from ui.charts.fetching import Batch, Batches, main_names
from ui.charts.history import MetricsHistory
from ui.gateway import client

SNAPSHOT_AGE_S = 0.7
"""Age up to which a snapshot is reused: several parts of a page need it in the same second."""

TREE_AGE_S = 10.0
"""Interval of the tree, which makes the control server read every measured loss."""

MAX_ENTRIES = 500
"""Number of journal records kept by a page, the newest."""

POINTS_PER_CALL = 20_000
CALLS_PER_REFRESH = 8
"""A long history is fetched over several refreshes, so that the page stays responsive."""


class LiveRun:
    """State of one run in one page. `problem` is the error of the last request, if it failed; the data stays."""

    def __init__(self, run: str) -> None:
        """Start without data."""
        self.run = run
        self.snapshot: Snapshot | None = None
        self.entries: list[Entry] = []
        self.history = MetricsHistory()
        self._batches = Batches()
        self.tree: RunTree | None = None
        self.problem: SteerwayError | None = None
        self._tree_asked_at = float("-inf")
        self._asked_at = float("-inf")

    def refresh(self, max_age_s: float = SNAPSHOT_AGE_S) -> Snapshot | None:
        """Return the snapshot, fetched again if it is older than `max_age_s`. Raises `NotFound`, `Invalid`."""
        if time.monotonic() - self._asked_at >= max_age_s:
            self._asked_at = time.monotonic()
            try:
                self.snapshot = client().snapshot(self.run)
                self.problem = None
            except (Unavailable, NotAllowed) as problem:
                self.problem = problem
        return self.snapshot

    def refresh_journal(self) -> list[Entry]:
        """Fetch new records and return the last ones, oldest first."""
        snapshot = self.refresh()
        if snapshot is None or self.problem is not None:
            return self.entries
        after = self.entries[-1].seq if self.entries else max(0, snapshot.seq - MAX_ENTRIES)
        if snapshot.seq > after:
            try:
                self.entries += client().journal(self.run, after=after)
            except (Unavailable, NotAllowed) as problem:
                self.problem = problem
        del self.entries[:-MAX_ENTRIES]
        return self.entries

    def refresh_metrics(self, names: Iterable[str] = ()) -> MetricsHistory:
        """Fetch new points of the main charts' metrics and of `names`, and return the history."""
        measured = self.snapshot.latest if self.snapshot is not None else {}
        for batch in self._batches.of([*main_names(measured), *(name for name in names if name in measured)]):
            self._fetch(batch)
        self._batches.merge()
        if self.snapshot is not None and self.snapshot.branches:
            self.history.follow(lineage(self.snapshot.branches, self.snapshot.branch))
        return self.history

    def _fetch(self, batch: Batch) -> None:
        for _ in range(CALLS_PER_REFRESH):
            if self.problem is not None:
                return
            try:
                metrics = client().metrics(self.run, after=batch.cursor, limit=POINTS_PER_CALL, names=batch.names)
            except (Unavailable, NotAllowed) as problem:
                self.problem = problem
                return
            self.history.extend(metrics)
            batch.cursor = metrics.cursor
            if len(metrics.points) < POINTS_PER_CALL:
                return

    def refresh_tree(self) -> RunTree | None:
        """Return the branches: fetched again at intervals, and at once after a new branch or another head."""
        snapshot = self.snapshot
        shown = {node.branch.branch for node in self.tree.branches} if self.tree else set()
        changed = snapshot is not None and {view.branch for view in snapshot.branches} != shown
        changed = changed or (snapshot is not None and self.tree is not None and snapshot.branch != self.tree.head)
        if self.problem is None and (changed or time.monotonic() - self._tree_asked_at >= TREE_AGE_S):
            self._tree_asked_at = time.monotonic()
            try:
                self.tree = client().tree(self.run)
            except (Unavailable, NotAllowed) as problem:
                self.problem = problem
        return self.tree

    def commands(self) -> dict[UUID, Command]:
        """Return the commands that this page has received, by uuid."""
        known = {view.command.uuid: view.command for view in self.snapshot.commands} if self.snapshot else {}
        for entry in self.entries:
            if isinstance(entry.record, CommandAccepted):
                known[entry.record.command.uuid] = entry.record.command
        return known


def live_run(run: str) -> LiveRun:
    """Return the cache of a run in this browser tab. Another run in the same tab replaces it."""
    known = st.session_state.get("live_run")
    if not isinstance(known, LiveRun) or known.run != run:
        known = LiveRun(run)
        st.session_state["live_run"] = known
    return known

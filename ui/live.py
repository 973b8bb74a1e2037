"""One run as a page knows it: its snapshot, the end of its journal and its measurements, fetched by cursor."""

import time
from uuid import UUID

import streamlit as st

from control_plane.api.handle import Snapshot
from control_plane.compare.comparison import RunTree
from control_plane.compare.lineage import lineage
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import NotAllowed, SteerwayError, Unavailable
from control_plane.core.model.records import CommandAccepted, Entry
from ui.charts.history import History
from ui.gateway import client

SNAPSHOT_AGE_S = 0.7
"""Several parts of a page ask for the snapshot in the same second; one answer serves them all."""

TREE_AGE_S = 10.0
"""A tree takes the control server some work: it looks at every loss that was measured."""

MAX_ENTRIES = 500
"""Journal records kept by a page; the journal has the rest."""

POINTS_PER_CALL = 20_000
CALLS_PER_REFRESH = 8
"""A long history arrives over several refreshes, so that the page answers in between."""


class LiveRun:
    """One run, seen by one page. `problem` is why the last question was not answered; what is known stays."""

    def __init__(self, run: str) -> None:
        """Nothing known yet."""
        self.run = run
        self.snapshot: Snapshot | None = None
        self.entries: list[Entry] = []
        self.history = History()
        self.tree: RunTree | None = None
        self.problem: SteerwayError | None = None
        self._tree_asked_at = float("-inf")
        self._asked_at = float("-inf")

    def refresh(self, max_age_s: float = SNAPSHOT_AGE_S) -> Snapshot | None:
        """The snapshot, asked for again if it is older than `max_age_s`. Raises `NotFound`, `Invalid`."""
        if time.monotonic() - self._asked_at >= max_age_s:
            self._asked_at = time.monotonic()
            try:
                self.snapshot = client().snapshot(self.run)
                self.problem = None
            except (Unavailable, NotAllowed) as problem:
                self.problem = problem
        return self.snapshot

    def refresh_journal(self) -> list[Entry]:
        """The last records, oldest first."""
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

    def refresh_metrics(self) -> History:
        """The measurements: only what came since the last time."""
        for _ in range(CALLS_PER_REFRESH):
            if self.problem is not None:
                break
            try:
                heard = client().metrics(self.run, after=self.history.cursor, limit=POINTS_PER_CALL)
            except (Unavailable, NotAllowed) as problem:
                self.problem = problem
                break
            self.history.extend(heard)
            if len(heard.points) < POINTS_PER_CALL:
                break
        if self.snapshot is not None and self.snapshot.branches:
            self.history.follow(lineage(self.snapshot.branches, self.snapshot.branch))
        return self.history

    def refresh_tree(self) -> RunTree | None:
        """The branches: asked for again now and then, and at once when there is another one or another head."""
        snapshot = self.snapshot
        shown = {each.branch.branch for each in self.tree.branches} if self.tree else set()
        changed = snapshot is not None and {each.branch for each in snapshot.branches} != shown
        changed = changed or (snapshot is not None and self.tree is not None and snapshot.branch != self.tree.head)
        if self.problem is None and (changed or time.monotonic() - self._tree_asked_at >= TREE_AGE_S):
            self._tree_asked_at = time.monotonic()
            try:
                self.tree = client().tree(self.run)
            except (Unavailable, NotAllowed) as problem:
                self.problem = problem
        return self.tree

    def commands(self) -> dict[UUID, Command]:
        """The commands that this page has heard of, by uuid."""
        known = {view.command.uuid: view.command for view in self.snapshot.commands} if self.snapshot else {}
        for entry in self.entries:
            if isinstance(entry.record, CommandAccepted):
                known[entry.record.command.uuid] = entry.record.command
        return known


def live_run(run: str) -> LiveRun:
    """What this browser tab knows of a run. Another run in the same tab begins from nothing."""
    known = st.session_state.get("live_run")
    if not isinstance(known, LiveRun) or known.run != run:
        known = LiveRun(run)
        st.session_state["live_run"] = known
    return known

"""Control server of one run: durable first, then visible.

The whole server is one rule, in `_commit`: decide, append and fsync, evolve, notify. Its state is the fold of its
journal, so a new server on the same directory is the same server in a later term. Progress and measurements are kept
apart and may be lost.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from uuid import UUID

from control_plane.api.messages import (
    MAX_TAIL_ENTRIES,
    CommandView,
    Measurements,
    MetricSummary,
    Offer,
    Progress,
    Receipt,
    Report,
    Restart,
    Snapshot,
    StepRange,
    Trajectories,
)
from control_plane.api.newest import NewestValues
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import NotFound, RunEnded
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.core.model.records import (
    CheckpointCommitted,
    CheckpointDiscarded,
    CommandAccepted,
    CommandSettled,
    Death,
    Ending,
    Entry,
    GenerationEnding,
    Record,
    RunCreated,
)
from control_plane.core.model.redaction import Redaction
from control_plane.core.model.state import RunState, evolve
from control_plane.core.rules import alert_rules, checkpoint_rules, crash_loop, decisions, digests, recovery, reflexes
from control_plane.core.rules.agent import proposals, trials
from control_plane.core.rules.branch_rules import AdoptedCheckpoint, Origin
from control_plane.core.rules.decisions import GenerationStart
from control_plane.core.rules.recovery import ResumePoint
from control_plane.core.rules.unrecorded import collect, take_over
from control_plane.server.ages import Ages
from control_plane.server.changes import Changes
from control_plane.server.stores import Adopt, FindUnrecorded, JournalWriter, MeasurementStore, adopt_nothing
from control_plane.server.views import snapshot_of, trajectories_of, view_of
from control_plane.storage.failpoints import reach


class ControlServer:
    """A run's control server: an `OperatorPort` and a `TrainerPort`."""

    def __init__(
        self,
        created: RunCreated,
        journal: JournalWriter,
        metrics: MeasurementStore,
        *,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
        discard: Callable[[CheckpointCommitted], None] = lambda checkpoint: None,
        unrecorded: FindUnrecorded | None = None,
        origin: Origin | None = None,
        adopt: Adopt = adopt_nothing,
        redaction: Redaction = Redaction(),
        give_up_after_s: float | None = None,
    ) -> None:
        """Rebuild the state from the journal and begin a term. Raises `Conflict` if the journal is another run's.

        `discard` removes the files of a checkpoint. `unrecorded` finds those on the disk, but for the names that it is
        given. `origin`: initial state of a run created from another. `adopt`
        copies a checkpoint of another run. `redaction` removes secrets from records. `give_up_after_s`: how long
        trainers without a new step are restarted; None: no limit.
        """
        self._journal, self._metrics = journal, metrics
        self._utc_now, self._clock, self._discard, self._unrecorded = utc_now, clock, discard, unrecorded
        self._adopt, self._adopting, self._redaction = adopt, asyncio.Lock(), redaction
        self._state = RunState()
        self._entries: list[Entry] = []
        self._progress: Progress | None = None
        self._progress_at = self._moved_at = clock()
        self._revision = 0
        self._ages = Ages(clock)
        self._give_up_after_s = give_up_after_s
        self._changes = Changes(clock)
        for entry in journal.entries:
            self._fold(entry, self._age_s)
        self._newest = NewestValues(metrics, self._state)
        self._commit(decisions.create(self._state, created, origin))
        self._commit(decisions.start_term(self._state, journal.term))

    @property
    def term(self) -> int:
        """Term of this control server, counted from 1."""
        return self._state.term

    @property
    def discarded(self) -> frozenset[str]:
        """Discarded checkpoints, whether or not all of their files are removed."""
        return frozenset(self._state.checkpoints.discarded)

    def _commit(self, records: list[Record]) -> None:
        """Append records: durable first, then visible. Raises `Fenced` or `Unavailable` with nothing changed."""
        if not records:
            return
        now = self._utc_now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        reach("server.commit", "before_append")
        entries = self._journal.append([self._redacted(record) for record in records], now)
        reach("server.commit", "after_append")
        for entry in entries:
            self._fold(entry)
        self._newest.follow(entries)
        reach("server.commit", "after_evolve")
        self._changes.notify()

    def _redacted(self, record: Record) -> Record:
        """Return the record without secrets. A command stays as sent: ranks execute it, its sender may retry."""
        return record if isinstance(record, CommandAccepted) else self._redaction.words(record)

    def _age_s(self, entry: Entry) -> float:
        """Return the age in seconds of an earlier term's entry, by the wall clock, which may have been set since."""
        return max(0.0, (self._utc_now() - datetime.fromisoformat(entry.time)).total_seconds())

    def _fold(self, entry: Entry, age_s: Callable[[Entry], float] = lambda entry: 0.0) -> None:
        pending_before = len(self._state.pending)
        evolve(self._state, entry)
        self._entries.append(entry)
        self._ages.note(self._state, entry, age_s(entry))
        if len(self._state.pending) != pending_before:
            self._revision += 1

    # Calls of operators

    async def submit(self, command: Command) -> Receipt:
        """Make a command durable, or refuse it with a reason."""
        if isinstance(command.intent, AdoptCheckpoint):
            # If the caller gives up waiting, the adoption still completes, and a retry finds its result.
            return await asyncio.shield(self._submit_adoption(command, command.intent))
        return self._take(command)

    async def _submit_adoption(self, command: Command, intent: AdoptCheckpoint) -> Receipt:
        """Adopt one checkpoint at a time. The files are copied in a thread: verifying them takes seconds."""
        async with self._adopting:
            branch = decisions.to_be_adopted(self._state, command)
            if branch is None:
                return self._take(command)
            known = frozenset(self._state.checkpoints.committed_seq)
            return self._take(command, await asyncio.to_thread(self._adopt, intent, branch, known))

    def _take(self, command: Command, adopted: AdoptedCheckpoint | None = None) -> Receipt:
        self._expire_proposals()
        records = decisions.accept(self._state, command, self._ages.changed_s_ago(), adopted)
        deleted = {record.checkpoint for record in records if isinstance(record, CheckpointDiscarded)}
        gone = [each for each in self._state.checkpoints.existing if each.checkpoint in deleted]
        self._commit(records)
        for each in gone:
            reach("server.delete", "before_removal")
            self._discard(each)
        self._go_on_with_trial()
        self._stop_if_nobody_trains()
        life = self._state.commands[command.uuid]
        reach("server.submit", "before_reply")
        return Receipt(uuid=command.uuid, run=self._state.run, seq=life.accepted_seq, status=life.status)

    def _expire_proposals(self) -> None:
        """Close the proposals whose deadline has passed, each in a write of its own."""
        while any(self._state.agent.open_proposals()):
            settling = decisions.Settling(self._ages.changed_s_ago())
            open_s = self._ages.proposed_s_ago(self._state)
            if not (records := proposals.expire_proposals(self._state, open_s, settling.accept)):
                return
            self._commit(records)

    def _go_on_with_trial(self) -> None:
        """Write what comes next in the trial of a proposal."""
        while records := trials.next_records(self._state, decisions.Settling(self._ages.changed_s_ago()).accept):
            self._commit(records)

    async def command(self, uuid: UUID) -> CommandView:
        """See `OperatorPort.command`."""
        life = self._state.commands.get(uuid)
        if life is None:
            raise NotFound(f"run {self._state.run} has no command {uuid}")
        return view_of(life)

    async def snapshot(self) -> Snapshot:
        """See `OperatorPort.snapshot`."""
        age_s = round(self._clock() - self._progress_at, 3) if self._progress else None
        return snapshot_of(
            self._state,
            dict(self._newest.values),
            progress=self._progress,
            progress_age_s=age_s,
            failed_s_ago=self._failed_s_ago(),
            proposed_s_ago=self._ages.proposed_s_ago(self._state),
        )

    async def tail(self, after_seq: int, limit: int, wait_s: float) -> tuple[Entry, ...]:
        """See `OperatorPort.tail`. Entry `seq` is at index `seq - 1`: there are no gaps."""
        await self._changes.wait_until(lambda: self._state.seq > after_seq, wait_s)
        start = max(after_seq, 0)
        return tuple(self._entries[start : start + min(max(limit, 0), MAX_TAIL_ENTRIES)])

    async def measurements(self, after: int, limit: int, names: tuple[str, ...] = ()) -> Measurements:
        """See `OperatorPort.measurements`."""
        return self._metrics.read(after, limit, names)

    async def results(self, stretches: tuple[StepRange, ...], names: tuple[str, ...]) -> tuple[MetricSummary, ...]:
        """Return a summary of each metric over each step range."""
        return self._metrics.results(stretches, names)

    async def trajectories(self) -> Trajectories:
        """See `OperatorPort.trajectories`."""
        return trajectories_of(self._state, self._progress)

    # Calls of rank 0 and the driver

    async def resume_point(self, call: int = 1, fingerprint: str = "") -> ResumePoint:
        """See `TrainerPort.resume_point`. Closes the run as failed in a crash loop."""
        self._commit(decisions.infer_failure(self._state, *self._heard()))
        self._give_up_if_hopeless()
        if self._state.closed is not None:
            raise RunEnded(f"run {self._state.run} has {self._state.closed.ending}: {self._state.closed.reason}")
        await self._take_over(collecting=False)
        return recovery.resume_point(self._state, call, fingerprint)

    async def resume(self, author: str, back: bool = False) -> None:
        """See `TrainerPort.resume`."""
        self._commit(decisions.resume_run(self._state, author, back))
        await self._take_over(collecting=True)

    async def fail_generation(self, generation: int, deaths: tuple[Death, ...], failure: UUID | None = None) -> None:
        """See `TrainerPort.fail_generation`. The last step that rank 0 reported counts as reached."""
        self._commit(decisions.fail_generation(self._state, generation, *self._heard(), deaths, failure))
        self._give_up_if_hopeless()
        self._stop_if_nobody_trains()

    def _heard(self) -> tuple[int, float]:
        """Return the last step that rank 0 reported, and the seconds since it was made."""
        if self._progress is None:
            return 0, 0.0
        return self._progress.step, round(self._clock() - self._moved_at, 3)

    def _give_up_if_hopeless(self) -> None:
        if self._state.closed is not None or not self._state.failures:
            return
        failing_s = self._failed_s_ago(len(crash_loop.failures_without_a_new_step(self._state)))
        if reason := crash_loop.reason_to_give_up(self._state, failing_s, self._give_up_after_s):
            self._commit(decisions.close_run(self._state, "failed", reason))

    def _stop_if_nobody_trains(self) -> None:
        """Apply a pending stop at once while the trainers wait in the restart backoff, see `crash_loop`."""
        if crash_loop.is_waiting(self._state, self._failed_s_ago()):
            self._commit(decisions.stop_before_a_start(self._state))

    def _failed_s_ago(self, back: int = 1) -> float:
        """Return the seconds since the trainers last failed, or since `back` failures ago, the last one included."""
        return self._ages.failed_s_ago(len(self._state.failures) - back + 1)

    async def start_generation(self, start: GenerationStart) -> int:
        """See `TrainerPort.start_generation`."""
        begun = decisions.start_generation(self._state, start)
        self._commit(begun)
        if begun:
            self._progress = Progress(step=start.step, total_steps=start.total_steps)
            self._progress_at = self._moved_at = self._clock()
        return self._state.generation_number

    async def offers(self, generation: int, seen_revision: int, wait_s: float) -> Offer:
        """See `TrainerPort.offers`."""
        decisions.check_generation(self._state, generation)
        self._expire_proposals()
        await self._changes.wait_until(
            lambda: (
                self._revision != seen_revision
                or self._state.generation_number != generation
                or not self._state.listens
            ),
            wait_s,
        )
        decisions.check_generation(self._state, generation)
        return Offer(commands=self._state.pending_commands(), revision=self._revision)

    async def report(self, report: Report) -> None:
        """See `TrainerPort.report`. Outcomes become records; measurements and progress are kept apart."""
        decisions.check_generation(self._state, report.generation)
        self._expire_proposals()
        # In this order: a restorable checkpoint contains no decision that the journal does not have.
        self._settle(report.outcomes)
        for checkpoint in report.checkpoints:
            self._commit(checkpoint_rules.commit_checkpoint(self._state, checkpoint))
        for failed in report.failed_checkpoints:
            self._commit(checkpoint_rules.fail_checkpoint(self._state, failed))
        self._take_health(report)
        # One write for all digests: a run that digests every step would fsync once for each of them.
        self._commit([new for each in report.digests for new in digests.digest_state(self._state, each)])
        if report.restart is not None:
            self._recover(report.restart)
        self._go_on_with_trial()
        if report.checkpoints:
            self._retire_checkpoints()
        if report.points:
            at, state = report.generation, self._state
            of = {"branch": state.tree.of_generation[at], "training": state.training_of_generation[at]}
            self._metrics.add([point.model_copy(update=of) for point in report.points])
            self._newest.note(report.points)
        if report.progress is not None:
            if self._progress is None or report.progress.step != self._progress.step:
                self._moved_at = self._clock()
            self._progress, self._progress_at = report.progress, self._clock()
        reach("server.report", "before_reply")

    def _take_health(self, report: Report) -> None:
        """Record alerts one by one: each is one write, together with the commands of the reflex that answers it."""
        if not report.health:  # a start that has failed reports before there is a generation
            return
        at = report.generation
        of = {"branch": self._state.tree.of_generation[at], "training": self._state.training_of_generation[at]}
        for change in report.health:
            for alert in change.raised:
                ago_s = self._ages.changed_s_ago()
                self._commit(reflexes.raise_alert(self._state, alert.model_copy(update=of), at, ago_s))
            for cleared in change.cleared:
                self._commit(alert_rules.clear_alert(self._state, cleared.model_copy(update=of), at))

    def _settle(self, outcomes: Sequence[CommandSettled]) -> None:
        """Record the outcomes of a boundary in one write: the server is blocked during each fsync.

        Outcomes of different commands are independent. An applied rollback has further records and is written alone.
        """
        together: dict[UUID, Record] = {}

        def write() -> None:
            records = list(together.values())
            together.clear()
            self._commit(records)

        try:
            for outcome in outcomes:
                if outcome.uuid in together:
                    write()
                decided = decisions.settle(self._state, outcome)
                if len(decided) > 1:
                    write()
                    self._commit(decisions.settle(self._state, outcome))
                elif decided:
                    together[outcome.uuid] = decided[0]
        finally:
            write()

    def _recover(self, restart: Restart) -> None:
        failures = self._state.failures
        failed_at_s = datetime.fromisoformat(failures[-1].failed_at).timestamp() if failures else restart.started_at_s
        recovered = recovery.recovery_record(
            self._state,
            step=restart.step,
            reform_s=restart.started_at_s - failed_at_s,
            loaded_s=restart.loaded_s,
            first_step_s=restart.first_step_s,
        )
        self._commit(decisions.recover_generation(self._state, recovered))

    def _retire_checkpoints(self) -> None:
        """Discard checkpoints outside retention: the decision is durable before the first file is removed."""
        self._let_go(checkpoint_rules.retired_checkpoints(self._state))

    async def _take_over(self, collecting: bool) -> None:
        """Record checkpoints that were committed while no control server was there, see `core.rules.unrecorded`."""
        if self._unrecorded is None:
            return
        checkpoints = self._state.checkpoints
        known = {each.checkpoint for each in checkpoints.existing} | checkpoints.discarded
        found = await asyncio.to_thread(self._unrecorded, known)
        self._commit(take_over(self._state, found))
        if collecting:
            self._let_go(collect(self._state, found))

    def _let_go(self, retired: list[tuple[CheckpointCommitted, str]]) -> None:
        self._commit([CheckpointDiscarded(checkpoint=each.checkpoint, reason=reason) for each, reason in retired])
        for each, _ in retired:
            reach("server.retire", "before_removal")
            self._discard(each)

    async def end_generation(self, generation: int, ending: GenerationEnding, step: int, reason: str | None) -> None:
        """See `TrainerPort.end_generation`."""
        self._commit(decisions.end_generation(self._state, generation, ending, step, reason))

    async def close(self, ending: Ending, reason: str | None) -> None:
        """See `TrainerPort.close`."""
        self._commit(decisions.close_run(self._state, ending, reason))

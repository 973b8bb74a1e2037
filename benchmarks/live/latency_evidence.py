"""Evidence of the latency benchmark, from three independent sources.

    the sender     the time of each command's 202, and its value
    the journal    the step at which each command was settled
    the diaries    the learning rate of each rank's live optimizer at the beginning of each step

A command that was applied at the boundary after step s is used by step s + 1, on every rank. Of several commands that
were applied at one boundary, the last one is used.

`steps` is the step at which a command was settled, less the last step that rank 0 had completed when the 202 arrived:
0 if it was applied before the 202 arrived, 1 at the end of the step in progress.
`milliseconds` runs from the 202 until the last rank began a step with the value (or, of a command that another one of
the same boundary replaced, with that other one's).
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from benchmarks.harness.quantiles import median, quantile
from control_plane.core.model.records import CommandSettled


@dataclass(frozen=True, slots=True)
class Sent:
    """Command that was sent: its learning rate, and the time of its 202 (Unix time)."""

    uuid: UUID
    rate: float
    taken_s: float


@dataclass(frozen=True, slots=True)
class Page:
    """Step of one rank: its begin and end (Unix time), and its learning rate."""

    begin_s: float
    rate: float
    end_s: float


Diary = Mapping[int, Page]
"""One rank's pages by step."""


@dataclass(frozen=True)
class Evidence:
    """Evidence of one run. `settled` is in the order of the journal, `diaries` in the order of the ranks."""

    sent: Sequence[Sent]
    settled: Sequence[CommandSettled]
    diaries: Sequence[Diary]

    def figures(self) -> dict[str, float]:
        """Return the latencies of applied commands, and counts of violations."""
        applied = self._applied_steps()
        steps = [step - self._completed_at(one.taken_s) for one, step in applied]
        waits_ms = [wait for one, step in applied if (wait := self._wait_ms(one, step)) is not None]
        return {
            "steps_p50": median(steps),
            "steps_p99": quantile(steps, 0.99),
            "steps_max": max(steps, default=float("nan")),
            "milliseconds_p50": median(waits_ms),
            "milliseconds_p99": quantile(waits_ms, 0.99),
            "milliseconds_max": max(waits_ms, default=float("nan")),
            "commands_not_applied": len(self.sent) - len(applied),
            "values_not_used": len(self.unused()),
            "steps_where_ranks_differ": len(self.differing_steps()),
            "steps_per_s": self._steps_per_s(),
        }

    def differing_steps(self) -> list[int]:
        """Return the steps that not every rank made, or not with the same learning rate.

        Only killed ranks may end one step apart; these are not killed, so every step counts.
        """
        every = sorted(set().union(*self.diaries))
        return [step for step in every if len({self._rate(diary, step) for diary in self.diaries}) != 1]

    def unused(self) -> list[int]:
        """Return the steps that did not use, on every rank, the last value that was applied before them."""
        rate_of = {one.uuid: one.rate for one in self.sent}
        last = {
            outcome.step + 1: rate_of[outcome.uuid]
            for outcome in self.settled
            if outcome.status == "applied" and outcome.step is not None and outcome.uuid in rate_of
        }
        return [step for step, rate in last.items() if {self._rate(diary, step) for diary in self.diaries} != {rate}]

    def _applied_steps(self) -> list[tuple[Sent, int]]:
        step_of = {outcome.uuid: outcome.step for outcome in self.settled if outcome.status == "applied"}
        pairs = [(one, step_of.get(one.uuid)) for one in self.sent]
        return [(one, step) for one, step in pairs if step is not None]

    def _completed_at(self, time_s: float) -> int:
        """Return the last step that rank 0 had completed by then, including its boundary."""
        steps = sorted(self.diaries[0])
        ended = bisect_right([self.diaries[0][step].end_s for step in steps], time_s)
        return steps[ended - 1] if ended else steps[0] - 1

    def _wait_ms(self, one: Sent, step: int) -> float | None:
        pages = [diary.get(step + 1) for diary in self.diaries]
        begun_s = [page.begin_s for page in pages if page is not None]
        return 1000 * (max(begun_s) - one.taken_s) if len(begun_s) == len(pages) else None

    def _steps_per_s(self) -> float:
        """Return the steps per second while commands were being sent."""
        first_s, last_s = self.sent[0].taken_s, self.sent[-1].taken_s
        return (self._completed_at(last_s) - self._completed_at(first_s)) / (last_s - first_s)

    @staticmethod
    def _rate(diary: Diary, step: int) -> float | None:
        page = diary.get(step)
        return page.rate if page is not None else None

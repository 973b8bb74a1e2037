"""Playing of rounds: launch a run, let its agent steer, wait for its end, score it, and remember it."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from control_plane.agent.loop import run_agent
from control_plane.agent.options import AgentClient, AgentOptions
from control_plane.agent.policy import printable
from control_plane.agent.rounds.memory import REFERENCE, Memory, Plan, RoundBegun, RoundEnded, Schedule
from control_plane.agent.rounds.planner import Asked, plan_by_model, plan_by_rule
from control_plane.api.messages import Point, Snapshot
from control_plane.core.model.errors import SteerwayError, Unavailable

POLL_S = 2.0
PAGE = 5000
LAST_SHARE = 0.1
"""Without an evaluation, the score is the mean loss of this share of the steps, the last ones."""

RULE = "local search"


class Spending(Protocol):
    """Spending on a model so far."""

    def __call__(self) -> tuple[int, float | None]:
        """Return tokens and cost; None: prices are not known."""
        ...


@dataclass(frozen=True, slots=True)
class Series:
    """Common parts of all rounds of a series.

    launch: begins a run with these overrides and returns its id. agent: the policy of the agent in the rounds after
    the reference; None: no agent. spent: what models have cost so far.
    """

    launch: Callable[[Sequence[str]], str]
    client: AgentClient
    rate: float
    schedule: Schedule
    seed: int
    agent: AgentOptions | None = None
    model: Asked | None = None
    environ: dict[str, str] | None = None
    budget: Any = None
    spent: Spending = lambda: (0, 0.0)
    say: Callable[[str], None] = print
    wait: Callable[[float], None] = time.sleep


def play(memory: Memory, series: Series, rounds: int) -> None:
    """Play the reference and then rounds, until the memory holds `rounds` beside the reference.

    Raises as the launch and the client do; called again, it continues where it was.
    """
    while (waiting := memory.unfinished) is not None or len(memory.ended) <= rounds:
        began_s = time.monotonic()
        before = series.spent()
        if waiting is None:
            number = len(memory.ended)
            plan, planner, reason = _plan(memory, series, number)
            series.say(f"round {number}: {plan.describe()} ({planner}: {printable(reason, 120)})")
            run = series.launch(plan.overrides())
            begun = RoundBegun(
                series=memory.series, round=number, run=run, plan=plan, planner=planner, reason=printable(reason, 200)
            )
            memory.add(begun)
        else:
            begun = waiting.begun
            series.say(f"round {begun.round}: continues with run {begun.run}")
        actions = _steer(series, begun)
        ended = _wait_for_end(series, begun.run)
        score, metric = score_of(_points(series, begun.run))
        finished = ended.status == "finished"
        tokens, cost = (_difference(now, then) for now, then in zip(series.spent(), before, strict=True))
        memory.add(
            RoundEnded(
                series=memory.series,
                round=begun.round,
                run=begun.run,
                status=ended.status,
                score=score if finished else None,
                metric=metric,
                steps=ended.step,
                seconds=round(time.monotonic() - began_s, 1),
                actions=actions,
                tokens=int(tokens or 0),
                cost=cost,
            )
        )
        told = f"{metric} {score:.4f}" if finished and score is not None else "no score"
        series.say(f"round {begun.round}: {ended.status} at step {ended.step}, {told}, {actions} changes by its agent")


def _plan(memory: Memory, series: Series, number: int) -> tuple[Plan, str, str]:
    if number == REFERENCE:
        return Plan(), "reference", "the config as it is, without an agent"
    rounds = memory.ended
    if series.model is not None:
        try:
            plan, reason = plan_by_model(series.model, rounds, series.rate, series.schedule)
        except Unavailable as error:
            series.say(f"{error.reason}; {RULE} plans this round")
        else:
            return plan, series.model.name, reason
    plan, reason = plan_by_rule(rounds, series.rate, series.schedule, series.seed)
    return plan, RULE, reason


def _steer(series: Series, begun: RoundBegun) -> int:
    """Steer a round's run in this process until it has ended; return the number of applied changes."""
    if begun.round == REFERENCE or series.agent is None:
        return 0
    try:
        return run_agent(
            series.client,
            begun.run,
            series.agent,
            lambda line: series.say(f"  {line}"),
            environ=series.environ or {},
            wait=series.wait,
            budget=series.budget,
        )
    except SteerwayError as error:
        series.say(f"round {begun.round}: its agent has ended: {error.reason}")
        return 0


def _wait_for_end(series: Series, run: str) -> Snapshot:
    while True:
        try:
            snapshot = series.client.snapshot(run)
        except Unavailable as error:
            series.say(f"{error.reason}; retrying")
        else:
            if snapshot.closed:
                return snapshot
        series.wait(POLL_S)


def _points(series: Series, run: str) -> list[Point]:
    points: list[Point] = []
    cursor = 0
    while True:
        page = series.client.metrics(run, after=cursor, limit=PAGE, names=("loss", "eval_loss"))
        points += page.points
        cursor = page.cursor
        if len(page.points) < PAGE:
            return points


def score_of(points: Sequence[Point]) -> tuple[float | None, str]:
    """Return a run's score and what it is: the last evaluation's loss, else the mean of the last tenth of the losses.

    None if it is not finite, or nothing was measured.
    """
    evaluations = [point.value for point in points if point.name == "eval_loss"]
    if evaluations:
        return (evaluations[-1] if math.isfinite(evaluations[-1]) else None), "eval_loss"
    losses = [(point.step, point.value) for point in points if point.name == "loss"]
    if not losses:
        return None, ""
    last = losses[-1][0]
    late = [value for step, value in losses if step > last * (1 - LAST_SHARE)]
    mean = sum(late) / len(late)
    return (mean if math.isfinite(mean) else None), "loss"


def _difference(now: float | None, then: float | None) -> float | None:
    return None if now is None or then is None else now - then

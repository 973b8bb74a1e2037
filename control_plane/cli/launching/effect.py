"""`steer effect`: what one command of a run did, by replays of the run without it and with placebos in its place."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from control_plane.cli.commands import lifecycle, show
from control_plane.cli.launching.effect_arms import (
    Arms,
    Curves,
    curves,
    line_of,
    patiently,
    placebo_sizes,
    refusals,
    whole_journal,
)
from control_plane.cli.launching.resume import Trust
from control_plane.cli.output.printing import say, tell, tell_json
from control_plane.cli.select_run import any_run, connect
from control_plane.compare.effect import MIN_PLACEBOS, EffectReport, MetricEffect, Statistic, Window, measure
from control_plane.core.model.errors import Conflict, Diverged
from control_plane.core.model.state import RunState, fold
from control_plane.core.rules.effect.plan import EffectPlan, plan, short

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient
    from control_plane.compare.replay_check import ReplayVerdict

MAX_PLACEBOS = 32
DEFAULT_PLACEBOS = 6
MAX_LAYERS_SHOWN = 6
"""Signs of single layers in the table, those with the largest effect; `--json` has all."""

ALIKE, APART, SAME = "not distinguishable", "distinguishable", "identical"
HEADS = ("METRIC", "WITH IT", "WITHOUT", "EFFECT", "PLACEBOS", "BEYOND", "VERDICT")


def effect(
    run: Annotated[str, typer.Argument(help="Run id, or a unique prefix or suffix of it.")],
    command: Annotated[
        str,
        typer.Argument(metavar="UUID", help="The command's uuid, or at least its first 8 digits (`steer journal`)."),
    ],
    placebos: Annotated[
        int, typer.Option("--placebos", min=MIN_PLACEBOS, max=MAX_PLACEBOS, help="Number of placebo replays.")
    ] = DEFAULT_PLACEBOS,
    until: Annotated[
        int | None, typer.Option("--until-step", metavar="STEP", min=1, help="Stop the replays at this step.")
    ] = None,
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, max=MAX_PLACEBOS, help="Replays that may train at the same time.")
    ] = 1,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE", help="Draw the curves into a .png or .svg file.")
    ] = None,
    trust: Trust = False,
    as_json: lifecycle.AsJson = False,
) -> None:
    """Measure the exact effect of one command: replay the run without it, beside placebos. Continues where it ended."""
    if figure is not None:
        from control_plane.cli.output.effect_figure import check_can_draw

        check_can_draw(figure)
    with connect() as client:
        chosen = any_run(client, run)
        uuid = lifecycle.uuid_of(client, chosen, command)
        entries = whole_journal(client, chosen)
        state = fold(entries)
        planned = plan(entries, uuid, until_step=until)
        sizes = placebo_sizes(placebos)
        in_place = {size: set(plan(entries, uuid, size, until).placebo) for size in sizes}
        report, drawn = _measured(client, state, planned, in_place, Choices(until, parallel, trust))
    if figure is not None:
        from control_plane.cli.output.effect_figure import draw

        draw(figure, report, drawn)
        say(f"figure: {figure}")
    if as_json:
        tell_json(report)
        return
    _tell(report)


@dataclass(frozen=True, slots=True)
class Choices:
    """Choices of the user for the replays."""

    until_step: int | None
    parallel: int
    trust: bool


def _measured(
    client: "SteerwayClient",
    state: RunState,
    planned: EffectPlan,
    in_place: Mapping[float, set[UUID]],
    choices: Choices,
) -> tuple[EffectReport, list[Curves]]:
    """Run the arms and return what was measured, with the curves of the run, of the replay and of the placebos.

    Args:
        in_place: by size of the placebo, the uuids of the commands in place of the one left out.
    """
    until = choices.until_step
    without, run = planned.without, state.run
    notes = _notes_before(state, planned, until)
    say(*notes)
    end = until or state.tree.reached.get(state.tree.head, 0)
    arms = Arms(client, run, without, until or (None if state.closed else end), end, choices.trust)
    arms.ensure([None], choices.parallel)
    replay = arms.begun[None]
    verdict = _checked(client, replay, run)
    refused = refusals(whole_journal(client, replay))
    if verdict.verdict == "incomparable":
        notes.append(f"nothing was measured until step {without.step} that could show that the replay is the same run")
        say(notes[-1])
    arms.ensure(list(in_place), choices.parallel)
    valid = {
        arms.begun[size]: size
        for size, own in in_place.items()
        if not _is_refused(client, arms.begun[size], own, notes)
    }
    for name in valid:
        _checked(client, name, run)
    if len(valid) < MIN_PLACEBOS:
        raise Conflict(f"only {len(valid)} placebos were applied, and {MIN_PLACEBOS} are needed: {notes[-1]}")
    line = line_of(client.snapshot(replay))
    measured = [curves(client, each, line, without.training) for each in (run, replay, *valid)]
    metrics = measure(measured[0], measured[1], measured[2:], without.step)
    if not metrics:
        raise Conflict(
            f"nothing was measured after step {without.step}, where the command took effect: nothing to compare"
        )
    life = state.commands[without.command]
    report = EffectReport(
        run=run,
        what=planned.what,
        author=life.command.author,
        without=without,
        replay=replay,
        placebos=valid,
        until=verdict,
        last_step=max(each.of("last step").last_step for each in metrics),
        metrics=metrics,
        rewritten=planned.rewritten,
        refused=tuple(refused.values()),
        notes=tuple(notes),
    )
    return report, measured


def _notes_before(state: RunState, planned: EffectPlan, until: int | None) -> list[str]:
    """Return what the user should know before the replays begin."""
    notes = []
    if state.closed is None and until is None:
        reached = state.tree.reached.get(state.tree.head, 0)
        notes.append(
            f"run {state.run} has not ended: its first {reached} steps are compared; with --until-step {reached} a "
            "repeated command finds these replays again"
        )
    if len(state.trainings) > 1:
        notes.append(f"the script trains {len(state.trainings)} times; training {planned.without.training} is compared")
    return notes


def _checked(client: "SteerwayClient", replay: str, run: str) -> "ReplayVerdict":
    """Return the proof that a replay is the run until the command's step. Raises `Diverged`, naming the first step."""
    verdict = patiently(partial(client.replay_check, replay, run))
    if verdict.verdict == "divergent":
        reasons = "".join(f"; {note}" for note in verdict.notes)
        raise Diverged(
            f"the replay {replay} is not the run until the command took effect: {verdict.sentence()}{reasons}"
        )
    return verdict


def _is_refused(client: "SteerwayClient", replay: str, placebo: set[UUID], notes: list[str]) -> bool:
    """Return whether a placebo was not applied; note why."""
    refused = [each for uuid, each in refusals(whole_journal(client, replay)).items() if uuid in placebo]
    if not refused:
        return False
    notes.append(f"the placebo of {replay} ({refused[0].what}) was {refused[0].status}: {refused[0].reason}")
    say(notes[-1])
    return True


# Tables


def _tell(report: EffectReport) -> None:
    without = report.without
    tell(
        f"effect of {report.what} (command {short(without.command)}, by {report.author}, after step {without.step}) on "
        f"run {report.run}",
        f"until there: {report.until.sentence()}",
        f"replay without it: {report.replay}; {len(report.placebos)} placebos in its place, lr x (1 +- "
        f"{max(map(abs, report.placebos.values())):g}) at most",
        "",
    )
    for title, window in (
        ("mean of the last tenth of the steps after it", "last tenth"),
        ("distance of the curves, mean over all steps after it", "area"),
    ):
        tell(f"{title}, to step {report.last_step}")
        show.print_table(HEADS, [_row(each, window) for each in _shown(report.metrics, window)])  # type: ignore[arg-type]
        tell("")
    for each in report.rewritten:
        done = ", ".join(each.becomes)
        reason = f" ({each.reason})" if each.reason else ""
        tell(
            f"step {each.step}: {each.what} " + (f"was repeated as {done}{reason}" if done else f"was left out{reason}")
        )
    for refused in report.refused:
        where = f"step {refused.step}: " if refused.step is not None else ""
        tell(f"{where}{refused.what} was {refused.status} without the command: {refused.reason or 'no reason given'}")
    count = len(report.placebos)
    say(f"beyond all {count} placebos by chance: 1 in {count + 1}, for one metric looked at alone")


def _shown(metrics: tuple[MetricEffect, ...], window: Window) -> list[MetricEffect]:
    """Return the metrics of a table: all but those of single layers, and of these the ones with the largest effect."""
    layers = [each for each in metrics if "/" in each.name and not each.name.endswith("loss")]
    layers.sort(key=lambda each: _times(each.of(window)), reverse=True)
    kept = {each.name for each in layers[:MAX_LAYERS_SHOWN]}
    return [each for each in metrics if each not in layers or each.name in kept]


def _times(statistic: Statistic) -> float:
    """Return the effect in units of the placebos' spread."""
    if statistic.effect == 0:
        return 0.0
    return abs(statistic.effect) / statistic.spread if statistic.spread else float("inf")


def _row(metric: MetricEffect, window: Window) -> tuple[str, ...]:
    found = metric.of(window)
    apart = APART if found.distinguishable else SAME if found.effect == 0 else ALIKE
    effect = f"{found.effect:+.4g}" if window != "area" else f"{found.effect:.4g}"
    times = _times(found)
    return (
        metric.name,
        f"{found.run:.5g}",
        f"{found.without:.5g}",
        effect,
        f"<= {found.spread:.3g}",
        f"{found.nearer}/{len(found.placebos)}",
        apart + (f", x{times:.3g}" if found.distinguishable and isfinite(times) else ""),
    )

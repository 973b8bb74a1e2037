"""What the charts are told to draw."""

import json
import math
import random
from typing import Any
from uuid import UUID

import pytest

from control_plane.api.messages import BranchView, CommandView, Measurements, Point, RecoveryView, Snapshot
from control_plane.compare.lineage import lineage
from control_plane.core.model.commands import Command, Intent, Pause, SaveCheckpoint, SetLearningRate
from control_plane.core.model.intents import Rollback
from control_plane.core.model.records import CommandSettled, Death
from ui.charts.charts import View, chart_options
from ui.charts.history import MetricsHistory
from ui.charts.layout import Band, Mark, bands, marks, on_the_line


def heard(name: str, values: dict[int, float]) -> Measurements:
    """Measurements of one metric, by step."""
    points = [Point(step=step, name=name, value=value, time_s=1000.0 + 60 * step) for step, value in values.items()]
    return Measurements(points=tuple(points), cursor=len(points))


def history(name: str, values: dict[int, float]) -> MetricsHistory:
    """A history with one metric."""
    made = MetricsHistory()
    made.extend(heard(name, values))
    return made


def series(options: dict[str, Any], id: str) -> dict[str, Any]:
    """The series of this id."""
    return next(one for one in options["baseOption"]["series"] if one["id"] == id)


def applied(number: int, intent: Intent, step: int, status: str = "applied") -> CommandView:
    """A command with its end."""
    command = Command(uuid=UUID(int=number), author="ada", intent=intent)
    settled = CommandSettled.model_validate({"uuid": command.uuid, "status": status, "step": step, "reason": "no"})
    return CommandView(
        command=command,
        what=command.describe(),
        status=status,
        accepted_seq=number,
        accepted_at="2026-01-01T00:00:00Z",
        settled=settled,
        settled_at="2026-01-01T00:01:00Z",
    )


def test_chart_of_steps_that_came_again_draws_the_last_value_of_each() -> None:
    made = history("loss", {1: 5.0, 2: 4.0, 3: 3.0, 4: 2.0})
    made.extend(heard("loss", {3: 3.1}))
    assert series(chart_options(made, [], View()), "0/loss")["data"] == [[1, 5], [2, 4], [3, 3.1]]
    made.extend(heard("loss", {4: 2.1, 5: 1.9}))
    assert series(chart_options(made, [], View()), "0/loss")["data"] == [[1, 5], [2, 4], [3, 3.1], [4, 2.1], [5, 1.9]]


def test_chart_of_steps_that_came_again_never_goes_back() -> None:
    made, choice = MetricsHistory(), random.Random(4)
    step = 0
    for _ in range(300):
        step = max(1, step - choice.randrange(9)) if choice.random() < 0.1 else step + 1
        made.extend(heard("loss", {step: step + choice.random()}))
        made.series["loss"].smoothed(0.5)
    for data in (one["data"] for one in chart_options(made, [], View(smoothing=0.5))["baseOption"]["series"]):
        steps = [x for x, _ in data] if data and isinstance(data[0], list) else []
        assert steps == sorted(set(steps))
    assert int(made.series["loss"].values[-1]) == step


def test_chart_over_time_has_a_gap_where_nothing_is_left() -> None:
    made = history("loss", {1: 5.0, 2: 4.0, 3: 3.0})
    again = Point(step=3, name="loss", value=3.1, time_s=1000.0 + 60 * 9)
    made.extend(Measurements(points=(again,), cursor=4))
    data = series(chart_options(made, [], View(axis="time")), "0/loss")["data"]
    assert data == [[0, 5], [1, 4], [8, None], [8, 3.1]]


def test_smoothing_of_steps_that_came_again_is_smoothing_of_what_is_left() -> None:
    made, left = history("loss", {1: 5.0, 2: 4.0, 3: 9.0}), history("loss", {1: 5.0, 2: 4.5, 3: 3.0})
    made.series["loss"].smoothed(0.8)
    made.extend(heard("loss", {2: 4.5, 3: 3.0}))
    assert made.series["loss"].smoothed(0.8).tolist() == left.series["loss"].smoothed(0.8).tolist()


def test_chart_of_values_that_are_not_finite_marks_them() -> None:
    options = chart_options(history("loss", {1: 2.0, 2: math.nan, 3: math.inf, 4: 2.5}), [], View())
    assert series(options, "0/loss")["data"] == [[1, 2], [4, 2.5]]
    assert [mark["name"] for mark in series(options, "0/loss/faults")["data"]] == ["NaN", "+inf"]


def test_chart_options_are_json_without_nan() -> None:
    made = history("loss", dict.fromkeys(range(5), math.nan))
    json.dumps(chart_options(made, [Mark(2, "pause")], View(smoothing=0.9, log_y=True)), allow_nan=False)


def test_chart_with_smoothing_keeps_the_raw_line_faint() -> None:
    options = chart_options(history("loss", {1: 4.0, 2: 2.0}), [], View(smoothing=0.5))
    assert series(options, "0/loss")["lineStyle"]["opacity"] < 0.5
    assert series(options, "0/loss/smooth")["data"] == [[1, 4], [2, pytest.approx(2.66667)]]


def test_smoothing_over_several_refreshes_is_smoothing_at_once() -> None:
    values = {step: math.sin(step) for step in range(50)}
    at_once, piecewise = history("loss", values), MetricsHistory()
    for step, value in values.items():
        piecewise.extend(heard("loss", {step: value}))
        piecewise.series["loss"].smoothed(0.8)
    assert piecewise.series["loss"].smoothed(0.8).tolist() == at_once.series["loss"].smoothed(0.8).tolist()


def test_chart_of_a_long_run_sends_few_points() -> None:
    options = chart_options(history("loss", {step: 1 / (step + 1) for step in range(40_000)}), [], View())
    assert len(series(options, "0/loss")["data"]) <= 1300


def test_layouts_name_every_series_or_they_would_vanish() -> None:
    options = chart_options(history("loss", {1: 1.0}), [], View(smoothing=0.5))
    ids = [one["id"] for one in options["baseOption"]["series"]]
    assert [[one["id"] for one in layout["option"]["series"]] for layout in options["media"]] == [ids, ids]


def test_marks_stand_where_commands_took_effect_and_nowhere_else() -> None:
    commands = [
        applied(1, SetLearningRate(factor=0.5), 40),
        applied(2, SetLearningRate(value=2.0), 60, status="rejected"),
        applied(3, Pause(), 90),
    ]
    assert marks(commands, "step", 0.0, (0.0, 100.0)) == [Mark(40, "lr x 0.5"), Mark(90, "pause")]


def test_marks_that_are_crowded_label_what_changed_the_training() -> None:
    commands = [applied(1, SetLearningRate(factor=0.5), 40), applied(2, SaveCheckpoint(), 41)]
    assert marks(commands, "step", 0.0, (0.0, 100.0)) == [Mark(40, "lr x 0.5"), Mark(41, "")]


def test_marks_on_a_time_axis_are_minutes_after_the_first_measurement() -> None:
    found = marks([applied(1, Pause(), 40)], "time", 1767225600.0, (0.0, 10.0))
    assert found == [Mark(1.0, "pause")]


LOST = RecoveryView(
    generation=1,
    lost_at="2026-01-01T00:01:00Z",
    step=50,
    silent_s=6.0,
    deaths=(Death(rank=1, node="node-3", reason="its process ended"),),
)
BACK = LOST.model_copy(
    update={"resumed_step": 40, "lost_steps": 10, "phases_s": {"detect": 6.0, "re-form": 20.0, "load": 4.0}}
)
NEW_YEAR_S = 1767225600.0


def test_loss_is_marked_where_it_happened_and_gives_way_to_nothing() -> None:
    found = marks([applied(1, SetLearningRate(factor=0.5), 49)], "step", 0.0, (0.0, 100.0), (LOST,))
    assert found == [Mark(49, ""), Mark(50, "rank 1 failed", loss=True)]


def test_loss_on_a_time_axis_is_marked_at_the_last_sign_of_life() -> None:
    assert marks([], "time", NEW_YEAR_S, (0.0, 5.0), (LOST,)) == [Mark(0.9, "rank 1 failed", loss=True)]


@pytest.mark.parametrize(
    ("view", "axis", "band"),
    [
        (LOST, "step", None),
        (BACK, "step", Band(40, 50)),
        (LOST, "time", Band(0.9, 5.0)),
        (BACK, "time", Band(0.9, 1.4)),
    ],
)
def test_band_is_what_a_loss_has_cost(view: RecoveryView, axis: str, band: Band | None) -> None:
    extent = (0.0, 100.0) if axis == "step" else (0.0, 5.0)
    assert bands([view], axis, NEW_YEAR_S, extent) == ([band] if band else [])


def test_chart_draws_losses_unlike_commands() -> None:
    made = history("loss", {1: 5.0, 100: 4.0})
    options = chart_options(made, [Mark(40, "pause"), Mark(99, "rank 1 failed", loss=True)], View(), [Band(90, 99)])
    drawn = series(options, "0/interventions")
    pause, lost = drawn["markLine"]["data"]
    assert "lineStyle" not in pause
    assert (lost["lineStyle"]["type"], lost["label"]["align"]) == ("solid", "right")
    assert drawn["markArea"]["data"] == [[{"xAxis": 90}, {"xAxis": 99}]]


def test_marks_of_a_line_are_its_own_commands_and_where_it_branched() -> None:
    went_back = applied(1, Rollback(checkpoint="c"), 27)
    theirs, ours = applied(2, Pause(), 25), applied(3, Pause(), 25).model_copy(update={"branch": "calm"})
    first = applied(4, SetLearningRate(value=1e-4), 20).model_copy(update={"branch": "calm"})
    views = (BranchView(branch="main"), BranchView(branch="calm", parent="main", checkpoint="c", step=20, head=True))
    losses = (
        RecoveryView(generation=1, lost_at="2026-01-01T00:01:00Z", step=26, branch="main"),
        RecoveryView(generation=1, lost_at="2026-01-01T00:01:00Z", step=15, branch="main"),
    )
    snapshot = Snapshot(
        run="r",
        name="r",
        status="running",
        seq=1,
        term=1,
        generation=2,
        created_at="2026",
        step=30,
        total_steps=100,
        commands=(theirs, went_back, first, ours),
        recoveries=losses[1:],
        branch="calm",
        branches=views,
    )
    line = lineage(views, "calm")
    commands, lost = on_the_line(snapshot, line)
    assert (commands, lost) == ([first, ours], [losses[1]])
    assert on_the_line(snapshot.model_copy(update={"recoveries": losses[:1]}), line)[1] == []
    found = marks(commands, "step", 0.0, (0.0, 30.0), (), line)
    assert [(mark.x, mark.label) for mark in found] == [(20, "calm"), (25, "pause")]

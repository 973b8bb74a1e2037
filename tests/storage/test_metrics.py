"""Measurements: cursors that lose and repeat nothing, values that JSON cannot hold, and files that are broken."""

import math
import random
import sqlite3
from pathlib import Path

import pytest

from control_plane.api.messages import MeasuredValue, Measurements, Point, Snapshot, StepRange
from control_plane.core.model.values import MAX_STEP
from control_plane.storage.metrics import MAX_POINTS_PER_READ, MAX_SERIES, MetricsStore
from tests.storage.plain_results import results_of


def point(step: int, name: str = "loss", value: float | None = None) -> Point:
    return Point(step=step, name=name, value=step / 7 if value is None else value, time_s=1.7e9 + step)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.sqlite"


def test_read_points_come_back_exact_and_in_order_of_arrival(path: Path) -> None:
    store = MetricsStore(path)
    points = [point(3), point(1, "lr"), point(2), point(2)]
    store.add(points[:1])
    store.add(points[1:])
    assert store.read(0, 10) == Measurements(points=tuple(points), cursor=4)
    store.close()
    assert MetricsStore(path).read(0, 10).points == tuple(points)


def test_read_values_json_cannot_hold_survive_the_file_and_the_wire(path: Path) -> None:
    MetricsStore(path).add([point(1, "a", math.nan), point(1, "b", math.inf), point(1, "c", -math.inf)])
    store = MetricsStore(path)
    measured = Measurements.model_validate_json(store.read(0, 10).model_dump_json())
    assert [repr(p.value) for p in measured.points] == ["nan", "inf", "-inf"]
    shown = Snapshot(
        run="r",
        name="r",
        status="running",
        seq=1,
        term=1,
        generation=1,
        created_at="",
        step=1,
        total_steps=1,
        latest=store.latest(),
    )
    latest = Snapshot.model_validate_json(shown.model_dump_json()).latest
    assert {name: repr(value) for name, value in latest.items()} == {"a": "nan", "b": "inf", "c": "-inf"}


@pytest.mark.parametrize("names", [(), ("loss",), ("loss", "lr"), ("never", "lr")])
@pytest.mark.parametrize("seed", range(5))
def test_read_page_by_page_while_points_arrive_loses_and_repeats_nothing(
    path: Path, names: tuple[str, ...], seed: int
) -> None:
    dice, store = random.Random(seed), MetricsStore(path)
    sent, got, cursor = list[Point](), list[Point](), 0
    for step in range(60):
        arriving = [point(step, dice.choice(["loss", "lr", "speed"])) for _ in range(dice.randrange(6))]
        store.add(arriving)
        sent += arriving
        page = store.read(cursor, dice.randrange(5), names)
        got, cursor = [*got, *page.points], page.cursor
    while page := store.read(cursor, 7, names).points:
        got, cursor = [*got, *page], store.read(cursor, 7, names).cursor
    assert got == [p for p in sent if not names or p.name in names]
    assert store.read(cursor, 7, names).points == ()


def test_read_a_rare_name_moves_the_cursor_past_what_was_examined(path: Path) -> None:
    store = MetricsStore(path)
    store.add([point(step) for step in range(100)])
    assert store.read(0, 10, ("eval",)).cursor == 100
    store.add([point(100, "eval")])
    assert store.read(100, 10, ("eval",)) == Measurements(points=(point(100, "eval"),), cursor=101)


@pytest.mark.parametrize(("after", "limit", "count"), [(0, 10**9, 5), (-7, 2, 2), (0, 0, 0), (0, -1, 0), (5, 10, 0)])
def test_read_with_strange_bounds_answers_what_there_is(path: Path, after: int, limit: int, count: int) -> None:
    store = MetricsStore(path)
    store.add([point(step) for step in range(5)])
    assert len(store.read(after, limit).points) == count


def test_read_answers_at_most_the_limit_of_the_store(path: Path) -> None:
    store = MetricsStore(path)
    store.add([point(step) for step in range(MAX_POINTS_PER_READ + 1)])
    page = store.read(0, 10**9)
    assert len(page.points) == page.cursor == MAX_POINTS_PER_READ


def test_latest_is_what_arrived_last_also_after_reopening(path: Path) -> None:
    store = MetricsStore(path)
    store.add([point(9, "loss", 9.0), point(3, "loss", 3.0), point(1, "lr", 0.1)])
    assert store.latest() == {"loss": 3.0, "lr": 0.1}
    store.close()
    assert MetricsStore(path).latest() == {"loss": 3.0, "lr": 0.1}


def test_latest_is_a_copy(path: Path) -> None:
    store = MetricsStore(path)
    store.latest()["x"] = 1.0
    assert store.latest() == {}


def test_add_more_series_than_the_limit_drops_the_further_ones(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = MetricsStore(path)
    store.add([point(1, f"series-{n}") for n in range(MAX_SERIES + 5)])
    assert len(store.latest()) == MAX_SERIES
    assert "5 measurements were dropped" in caplog.text
    store.add([point(2, "series-0")])
    assert store.read(MAX_SERIES, 10).points == (point(2, "series-0"),)


@pytest.mark.parametrize("bad", [point(MAX_STEP + 1, value=1.0), point(1).model_copy(update={"time_s": math.nan})])
def test_add_an_impossible_point_drops_it_alone(path: Path, bad: Point) -> None:
    store = MetricsStore(path)
    store.add([point(1), bad, point(2)])
    assert store.read(0, 10).points == (point(1), point(2))


@pytest.mark.parametrize("content", [b"not a database" * 1000, b"SQLite format 3\0" + b"\xff" * 9000])
def test_open_a_damaged_file_moves_it_aside_each_time(path: Path, content: bytes) -> None:
    for number in (1, 2):
        path.write_bytes(content)
        store = MetricsStore(path)
        store.add([point(1)])
        assert store.read(0, 10).points == (point(1),)
        store.close()
        assert path.with_name(f"metrics.sqlite.damaged-{number}").read_bytes() == content


def test_open_a_folder_in_place_of_the_file_moves_it_aside(path: Path) -> None:
    path.mkdir()
    store = MetricsStore(path)
    store.add([point(1)])
    assert store.read(0, 10).points == (point(1),)
    assert path.is_file()


def test_open_another_program_s_database_moves_it_aside(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE latest (something TEXT)")
    other.close()
    store = MetricsStore(path)
    store.add([point(1)])
    assert store.latest() == {"loss": 1 / 7}
    assert path.with_name("metrics.sqlite.damaged-1").exists()


def test_open_without_a_folder_keeps_the_points_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = MetricsStore(tmp_path / "missing" / "metrics.sqlite")
    store.add([point(1)])
    assert store.read(0, 10).points == (point(1),)
    assert "in memory only" in caplog.text


def test_damage_while_open_is_survived_and_cursors_stay_ahead(path: Path) -> None:
    filled = MetricsStore(path)
    filled.add([point(step, f"name-{step % 50}") for step in range(20_000)])
    filled.close()
    store = MetricsStore(path)
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * (path.stat().st_size - 8192))
    lost = store.read(10_000, 1000)
    assert lost.points == ()
    store.add([point(1)])
    assert store.read(20_000, 10).points == (point(1),)
    assert path.with_name("metrics.sqlite.damaged-1").exists()


def test_add_while_another_process_writes_drops_the_points_and_keeps_the_file(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MetricsStore(path)
    store.add([point(1)])
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    store.add([point(2)])
    assert "1 measurements were dropped" in caplog.text
    other.rollback()
    other.close()
    store.add([point(3)])
    assert store.read(0, 10).points == (point(1), point(3))
    assert not path.with_name("metrics.sqlite.damaged-1").exists()


def test_open_while_a_predecessor_is_writing_does_not_move_its_file(path: Path) -> None:
    MetricsStore(path).close()
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    store = MetricsStore(path)
    store.add([point(1)])
    other.rollback()
    other.close()
    assert path.exists()
    assert not path.with_name("metrics.sqlite.damaged-1").exists()


def test_read_with_a_cursor_from_a_lost_database_begins_at_the_first_point(path: Path) -> None:
    store = MetricsStore(path)
    store.add([point(1)])
    assert store.read(10_000, 10).points == (point(1),)


def test_results_of_a_stretch_are_its_newest_and_its_lowest_point(path: Path) -> None:
    store = MetricsStore(path)
    store.add([point(step, value=value) for step, value in ((1, 5.0), (2, math.nan), (3, 2.0), (4, math.inf))])
    store.add([point(1, "eval_loss", math.nan)])
    (whole,) = store.results([StepRange()], ["loss", "nothing"])
    assert (whole.last, whole.lowest) == (MeasuredValue(step=4, value=math.inf), MeasuredValue(step=3, value=2.0))
    (cut,) = store.results([StepRange(last=2)], ["loss"])
    assert (cut.last.step, math.isnan(cut.last.value), cut.lowest) == (2, True, MeasuredValue(step=1, value=5.0))
    assert store.results([StepRange(first=5), StepRange(branch="other")], ["loss"]) == ()
    assert store.results([StepRange()], ["eval_loss"])[0].lowest is None


def test_results_of_many_restarts_and_branches_are_those_of_the_plain_way(path: Path) -> None:
    chance, store, points = random.Random(11), MetricsStore(path), []
    steps = {"main": 0, "branch-2": 40}
    for _ in range(600):
        branch = chance.choice(list(steps))
        steps[branch] = max(1, steps[branch] + (1 if chance.random() < 0.93 else -chance.randrange(1, 30)))
        value = chance.choice([chance.random(), math.inf, -math.inf]) if chance.random() < 0.1 else chance.random()
        name = chance.choice(["loss", "eval_loss"])
        points.append(point(steps[branch], name, value).model_copy(update={"branch": branch}))
    store.add(points[:10])
    for at in range(10, len(points), 10):
        whole = [StepRange(branch=branch) for branch in steps]
        assert store.results(whole, ["loss"]) == results_of(points[:at], whole, ["loss"])
        store.add(points[at : at + 10])
    for _ in range(40):
        first = chance.randrange(60)
        branch = chance.choice(list(steps))
        stretch = StepRange(branch=branch, first=first, last=chance.choice([None, first + chance.randrange(40)]))
        names = ["loss", "eval_loss"]
        assert store.results([stretch], names) == results_of(points, [stretch], names), stretch

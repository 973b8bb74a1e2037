"""Signs of health in the console: groups, charts, and which points are fetched for them."""

import math
from typing import Any

import pytest

from control_plane.api.messages import Measurements, Point, Snapshot
from ui.charts.charts import View, chart_options
from ui.charts.fetching import EVERY_RUN, MAX_NAMES, Batches
from ui.charts.history import MetricsHistory
from ui.charts.layout import MAX_LAYERS
from ui.charts.names import natural, thinned
from ui.charts.palette import DARK, LIGHT
from ui.charts.signs import group_names, height, layout, shown_names, sign_panels
from ui.live import LiveRun

LAYERS = [f"update_ratio/h.{at}" for at in range(60)]


def history(names: list[str]) -> MetricsHistory:
    """A history in which every metric has two points; the later value is the metric's number."""
    made = MetricsHistory()
    points = [Point(step=s, name=n, value=s * i / 2, time_s=1.0) for i, n in enumerate(names) for s in (1, 2)]
    made.extend(Measurements(points=tuple(points), cursor=len(points)))
    return made


def options(names: list[str], group: str) -> dict[str, Any]:
    """The charts of a group."""
    panels = sign_panels(group_names(names)[group])  # type: ignore[index]
    return chart_options(history(names), [], View(smoothing=0.5), (), panels, layout(len(panels)))


def test_signs_are_grouped_as_the_catalogue_has_them_without_the_main_charts() -> None:
    groups = group_names(["loss", "lr", "grad_norm", "loss_local", "loss_scale", "dormant/h.1", "dormant/h.0", "mine"])
    by_group = {group: list(signs.values()) for group, signs in groups.items()}
    assert by_group == {
        "loss": [["loss_local"]],
        "precision": [["loss_scale"]],
        "hooks": [["dormant/h.1", "dormant/h.0"]],
    }


def test_layers_are_in_their_order_and_no_more_than_can_be_told_apart() -> None:
    (drawn,) = [shown_names(signs) for signs in group_names(LAYERS[::-1]).values()]
    assert len(drawn) == MAX_LAYERS
    assert (drawn[0], drawn[-1]) == ("update_ratio/h.0", "update_ratio/h.59")
    assert drawn == sorted(drawn, key=natural)
    assert thinned(["a", "b", "c"], 3) == ["a", "b", "c"]


@pytest.mark.parametrize("palette", [LIGHT, DARK])
@pytest.mark.parametrize("count", [1, 2, 3, 24])
def test_layers_have_colours_of_their_own(palette: Any, count: int) -> None:
    colours = palette.gradient(count)
    assert len(set(colours)) == count
    assert colours[0] == palette.lines[0]
    assert count == 1 or colours[-1] == palette.lines[1]


def test_title_of_many_layers_names_the_highest_and_the_lowest() -> None:
    text = options(LAYERS[:12], "layers")["baseOption"]["title"][0]["text"]
    assert "highest h.11 11" in text
    assert "lowest h.0 0" in text
    assert "h.5" not in text


def test_layers_are_drawn_unsmoothed_and_values_that_are_not_finite_are_marked() -> None:
    made = history(LAYERS[:5])
    bad = (Point(step=3, name=LAYERS[2], value=math.nan, time_s=1.0),)
    made.extend(Measurements(points=bad, cursor=11))
    panels = sign_panels(group_names(LAYERS[:5])["layers"])
    drawn = chart_options(made, [], View(smoothing=0.5), (), panels, layout(1))["baseOption"]["series"]
    assert [one["id"] for one in drawn if "smooth" in one["id"]] == []
    assert [one["id"] for one in drawn if "faults" in one["id"]] == [f"0/{LAYERS[2]}/faults"]


def test_every_chart_of_a_group_has_a_place_and_every_series_survives_the_layouts() -> None:
    made = options(["weight_norm/a", "update_norm/a", "update_ratio/a"], "layers")
    ids = [one["id"] for one in made["baseOption"]["series"]]
    for one in made["media"]:
        assert len(one["option"]["grid"]) == len(one["option"]["title"]) == 3
        assert [series["id"] for series in one["option"]["series"]] == ids
    tops = [grid["top"] for grid in made["media"][0]["option"]["grid"]]
    assert tops == sorted(set(tops))
    assert height(3) != height(4)


def test_batches_fetch_a_new_name_from_its_beginning_and_no_point_twice() -> None:
    batches = Batches()
    (first,) = batches.of(["loss", "lr"])
    first.cursor = 100
    both = batches.of(["loss", "lr", "dormant/h.0"])
    assert [(batch.names, batch.cursor) for batch in both] == [(("loss", "lr"), 100), (("dormant/h.0",), 0)]
    assert batches.of(["loss"]) == [first], "a group that nobody looks at any more is not fetched"
    both[1].cursor = 100
    batches.merge()
    assert [batch.names for batch in batches.of(["loss"])] == [("loss", "lr", "dormant/h.0")]


def test_batches_stay_within_what_the_gateway_takes() -> None:
    batches = Batches()
    batches.of([f"dormant/h.{at}" for at in range(100)])
    batches.merge()
    assert max(len(batch.names) for batch in batches.of([f"dormant/h.{at}" for at in range(100)])) <= MAX_NAMES


class Gateway:
    """Counts what is asked of it."""

    def __init__(self, points: list[Point]) -> None:
        self.points, self.asked = points, list[tuple[str, ...]]()

    def metrics(self, run: str, after: int, limit: int, names: tuple[str, ...]) -> Measurements:
        """As the control server does: the cursor is behind the last point of all, whatever its name."""
        self.asked.append(names)
        found = tuple(point for point in self.points[after:] if point.name in names)
        return Measurements(points=found, cursor=len(self.points))


def test_page_fetches_the_signs_that_it_shows_once_and_the_others_never(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["loss", "dormant/h.0", "hidden_std/h.0"]
    gateway = Gateway([Point(step=step, name=name, value=1.0, time_s=1.0) for step in (1, 2) for name in names])
    monkeypatch.setattr("ui.live.client", lambda: gateway)
    live = LiveRun("gpt2-1")
    live.snapshot = Snapshot.model_validate(
        {"run": "gpt2-1", "name": "", "status": "running", "seq": 1, "term": 1, "generation": 1, "created_at": ""}
        | {"step": 2, "total_steps": 9, "latest": dict.fromkeys(names, 1.0)}
    )
    live.refresh_metrics()
    assert list(live.history.series) == ["loss"]
    for _ in range(2):
        assert [*live.refresh_metrics(["dormant/h.0"]).series["dormant/h.0"].steps] == [1, 2]
    assert [*live.history.series["loss"].steps] == [1, 2]
    assert set().union(*gateway.asked) == {*EVERY_RUN, "dormant/h.0"}
    assert len(gateway.asked[-1]) == len(EVERY_RUN) + 1, "what has reached the same cursor is one request"

"""Branches on a run's page, going back from a checkpoint, and the page that compares."""

import pytest
from streamlit.testing.v1 import AppTest

from control_plane.api.messages import Measurements, Point, StepRange
from control_plane.core.model.commands import SetLearningRate
from control_plane.core.model.intents import Rollback
from control_plane.core.model.records import Parent
from tests.ui.conftest import Visit
from tests.ui.fake_cluster import FakeCluster
from tests.ui.fake_trainer import FakeTrainer
from tests.ui.test_charts import series
from tests.ui.test_console import press, text
from ui.charts.charts import View, chart_options
from ui.charts.history import MetricsHistory
from ui.panels.rollback import adoption, back_to


def html(app: AppTest) -> str:
    """What the page says in HTML."""
    return "\n".join(str(part.value) for part in app.get("html"))


@pytest.fixture
def branched(cluster: FakeCluster) -> FakeTrainer:
    """A run that made 50 steps, went back to step 20 with another learning rate, and made 15 more."""
    made = cluster.create("gpt2-1", "gpt2-local", total_steps=500, save_every=20)
    cluster.train(made, 50)
    first = (SetLearningRate(value=1e-4),)
    cluster.send(made, Rollback(checkpoint="step-00000020-g1", branch="calm", first=first))
    cluster.train(made, 16)
    return made


def test_run_page_shows_the_tree_with_its_head(visit: Visit, branched: FakeTrainer) -> None:
    app = visit(run="gpt2-1")
    assert not app.exception
    said = html(app)
    assert "<b>main</b> · to step 50" in said
    assert "<b>calm</b> <em>head</em> · from step 20 of main to step 35" in said
    assert "began with lr = 0.0001" in said
    assert "step 40 · " in said
    assert "1.5 GB · main" in said, "the branch of a checkpoint that is not the head's"
    assert "branch calm began at step 20 of main" in text(app)


def test_run_page_of_one_branch_shows_no_tree(visit: Visit, trainer: FakeTrainer) -> None:
    assert "Branches" not in text(visit(run="gpt2-1"))


def test_run_page_links_a_run_with_what_was_forked_from_it(
    visit: Visit, cluster: FakeCluster, trainer: FakeTrainer
) -> None:
    parent = Parent(kind="fork", run="gpt2-1", checkpoint="step-00000020-g1", step=20)
    cluster.create("gpt2-2", parent=parent)
    links = [str(link.proto.label) for run in ("gpt2-1", "gpt2-2") for link in visit(run=run).get("page_link")]
    assert "gpt2-2 · fork at step 20 · waiting, step 0" in links
    assert "A fork of gpt2-1, branch main, at step 20" in links


@pytest.fixture
def forked(cluster: FakeCluster, branched: FakeTrainer) -> FakeTrainer:
    """A fork of that run, which has begun and saved."""
    parent = Parent(kind="fork", run="gpt2-1", checkpoint="step-00000020-g1", step=20)
    made = cluster.create("gpt2-2", parent=parent, total_steps=500, save_every=20)
    cluster.train(made, 45)
    return made


def test_adopt_asks_first_and_then_shows_the_fork_s_branch(
    visit: Visit, cluster: FakeCluster, branched: FakeTrainer, forked: FakeTrainer
) -> None:
    app = visit(run="gpt2-1")
    press(app, "Adopt")
    assert "The newest checkpoint of **gpt2-2** becomes the start of a new branch of **gpt2-1**" in text(app)
    app.text_input(key="adopt_name").input("best")
    app.text_input(key="adopt_reason").input("lowest loss")
    app.button(key="FormSubmitter:adopt-Adopt").click().run()
    command = cluster.do(branched.server.snapshot()).commands[-1].command
    assert (command.intent, command.reason) == (adoption("gpt2-2", "best"), "lowest loss")
    app = visit(run="gpt2-1")
    assert not app.exception
    assert "<b>best</b> · adopted from gpt2-2, branch main, at step 40, to step 40" in html(app)
    assert branched.branch == "calm", "the training stays where it is"
    app.button(key="on/best").click().run()
    assert "It continues **best** from step-00000040-g1-of-gpt2-2." in text(app)
    press(app, "Switch")
    cluster.train(branched, 2)
    assert (branched.branch, branched.done) == ("best", 41)


def test_adopt_is_offered_for_forks_also_after_the_run_has_ended(
    visit: Visit, cluster: FakeCluster, branched: FakeTrainer, forked: FakeTrainer
) -> None:
    cluster.create("gpt2-3", parent=Parent(kind="replay", run="gpt2-1"))
    labels = [button.key for button in visit(run="gpt2-1").button]
    assert ("adopt/gpt2-2" in labels, "adopt/gpt2-3" in labels) == (True, False)
    cluster.do(branched.server.close("stopped", None))
    assert "adopt/gpt2-2" in [button.key for button in visit(run="gpt2-1").button]


def test_adoption_under_no_name_of_a_branch_says_so() -> None:
    assert adoption("gpt2-2", " ").branch is None
    with pytest.raises(ValueError, match="is not a valid name of a branch"):
        adoption("gpt2-2", "Best!")


def test_go_back_here_asks_first_then_sends_the_rollback(
    visit: Visit, cluster: FakeCluster, branched: FakeTrainer
) -> None:
    app = visit(run="gpt2-1")
    app.button(key="back/step-00000040-g1").click().run()
    assert "The training leaves **calm** at step 35" in text(app)
    app.text_input(key="back_name").input("third")
    app.text_input(key="back_rate").input("2e-4")
    app.text_input(key="back_reason").input("try again")
    press(app, "Roll back")
    command = cluster.do(branched.server.snapshot()).commands[-1].command
    assert command.intent == back_to("step-00000040-g1", "third", "2e-4")
    assert command.reason == "try again"


def test_go_on_with_this_branch_sends_the_switch(visit: Visit, cluster: FakeCluster, branched: FakeTrainer) -> None:
    app = visit(run="gpt2-1")
    press(app, "Switch to this branch")
    assert "It continues **main** from step-00000040-g1." in text(app)
    press(app, "Switch")
    cluster.train(branched, 2)
    assert (branched.branch, branched.done) == ("main", 41)


@pytest.mark.parametrize(
    ("name", "rate", "said"),
    [("Calm!", "", "is not a valid name of a branch"), ("", "fast", "valid number"), ("", "1e9", "refused")],
)
def test_back_to_what_makes_no_sense_says_so(name: str, rate: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        back_to("step-1", name, rate)


def test_go_back_with_a_name_that_is_taken_shows_the_refusal(visit: Visit, branched: FakeTrainer) -> None:
    app = visit(run="gpt2-1")
    app.button(key="back/step-00000040-g1").click().run()
    app.text_input(key="back_name").input("calm")
    press(app, "Roll back")
    assert "has a branch 'calm' already" in text(app)


def test_compare_page_shows_where_sides_part_and_what_differs(visit: Visit, branched: FakeTrainer) -> None:
    app = visit(of=["gpt2-1", "gpt2-1:main"])
    assert not app.exception
    assert "In common up to step **20** of gpt2-1, branch main." in text(app)
    said = html(app)
    assert "<th>gpt2-1:main</th>" in said
    assert "lr at step 35" in said
    assert "lr = 0.0001 at step 20, by bob" in said


def point(step: int, value: float, branch: str = "main", time_s: float = 0.0) -> Point:
    """One loss."""
    return Point(step=step, name="loss", value=value, time_s=time_s or float(step), branch=branch)


def heard(*points: Point) -> Measurements:
    """These, in this order."""
    return Measurements(points=points, cursor=len(points))


LINE = (StepRange(branch="main", last=3), StepRange(branch="calm", first=3))


def test_history_along_a_line_goes_back_and_on() -> None:
    made = MetricsHistory()
    made.extend(heard(*(point(step, 10.0 - step) for step in range(1, 7))))
    made.extend(heard(point(4, 1.4, "calm", 60), point(5, 1.5, "calm", 61)))
    made.follow(LINE)
    loss = made.series["loss"]
    assert list(loss.steps) == [1, 2, 3, 4, 5]
    assert list(loss.values) == [9, 8, 7, 1.4, 1.5]
    assert loss.restarts == [3], "over time there is a gap where the branch begins"
    assert list(made.others["main"]["loss"].steps) == [3, 4, 5, 6]


def test_history_that_grows_is_what_it_is_when_heard_at_once() -> None:
    grown, at_once = MetricsHistory(), MetricsHistory()
    grown.follow(LINE)
    steps = [
        *(point(step, step / 3) for step in range(1, 6)),
        *(point(step, step / 2, "calm") for step in range(4, 12)),
    ]
    steps.insert(9, point(6, 9.9, "calm"))  # after a loss, step 6 comes again
    for at in range(len(steps)):
        grown.extend(heard(steps[at]))
        grown.series["loss"].smoothed(0.8)
    at_once.extend(heard(*steps))
    at_once.follow(LINE)
    assert list(grown.series["loss"].values) == list(at_once.series["loss"].values)
    assert grown.series["loss"].smoothed(0.8).tolist() == at_once.series["loss"].smoothed(0.8).tolist()


def test_chart_draws_the_other_branches_thin_behind_the_line() -> None:
    made = MetricsHistory()
    made.extend(heard(*(point(step, 10.0 - step) for step in range(1, 7)), point(4, 1.4, "calm", 60)))
    made.follow(LINE)
    options = chart_options(made, [], View())
    assert series(options, "0/loss")["data"] == [[1, 9], [2, 8], [3, 7], [4, 1.4]]
    behind = series(options, "0/loss/of main")
    assert behind["data"] == [[3, 7], [4, 6], [5, 5], [6, 4]]
    assert behind["z"] < series(options, "0/loss")["z"]
    assert options["baseOption"]["legend"]["data"] == ["main"]

"""Trees and comparisons over HTTP: what they answer, and how they refuse."""

from dataclasses import replace
from typing import Any

import pytest

from control_plane.api.messages import Point, Report
from control_plane.core.model.records import CommandSettled, Parent
from control_plane.core.rules.branch_rules import Origin, reading
from control_plane.gateway.tokens import TokenBook, TokenRecord, digest
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from tests.core import examples
from tests.gateway.conftest import Rig
from tests.gateway.rig import API, RUN, PointList, token_book


async def measure(server: ControlServer, generation: int, values: dict[int, float]) -> None:
    """Losses by step."""
    points = tuple(Point(step=step, name="loss", value=value, time_s=1.0) for step, value in values.items())
    await server.report(Report(generation=generation, points=points))


async def branch_off(server: ControlServer) -> None:
    """Main to step 9, then back to step 4 as branch-2, to step 8."""
    await server.report(Report(generation=1, checkpoints=(examples.committed(4),)))
    await measure(server, 1, {2: 5.0, 6: 3.0, 9: 2.9})
    asked = examples.command(1, "rollback", checkpoint="step-4-g1")
    await server.submit(asked)
    after = reading("step-4-g1", 4, "main")
    settled = CommandSettled(uuid=asked.uuid, status="applied", step=9, generation=1, after=after, world_size=2)
    await server.report(Report(generation=1, outcomes=(settled,)))
    await server.end_generation(1, "left", 9, None)
    start = examples.start(901, knobs=examples.KNOBS, step=4)
    await server.start_generation(replace(start, checkpoint="step-4-g1", branch="branch-2"))
    await measure(server, 2, {6: 2.0, 8: 1.5})
    await server.report(Report(generation=2, checkpoints=(examples.committed(8, 2, branch="branch-2"),)))


async def fork(rig: Rig, run: str = "run-2") -> None:
    """A run that began at step 8 of branch-2, and has measured steps 9 and 10."""
    parent = Parent(kind="fork", run=RUN, branch="branch-2", checkpoint="step-8-g2", step=8)
    files = RunFiles(rig.runs.root / run)
    files.root.mkdir()
    origin = Origin(parent=parent, checkpoint=examples.committed(8, 0))
    rig.runs.handles[run] = server = ControlServer(
        examples.created(run), Journal.open(files.journal), PointList(), origin=origin
    )
    await server.start_generation(replace(examples.start(step=8), checkpoint="step-8-g0"))
    await measure(server, 1, {9: 1.4, 10: 1.2})
    await server.report(Report(generation=1, checkpoints=(examples.committed(10),)))


@pytest.fixture
def grown(rig: Rig) -> Rig:
    """A run with two branches, and a fork of the second one."""
    rig.call(branch_off, rig.server)
    rig.call(fork, rig)
    return rig


def test_tree_has_the_branches_and_the_runs_that_began_there(grown: Rig) -> None:
    told: dict[str, Any] = grown.get(f"/runs/{RUN}/tree", "viewer").json()
    assert [(each["branch"]["branch"], each["best"]["value"]) for each in told["branches"]] == [
        ("main", 2.9),
        ("branch-2", 1.5),
    ]
    assert told["head"] == "branch-2"
    assert [(each["run"], each["parent"]["checkpoint"]) for each in told["children"]] == [("run-2", "step-8-g2")]
    assert grown.get("/runs/run-2/tree").json()["parent"]["run"] == RUN


def test_compare_of_branches_and_a_fork_begins_where_they_part(grown: Rig) -> None:
    told = grown.get(f"/compare?of={RUN}:main&of={RUN}:branch-2&of=run-2", "viewer").json()
    assert (told["common"]["step"], told["common"]["branch"], told["last_common_step"]) == (4, "main", 8)
    outcomes = [side["outcomes"][0] for side in told["sides"]]
    assert [each["last"]["value"] for each in outcomes] == [2.9, 1.5, 1.2]
    assert [each["at_common"]["value"] for each in outcomes] == [3.0, 1.5, 1.5]


def test_compare_of_a_fork_with_its_branch_begins_at_the_fork(grown: Rig) -> None:
    told = grown.get(f"/compare?of=run-2&of={RUN}").json()
    assert (told["common"]["run"], told["common"]["step"]) == (RUN, 8)
    assert [len(side["line"]) for side in told["sides"]] == [3, 2]


def test_compare_of_a_fork_whose_parent_is_gone_begins_before_the_first_step(grown: Rig) -> None:
    rig = grown
    rig.call(fork, rig, "run-3")
    del rig.runs.handles[RUN]
    told = rig.get("/compare?of=run-2&of=run-3").json()
    assert told["common"] == {"step": 0, "run": None, "branch": None}


def test_ancestor_out_of_scope_is_as_if_it_were_gone(grown: Rig) -> None:
    rig, token = grown, "a-token-for-the-forks"
    rig.call(fork, rig, "run-3")
    of_forks = TokenRecord(id="forks", role="viewer", sha256=digest(token), runs=("run-[23]",))
    rig.app.state.tokens = TokenBook(tokens=(*token_book().tokens, of_forks))
    shown = {"Authorization": f"Bearer {token}"}
    seen = rig.web.get(f"{API}/compare?of=run-2&of=run-3", headers=shown).json()
    assert rig.get("/compare?of=run-2&of=run-3").json()["common"]["run"] == RUN, "who may see the parent is told it"
    assert seen["common"] == {"step": 0, "run": None, "branch": None}
    assert {piece["run"] for side in seen["sides"] for piece in side["line"]} == {"run-2", "run-3"}
    hidden = rig.web.get(f"{API}/compare?of=run-2&of={RUN}", headers=shown)
    assert (hidden.status_code, hidden.json()["detail"]) == (404, f"there is no run {RUN!r}")
    rig.app.state.tokens = TokenBook(tokens=(of_forks.model_copy(update={"runs": (RUN,)}),))
    assert rig.web.get(f"{API}/runs/{RUN}/tree", headers=shown).json()["children"] == []


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("of=run-1&of=run-1:branch-7", 404, "it has main, branch-2"),
        ("of=run-1&of=run-9", 404, "there is no run 'run-9'"),
        ("of=run-1&of=..%2Fetc", 422, "is not a valid run id"),
        ("of=run-1&of=run-1::", 422, "is none of RUN, RUN:BRANCH"),
        ("of=run-1&of=run-1@77", 404, "has reached step"),
        ("of=run-1", 422, "at least 2"),
        ("", 422, "required"),
        ("&".join(["of=run-1"] * 9), 422, "at most 8"),
        ("of=run-1&of=" + "x" * 401, 422, "at most 400"),
    ],
)
def test_compare_of_bad_names_is_a_problem_with_a_sentence(grown: Rig, query: str, status: int, said: str) -> None:
    answer = grown.get(f"/compare?{query}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.text


def test_tree_of_a_run_that_there_is_not_is_a_problem(rig: Rig) -> None:
    answer = rig.get("/runs/run-9/tree")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")

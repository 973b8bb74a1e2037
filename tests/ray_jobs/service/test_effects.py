"""A replay without one command, through the launch service: what its run begins with, once, or the reason why not."""

from pathlib import Path
from uuid import UUID

import pytest

from control_plane.core.model.errors import Conflict, Invalid, NotFound
from control_plane.core.model.records import Record, RunCreated
from control_plane.core.model.values import LeftOut
from control_plane.storage.checkpoint.transfer import read_origin
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from control_plane.storage.ownership import sign_config
from tests.core.examples import uuid
from tests.core.rules.effect.histories import applied, begun, ended
from tests.ray_jobs.service.fake_cluster import Desk
from tests.storage.checkpoint.kin import NOW

UUID_1 = UUID(int=1)
CONFIG = "name: parent\nseed: 1\nworkload: {kind: script, path: %s}\n"
COMMANDS = (
    applied(1, 10, {"kind": "set_learning_rate", "factor": 3.0}, {"lr": [1e-3]}, {"lr": [3e-3]}),
    applied(2, 15, {"kind": "evaluate"}),
    applied(3, 20, {"kind": "set_learning_rate", "factor": 0.5}, {"lr": [3e-3]}, {"lr": [1.5e-3]}),
)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    script = tmp_path / "train.py"
    script.write_text("print('trains')\n")
    files = RunFiles(tmp_path / "home" / "runs" / "parent")
    files.root.mkdir(parents=True)
    files.config.write_text(CONFIG % script)
    sign_config(files)
    records: list[Record] = [RunCreated(run="parent", name="parent", author="ann", config_sha256="c" * 64), begun()]
    journal = Journal.open(files.journal)
    journal.append([*records, *(record for each in COMMANDS for record in each), *ended()], NOW)
    journal.close()
    return Desk(tmp_path / "home")


@pytest.mark.parametrize("placebo", [None, -1e-6])
def test_replay_without_a_command_is_one_run_that_knows_what_it_leaves_out(desk: Desk, placebo: float | None) -> None:
    asked = {"without": str(uuid(1)), "placebo": placebo}
    launched = desk.call("replay", asked, "parent", uuid=UUID_1)
    [run] = launched.runs
    assert desk.call("replay", asked, "parent", uuid=UUID_1) == launched
    assert len(desk.cluster.jobs) == 1
    origin = read_origin(RunFiles(desk.home / "runs" / run.run))
    assert origin is not None
    assert (origin.parent.kind, origin.parent.run, origin.parent.step) == ("replay", "parent", 100)
    assert origin.parent.without == LeftOut(command=uuid(1), step=10, placebo=placebo)
    steps = [(each.step, each.command.intent.describe()) for each in origin.scheduled]
    first = [] if placebo is None else [(10, "lr x 0.999999")]
    assert steps == [*first, (15, "evaluate"), (20, "lr = 0.0015")]
    with pytest.raises(Conflict, match="uuid"):
        desk.call("replay", asked | {"placebo": 1e-5}, "parent", uuid=UUID_1)


def test_what_has_no_effect_is_refused_before_anything_is_made(desk: Desk) -> None:
    with pytest.raises(Conflict, match="only reads the training"):
        desk.call("replay", {"without": str(uuid(2))}, "parent")
    with pytest.raises(NotFound, match="has no command"):
        desk.call("replay", {"without": str(uuid(9))}, "parent")
    with pytest.raises(Invalid, match="has made the steps 1 to 100"):
        desk.call("replay", {"without": str(uuid(1)), "until_step": 101}, "parent")
    with pytest.raises(ValueError, match="give the command as 'without'"):
        desk.call("replay", {"placebo": 1e-6}, "parent")
    with pytest.raises(ValueError, match="a placebo changes the learning rate by"):
        desk.call("replay", {"without": str(uuid(1)), "placebo": 0.5}, "parent")
    assert desk.cluster.jobs == {}
    assert desk.runs() == ["parent"]

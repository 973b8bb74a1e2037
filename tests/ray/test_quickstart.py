"""The `steer` lines of docs/quickstart.md work from top to bottom, on a real cluster."""

import pytest
from typer.testing import CliRunner

from control_plane.cli.main import app
from tests.architecture.documents import QUICKSTART, bash_lines
from tests.ray.cluster import REPOSITORY, Cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

FIXTURE = ("up", "down")
"""The shared cluster is started and stopped by its fixture, with the program that these two commands call."""


def test_lines_of_the_quickstart_work_from_top_to_bottom(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    lines = [words for words in bash_lines(QUICKSTART.read_text(encoding="utf-8")) if words[0] == "steer"]
    assert [lines[0][1], lines[1][1], lines[-1][1]] == ["up", "submit", "down"]
    printed = {}
    for _, command, *arguments in lines:
        if command not in FIXTURE:
            # In this process: starting Python and importing the client for each line costs more than most of the lines.
            done = CliRunner().invoke(app, [command, *arguments], env=cluster.environment)
            assert done.exit_code == 0, f"steer {command} {arguments}\n{done.output}"
            printed[command] = done.output
    assert "on 2 of 2 ranks" in printed["set"]
    assert "branch-2" in printed["tree"]
    assert "good" in printed["checkpoints"]
    assert "a test" in printed["journal"]

"""The `steer` lines of docs/quickstart.md work from top to bottom, on a real cluster."""

import pytest

from tests.architecture.documents import QUICKSTART, bash_lines
from tests.ray.cluster import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

FIXTURE = ("up", "down")
"""The shared cluster is started and stopped by its fixture, with the program that these two commands call."""


def test_lines_of_the_quickstart_work_from_top_to_bottom(cluster: Cluster) -> None:
    lines = [words for words in bash_lines(QUICKSTART.read_text(encoding="utf-8")) if words[0] == "steer"]
    assert [lines[0][1], lines[1][1], lines[-1][1]] == ["up", "submit", "down"]
    printed = {}
    for _, command, *arguments in lines:
        if command not in FIXTURE:
            done = cluster.command("control_plane.cli.main", command, *arguments)
            assert done.returncode == 0, f"steer {command} {arguments}\n{done.stdout}\n{done.stderr}"
            printed[command] = done.stdout + done.stderr
    assert "on 2 of 2 ranks" in printed["set"]
    assert "branch-2" in printed["tree"]
    assert "good" in printed["checkpoints"]
    assert "a first change" in printed["journal"]

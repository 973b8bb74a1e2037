"""The `steer` lines of README.md and docs/quickstart.md work from top to bottom, on a real cluster."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from control_plane.cli.main import app
from tests.architecture.documents import QUICKSTART, README, bash_lines
from tests.ray.cluster import REPOSITORY, Cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ELSEWHERE = (
    ["up"],
    ["down"],
    ["submit", "configs/own-script.yaml"],
    ["deploy", "--address", "HEAD:6379"],
    ["context", "add", "lab", "--url", "https://steerway.lab"],
    ["submit", "train.yaml"],
)
"""The fixture starts and stops the shared cluster with the program that two of them call, and `test_live_run` submits
the script; here it would be a second active run. The last three need a cluster on other machines: `make rehearsal` runs
them on one."""


def steer_lines(document: Path) -> list[list[str]]:
    lines = bash_lines(document.read_text(encoding="utf-8"))
    return [words[1:] for words in lines if words[0] == "steer" and words[1:] not in ELSEWHERE]


def test_lines_of_readme_and_quickstart_work_from_top_to_bottom(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    submit, *quickstart = steer_lines(QUICKSTART)
    assert (submit[0], quickstart[-1][0]) == ("submit", "stop")
    printed = {}
    for words in (submit, *steer_lines(README), *quickstart):
        # In this process: starting Python and importing the client for each line costs more than most of the lines.
        done = CliRunner().invoke(app, words, env=cluster.environment)
        assert done.exit_code == 0, f"steer {words}\n{done.output}"
        printed[words[0]] = done.output
    assert "on 2 of 2 ranks" in printed["set"]
    assert "branch-3" in printed["tree"], "each document goes back once"
    assert "good" in printed["checkpoints"]
    assert "a test" in printed["journal"]

"""`steer up --nodes`, `steer nodes` and `steer chaos`, as far as they go without a cluster."""

from pathlib import Path

import pytest

from tests.cli.conftest import Steer
from tests.gateway.rig import RUN, LiveGateway


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which no cluster is up."""
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("count", ["0", "-1", "65", "three"])
def test_up_with_a_count_of_nodes_that_cannot_be_is_a_usage_error(steer: Steer, nobody: Path, count: str) -> None:
    refused = steer("up", "--nodes", count)
    assert refused.exit_code == 2
    assert "--nodes" in refused.stderr
    assert list(nobody.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("chaos", "kill-node", "node-2"),
        ("chaos", "partition", "node-2"),
        ("chaos", "partition", "node-2", "--heal"),
        ("chaos", "add-node"),
    ],
)
def test_without_a_cluster_it_is_not_found(
    steer: Steer, nobody: Path, words: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert steer(*words).exit_code == 3
    assert f"no cluster is up on {nobody}" in capfd.readouterr().err


@pytest.mark.parametrize("verb", ["kill-rank", "stop-rank", "cont-rank"])
def test_a_rank_that_the_run_does_not_have_is_not_found(steer: Steer, idle_gateway: LiveGateway, verb: str) -> None:
    for named in (("--run", RUN), (RUN,)):  # as an option, or in the place where every other command has it
        refused = steer("chaos", verb, "9", *named)
        assert refused.exit_code == 3
        assert "has no rank 9; its ranks are 0 to 1" in refused.stderr
    assert steer("chaos", verb, "0", RUN, "--run", RUN).exit_code == 2


@pytest.mark.parametrize("given", ["one", "1.5", "²"])
def test_a_rank_that_is_no_number_is_a_usage_error(steer: Steer, nobody: Path, given: str) -> None:
    refused = steer("chaos", "kill-rank", given)
    assert refused.exit_code == 2
    assert "is not a rank" in refused.stderr


def test_an_unknown_run_is_not_found(steer: Steer, idle_gateway: LiveGateway) -> None:
    refused = steer("chaos", "kill-rank", "0", "--run", "nobody-knows-it")
    assert refused.exit_code == 3
    assert "nobody-knows-it" in refused.stderr


def test_a_rank_is_not_touched_while_no_cluster_is_up(
    steer: Steer, idle_gateway: LiveGateway, capfd: pytest.CaptureFixture[str]
) -> None:
    assert steer("chaos", "kill-rank", "0").exit_code == 3
    assert "no cluster is up" in capfd.readouterr().err


def test_partition_says_what_it_really_does(steer: Steer) -> None:
    told = " ".join(steer("chaos", "partition", "--help").stdout.split())
    assert "Simulate a network partition" in told
    assert "SIGSTOP" in told

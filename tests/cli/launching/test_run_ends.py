"""The end of `steer run`: on a terminal the cluster that it brought up stays, so that one can look."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

from control_plane.api.launching import Launched, LaunchedRun
from control_plane.cli.launching import run as cli_run
from tests.gateway.rig import RUN, LiveGateway


@pytest.fixture
def stayed(idle_gateway: LiveGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The runs after whose end it stayed. The run of the gateway is followed by nobody: it has ended with `ending`."""
    seen: list[str] = []
    launched = Launched(runs=(LaunchedRun(run=RUN, job=RUN),))
    monkeypatch.setattr(cli_run, "launch", lambda *_, **__: launched)
    monkeypatch.setattr(cli_run, "_stay", lambda where, run: seen.append(run))
    return seen


def ends(monkeypatch: pytest.MonkeyPatch, ours: bool, terminal: bool, status: str = "finished") -> None:
    @contextmanager
    def cluster(where: object) -> Iterator[bool]:
        yield ours

    def attend(client: object, run: str, *_: object) -> object:
        return client.snapshot(run).model_copy(update={"status": status})  # type: ignore[attr-defined]

    monkeypatch.setattr(cli_run, "_cluster", cluster)
    monkeypatch.setattr(cli_run, "_follow", attend)
    monkeypatch.setattr(cli_run, "wants_panel", lambda: terminal)


def test_on_a_terminal_it_stays_until_somebody_leaves(stayed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, ours=True, terminal=True)
    cli_run.run("config.yaml", [], unattended=False)
    assert stayed == [RUN]


def test_after_a_failed_run_it_stays_and_fails_then(stayed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, ours=True, terminal=True, status="failed")
    with pytest.raises(typer.Exit) as left:
        cli_run.run("config.yaml", [], unattended=False)
    assert (stayed, left.value.exit_code) == ([RUN], 7)


@pytest.mark.parametrize(
    ("ours", "terminal", "unattended"), [(False, True, False), (True, False, False), (True, True, True)]
)
def test_where_nobody_watches_or_the_cluster_is_not_ours_it_ends(
    stayed: list[str], monkeypatch: pytest.MonkeyPatch, ours: bool, terminal: bool, unattended: bool
) -> None:
    ends(monkeypatch, ours=ours, terminal=terminal)
    cli_run.run("config.yaml", [], unattended=unattended)
    assert stayed == []

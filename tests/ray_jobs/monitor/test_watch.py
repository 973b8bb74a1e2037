"""Real ranks with real monitors beside them: who is stopped or gone is found, who is busy is let be."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.monitor.processes import status_of
from ray_jobs.monitor.watchdog import EXIT_HUNG
from tests.ports import free_port
from tests.ray_jobs.support.preloaded import RANK_ENVIRONMENT, interpreter

WAIT_S = 60.0
BOUNDS = {"hang_after_s": 1.0, "user_code_s": 60.0, "deadlock_s": 60.0}


@dataclass
class Seen:
    folder: Path
    statuses: list[int]

    def words(self, rank: int) -> dict[str, Any]:
        return json.loads((self.folder / f"words-{rank}.json").read_text())

    @property
    def over(self) -> list[bool]:
        return [(self.folder / f"over-{rank}").exists() for rank in range(2)]

    def pids(self, rank: int) -> Any:
        return json.loads((self.folder / f"pids-{rank}.json").read_text())


def watch(
    folder: Path, *acts: dict[str, Any], bounds: dict[str, float] | None = None, rounds: int = 30, **more: Any
) -> Seen:
    spec = {"bounds": BOUNDS | (bounds or {}), "acts": acts, "rounds": rounds, "loaders": [], **more}
    (folder / "spec.json").write_text(json.dumps(spec))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        interpreter(rank).start(
            "tests.ray_jobs.trials.watch_trials:main",
            folder,
            folder / f"rank-{rank}.out",
            os.environ | RANK_ENVIRONMENT | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        statuses = [rank.wait(WAIT_S) for rank in ranks]
    finally:
        for each in ranks:
            each.kill()
            each.wait(WAIT_S)
    return Seen(folder, statuses)


def at(rank: int, number: int, do: str, **more: float) -> dict[str, Any]:
    return {"rank": rank, "round": number, "do": do, **more}


def all_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + WAIT_S
    while any(status_of(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_stopped_rank_with_loader_workers_is_found_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    seen = watch(tmp_path, at(1, 5, "stop"), loaders=[1])
    assert seen.statuses == [EXIT_HUNG, -signal.SIGKILL]
    words = seen.words(0)
    assert (words["kind"], words["phase"], words["ranks"]) == ("stopped", "training", [1])
    assert "rank 1 (process" in words["reason"]
    assert "recovery.hang_after_s" in words["reason"]
    assert seen.words(1)["reason"] == words["reason"]
    assert all_gone([seen.pids(0)["monitor"], seen.pids(1)["monitor"], *seen.pids(1)["workers"]])


def test_loader_workers_of_a_killed_rank_end_with_it_and_its_peer_is_told(tmp_path: Path) -> None:
    seen = watch(tmp_path, at(1, 5, "kill"), loaders=[1])
    assert seen.statuses[1] == -signal.SIGKILL
    assert seen.statuses[0] != 0
    assert all_gone([seen.pids(1)["monitor"], *seen.pids(1)["workers"]])


def test_neither_the_lock_nor_a_callback_nor_a_lost_monitor_is_a_death(tmp_path: Path) -> None:
    acts = (
        at(1, 5, "hold the lock", s=2.5),
        at(0, 8, "lose the monitor"),
        at(0, 10, "callback", s=1.6),
        at(1, 15, "lose the monitor"),
        at(1, 16, "callback", s=1.6),
        at(0, 29, "save slowly", s=1.6),
    )
    seen = watch(tmp_path, *acts, bounds={"deadlock_s": 1.0}, ends_apart=True, anew_at=20)
    assert seen.statuses == [0, 0], (tmp_path / "rank-0.out").read_text()
    assert seen.over == [True, True]
    assert all_gone([seen.pids(rank)["monitor"] for rank in range(2)]), "those of the first training"


def test_deadlock_is_found_and_named_with_its_lines(tmp_path: Path) -> None:
    seen = watch(tmp_path, at(1, 5, "another barrier"), bounds={"deadlock_s": 1.5})
    assert seen.statuses == [EXIT_HUNG, EXIT_HUNG]
    words = seen.words(1)
    assert (words["kind"], words["ranks"]) == ("deadlock", [0, 1])
    assert "watch_trials.py" in words["reason"]


@pytest.mark.parametrize("do", [pytest.param("callback", marks=pytest.mark.slow), "hold the lock for ever"])
def test_user_code_without_end_is_named_with_its_line_and_the_setting(tmp_path: Path, do: str) -> None:
    seen = watch(tmp_path, at(1, 5, do, s=50.0), bounds={"user_code_s": 3.0})
    assert seen.statuses == [EXIT_HUNG, EXIT_HUNG if do == "callback" else -signal.SIGKILL]
    words = seen.words(0)
    assert (words["kind"], words["ranks"]) == ("user code", [1])
    assert "recovery.user_code_s" in words["reason"]
    assert "watch_trials.py" in words["reason"]

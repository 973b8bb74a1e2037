"""Drivers take turns: the oldest first, nobody without room, and one that died holds up nobody."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ray_jobs.driver import start_queue
from ray_jobs.driver.start_queue import QueueEntry, queued_start


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_queue, "LOOK_EVERY_S", 0.01)


def test_ticket_of_who_came_first_is_the_oldest_until_it_is_given_back(tmp_path: Path) -> None:
    first, second = QueueEntry(tmp_path), QueueEntry(tmp_path)
    assert first.is_oldest()
    assert not second.is_oldest()
    first.leave()
    assert second.is_oldest()
    assert len(list(tmp_path.iterdir())) == 1


def test_ticket_of_a_driver_that_died_is_removed(tmp_path: Path) -> None:
    dying = (
        "import os, sys; from pathlib import Path; from ray_jobs.driver.start_queue import QueueEntry; "
        "QueueEntry(Path(sys.argv[1])); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", dying, str(tmp_path)], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    assert QueueEntry(tmp_path).is_oldest()
    assert len(list(tmp_path.iterdir())) == 1


def test_ticket_that_is_not_locked_yet_is_nobody_s_and_is_left_alone(tmp_path: Path) -> None:
    coming = tmp_path / f"{start_queue.UNSEEN}{0:020d}-1"
    coming.touch()
    assert QueueEntry(tmp_path).is_oldest()
    assert coming.exists()


def test_turn_comes_when_there_is_room_and_the_next_one_after_it_has_begun(tmp_path: Path) -> None:
    free, order, begun = {"CPU": 0.0}, list[str](), threading.Event()

    def drive(name: str, has_begun: threading.Event) -> None:
        with queued_start(tmp_path, {"CPU": 2.0}, lambda: free, lambda: {"CPU": 2.0}, has_begun.is_set):
            order.append(name)

    first = threading.Thread(target=drive, args=("first", begun))
    first.start()
    while not any(tmp_path.iterdir()):
        pass
    second = threading.Thread(target=drive, args=("second", threading.Event()))
    second.start()
    first.join(0.2)
    assert order == [], "there is no room"
    free["CPU"] = 2.0
    first.join(10)
    second.join(0.2)
    assert order == ["first"], "the room is the first one's until it has begun"
    begun.set()
    second.join(10)
    assert order == ["first", "second"]


def test_turn_of_a_run_that_the_cluster_is_too_small_for_is_left_to_ray(tmp_path: Path) -> None:
    with queued_start(tmp_path, {"CPU": 8.0}, lambda: {"CPU": 2.0}, lambda: {"CPU": 2.0}, lambda: True):
        pass


def test_turn_where_there_can_be_no_tickets_comes_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with queued_start(tmp_path / "file" / "tickets", {"CPU": 2.0}, dict, lambda: {"CPU": 2.0}, lambda: True):
        assert os.path.isfile(tmp_path / "file")

"""The watchdog: who is stopped is found, who is slow is not. Real threads and real time, in tenths of a second."""

import threading
import time
from pathlib import Path

import pytest

from ray_jobs import heartbeat, watchdog
from ray_jobs.heartbeat import Heartbeat
from ray_jobs.watchdog import Watchdog

WAIT_S = 20.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "TICK_S", 0.01)
    monkeypatch.setattr(watchdog, "LEAST_DEADLOCK_S", 1.0)
    monkeypatch.setattr(heartbeat, "BEAT_EVERY_S", 0.01)


class Bitten:
    def __init__(self) -> None:
        self.reasons: list[str] = []
        self._event = threading.Event()

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self._event.set()

    def within(self, wait_s: float) -> bool:
        return self._event.wait(wait_s)


class Shelf:
    """A store in this process. A key may be made to hang for ever."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.hanging = False

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        while self.hanging or key not in self.values:
            time.sleep(0.01)
        return self.values[key].encode()


def train(dog: Watchdog, steps: int) -> None:
    for _ in range(steps):
        dog.beat("training")
        time.sleep(0.01)


def test_watchdog_peer_that_is_silent_without_progress_ends_the_rank(tmp_path: Path) -> None:
    bitten = Bitten()
    dog = Watchdog(0.1, tmp_path / "words", lambda: 5.0, peer=3, bite=bitten)
    dog.start()
    train(dog, 3)
    assert bitten.within(WAIT_S)
    assert "no sign of life of rank 3" in bitten.reasons[0]


def test_watchdog_slow_step_of_living_ranks_is_let_be(tmp_path: Path) -> None:
    bitten = Bitten()
    dog = Watchdog(0.1, tmp_path / "words", lambda: 0.0, peer=1, bite=bitten)
    dog.start()
    train(dog, 3)
    assert not bitten.within(0.5), bitten.reasons
    dog.stop()


def test_watchdog_silent_peer_is_let_be_while_there_is_progress(tmp_path: Path) -> None:
    bitten = Bitten()
    dog = Watchdog(0.2, tmp_path / "words", lambda: 99.0, peer=1, bite=bitten)
    dog.start()
    train(dog, 60)
    assert not bitten.reasons
    dog.stop()


def test_watchdog_deadlock_of_living_ranks_is_found_in_the_end(tmp_path: Path) -> None:
    bitten = Bitten()
    dog = Watchdog(0.1, tmp_path / "words", lambda: 0.0, bite=bitten)
    dog.start()
    train(dog, 3)
    assert bitten.within(WAIT_S)
    assert "deadlock" in bitten.reasons[0]


def test_watchdog_announced_evaluation_gets_its_time(tmp_path: Path) -> None:
    bitten = Bitten()
    dog = Watchdog(0.1, tmp_path / "words", lambda: 9.0, bite=bitten)
    dog.start()
    train(dog, 3)
    dog.beat("evaluating")
    assert not bitten.within(0.5), bitten.reasons
    dog.stop()


def test_heartbeat_of_living_peers_is_heard() -> None:
    shelf = Shelf()
    hearts = [Heartbeat(shelf, rank, 3) for rank in range(3)]
    for heart in hearts:
        heart.start()
    time.sleep(0.4)
    assert [heart.watched for heart in hearts] == [1, 2, 0]
    assert all(heart.silent_s() < 5 for heart in hearts)
    hearts[2].stop()
    time.sleep(0.6)
    assert hearts[1].silent_s() > 0.4, "rank 1 watches rank 2, which was stopped"
    assert hearts[1].silent_s() > hearts[0].silent_s()
    for heart in hearts:
        heart.stop()


def test_heartbeat_whose_store_hangs_counts_as_silence() -> None:
    shelf = Shelf()
    hearts = [Heartbeat(shelf, rank, 2) for rank in range(2)]
    for heart in hearts:
        heart.start()
    time.sleep(0.2)
    shelf.hanging = True
    time.sleep(0.5)
    assert hearts[0].silent_s() > 0.3
    shelf.hanging = False
    for heart in hearts:
        heart.stop()


def test_heartbeat_alone_is_never_silent() -> None:
    heart = Heartbeat(Shelf(), 0, 1)
    assert heart.alone
    assert heart.silent_s() == 0.0

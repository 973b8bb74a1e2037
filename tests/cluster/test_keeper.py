"""The console is started again when it ends, and what answers is written down with the time since when."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster import keeper
from cluster.keeper import HealthChecks, Keeper, read_parts, table
from cluster.record import make_home
from control_plane.config import Settings

SLEEPER = [sys.executable, "-c", "import time; time.sleep(300)"]
WITHIN_S = 20.0


@pytest.fixture
def kept() -> Iterator[Keeper]:
    made = Keeper(SLEEPER, lambda line: None)
    yield made
    made.end()


def child(kept: Keeper) -> int:
    assert kept._process is not None
    return kept._process.pid


def wait_for(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def look_until(kept: Keeper, ready: Callable[[], bool]) -> None:
    def looked() -> bool:
        assert kept.look() is None
        return ready()

    wait_for(looked)


def test_program_that_has_answered_comes_back_each_time(kept: Keeper) -> None:
    kept.answered()
    for count in (1, 2):
        before = child(kept)
        os.kill(before, signal.SIGKILL)
        look_until(kept, lambda: kept.restarts == count)  # noqa: B023
        assert child(kept) != before
    assert kept._waits_s == 4 * keeper.FIRST_WAIT_S, "the wait doubles"


def test_program_that_never_answered_is_not_started_again() -> None:
    kept = Keeper([sys.executable, "-c", "raise SystemExit(3)"], lambda line: None)
    wait_for(lambda: kept.look() == 3)
    assert kept.restarts == 0


def test_program_that_was_asked_to_end_stays_away(kept: Keeper) -> None:
    kept.answered()
    kept.end()
    wait_for(lambda: kept.look() == -signal.SIGTERM)
    assert kept.restarts == 0


def test_program_ends_with_a_keeper_that_was_killed() -> None:
    source = (
        "import sys, time\nfrom cluster.keeper import Keeper\n"
        f"kept = Keeper({SLEEPER!r}, print)\nprint(kept._process.pid, flush=True)\ntime.sleep(300)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    orphan = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    assert orphan.wait(WITHIN_S) is None or not orphan.is_running()


def test_what_answers_is_written_down_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = Settings(home=tmp_path / "home")
    make_home(where)
    answering = {where.gateway_url, where.console_url}
    times = iter(f"2026-01-01T00:00:0{second}Z" for second in range(9))
    monkeypatch.setattr(keeper, "utc_now", lambda: next(times))
    watch = HealthChecks(where, lambda url: any(url.startswith(each + "/") for each in answering))
    watch.look(0)
    first = read_parts(where)
    assert {name: (view.up, view.restarts) for name, view in first.items()} == {
        "gateway": (True, 0),
        "console": (True, 0),
    }
    answering.remove(where.gateway_url)
    for _ in range(keeper.MISSES - 1):
        watch.look(0)
    assert read_parts(where) == first, "one question may go unanswered on a busy machine"
    watch.look(2)
    seen = read_parts(where)
    assert (seen["gateway"].up, seen["gateway"].since) == (False, "2026-01-01T00:00:02Z")
    assert (seen["console"].since, seen["console"].restarts) == (first["console"].since, 2)
    assert "gateway  down   2026-01-01T00:00:02Z  0" in table(seen)


def test_file_that_is_damaged_tells_nothing(tmp_path: Path) -> None:
    where = Settings(home=tmp_path)
    for text in ("", "[]", '{"console": {"up": "perhaps"}}'):
        keeper.parts_file(where).write_text(text)
        assert read_parts(where) == {}

"""Scripts that install signal handlers start as a run, in a thread; time limits by signals are refused."""

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_jobs.config.sections import ScriptWorkload
from ray_jobs.process.context import Trainings
from ray_jobs.process.script_signals import signals_in_a_thread
from ray_jobs.train import run_script

SAVES = """
import signal, sys
from pathlib import Path

def save(number, frame):
    raise SystemExit(1)

before = signal.signal(signal.SIGTERM, save)
assert signal.signal(signal.SIGTERM, before) is save
signal.alarm(0)
Path(sys.argv[1]).write_text("trained")
"""


def in_a_thread(work: Callable[[], object]) -> list[BaseException]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


def test_script_with_a_handler_starts_and_the_log_names_signal_and_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script, out, before = tmp_path / "train.py", tmp_path / "out", signal.getsignal(signal.SIGTERM)
    script.write_text(SAVES)
    workload = ScriptWorkload(kind="script", path=str(script), args=[str(out)])
    with caplog.at_level(logging.WARNING):
        assert in_a_thread(lambda: run_script(workload, Trainings())) == []
    assert out.read_text() == "trained"
    told = [record.message.partition(" is not installed")[0] for record in caplog.records]
    assert told == [f"the SIGTERM handler of train.py:{line}" for line in (8, 9)]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "limit",
    [
        lambda: signal.signal(signal.SIGALRM, lambda *_: None),
        lambda: signal.alarm(5),
        lambda: signal.setitimer(signal.ITIMER_REAL, 5.0),
    ],
)
def test_time_limit_that_would_never_come_is_refused_by_name(limit: Callable[[], object]) -> None:
    with signals_in_a_thread():
        (refusal,) = in_a_thread(limit)
    assert isinstance(refusal, ValueError)
    assert "test_script_signals.py:" in str(refusal)
    assert "a time limit by a signal cannot work in a run" in str(refusal)


def test_main_thread_installs_handlers_as_ever() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with signals_in_a_thread():
        assert signal.signal(signal.SIGUSR1, signal.SIG_IGN) == before
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
        signal.signal(signal.SIGUSR1, before)
    assert signal.signal.__module__ == "signal"

"""Tests of the agent's ledger: budgets hold whatever ends the process, and no call is made that is not on disk."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from control_plane.agent.ledger import Ledger
from control_plane.api.agent_spending import Budgets, Spent, budgets_of, complete_lines, fold_ledger
from control_plane.config import AGENT_MAX_COST, settings
from control_plane.core.model.errors import Conflict, Damaged, Invalid, Unavailable

BUDGETS = Budgets(max_calls=3, max_tokens=1000, max_cost=1.0, prompt_price=1000.0, completion_price=2000.0)

RESERVE_THEN_WAIT = """
import sys, time
from pathlib import Path
from control_plane.agent.ledger import Ledger
from control_plane.api.agent_spending import Budgets
ledger = Ledger.open(Path(sys.argv[1]), Budgets(max_tokens=1000))
settled = ledger.reserve(100, 50)
ledger.settle(settled, 60, 10)
assert ledger.reserve(300, 100) is not None
print("reserved", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent" / "ledger.jsonl"


def test_a_call_is_reserved_in_full_and_settled_with_what_it_took(path: Path) -> None:
    with Ledger.open(path, BUDGETS) as ledger:
        reservation = ledger.reserve(200, 100)
        assert reservation is not None
        assert ledger.spent() == Spent(calls=1, tokens=300, cost=0.4, open=1)
        ledger.settle(reservation, 50, 20)
        assert ledger.spent().tokens == 70
        assert ledger.spent().cost == pytest.approx(0.09)
        assert ledger.spent().open == 0
    with Ledger.open(path, BUDGETS) as again:
        assert again.spent() == Spent(calls=1, tokens=70, cost=again.budgets.cost(50, 20), open=0)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("budgets", "word"),
    [
        (Budgets(max_calls=1), "1 calls"),
        (Budgets(max_tokens=350), "350 tokens"),
        (Budgets(max_cost=0.45, prompt_price=1000.0, completion_price=2000.0), "0.45"),
    ],
)
def test_a_used_up_budget_refuses_the_next_call_and_says_which(path: Path, budgets: Budgets, word: str) -> None:
    with Ledger.open(path, budgets) as ledger:
        assert ledger.reserve(200, 100) is not None
        assert ledger.reason is None
        assert ledger.reserve(200, 100) is None
        assert word in (ledger.reason or "")
    with Ledger.open(path, budgets) as again:  # a restart begins no new budget
        assert again.reserve(200, 100) is None
        assert again.spent().calls == 1


@pytest.mark.parametrize("usage", [(None, 3), (3, None), (-1, 3), (True, 3), (3, 10**12)])
def test_a_usage_that_is_not_credible_leaves_the_reservation(path: Path, usage: tuple[int | None, int | None]) -> None:
    with Ledger.open(path, BUDGETS) as ledger:
        reservation = ledger.reserve(100, 50)
        assert reservation is not None
        ledger.settle(reservation, *usage)
        assert ledger.spent().tokens == 150
        assert ledger.spent().open == 1


def test_kill_9_between_reservation_and_settlement_counts_it_in_full(path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RESERVE_THEN_WAIT, str(path)], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "reserved\n"
        with pytest.raises(Conflict, match="another agent"):
            Ledger.open(path, BUDGETS)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with Ledger.open(path, Budgets(max_tokens=1000)) as ledger:
        assert ledger.spent() == Spent(calls=2, tokens=470, cost=0.0, open=1)
        assert ledger.reserve(400, 131) is None
        assert ledger.reserve(400, 130) is not None


def test_every_torn_end_is_read_as_before_it_or_after_it(path: Path) -> None:
    """A write may reach the disk in part. What is left counts no less than what was durable before."""
    with Ledger.open(path, BUDGETS) as ledger:
        first = ledger.reserve(100, 50)
        assert first is not None
        ledger.settle(first, 10, 5)
        before = len(path.read_bytes())
        assert ledger.reserve(200, 100) is not None
    whole = path.read_bytes()
    for size in range(before, len(whole) + 1):
        path.write_bytes(whole[:size])
        with Ledger.open(path, BUDGETS) as ledger:
            assert ledger.spent().tokens == (315 if size == len(whole) else 15)
            assert ledger.reserve(1, 1) is not None
        assert fold_ledger(complete_lines(path.read_bytes()), "it").calls == ledger.spent().calls


@pytest.mark.parametrize("change", [b"\xff\xff\xff", b"{}\n", b'{"type":"settled","call":9'])
def test_a_damaged_ledger_is_refused(path: Path, change: bytes) -> None:
    with Ledger.open(path, BUDGETS) as ledger:
        assert ledger.reserve(100, 50) is not None
        assert ledger.reserve(100, 50) is not None
    path.write_bytes(change + path.read_bytes())
    with pytest.raises(Damaged, match="line 1"):
        Ledger.open(path, BUDGETS)


def test_a_second_settlement_changes_nothing_and_in_a_file_it_is_damage(path: Path) -> None:
    with Ledger.open(path, BUDGETS) as ledger:
        reservation = ledger.reserve(100, 50)
        assert reservation is not None
        ledger.settle(reservation, 1, 1)
        ledger.settle(reservation, 0, 0)
        assert ledger.spent().tokens == 2
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines(keepends=True)[-1])
    with pytest.raises(Damaged, match="line 3 contradicts"):
        Ledger.open(path, BUDGETS)


def test_without_a_durable_reservation_there_is_no_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with Ledger.open(path, BUDGETS) as ledger:
        monkeypatch.setattr(os, "fsync", fail)
        assert ledger.reserve(100, 50) is None
        assert "No space left" in (ledger.reason or "")
        monkeypatch.undo()
        assert ledger.reserve(100, 50) is None, "what a failed fsync has left is not known"
    assert path.read_bytes() == b""


def test_a_link_or_a_folder_in_its_place_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable, match="cannot be opened"):
        Ledger.open(path, BUDGETS)
    assert not (tmp_path / "elsewhere").exists()


def test_budgets_come_from_the_servers_settings() -> None:
    default = budgets_of(settings({}))
    assert default.max_cost == AGENT_MAX_COST
    assert default.cost(1_000_000, 0) == pytest.approx(1.10)
    local = budgets_of(settings({"STEERWAY_AGENT_MODEL": "llama", "STEERWAY_AGENT_MAX_CALLS": "7"}))
    assert (local.max_cost, local.max_calls) == (None, 7)
    priced = {"STEERWAY_AGENT_PROMPT_PRICE": "2", "STEERWAY_AGENT_COMPLETION_PRICE": "3"}
    limited = {"STEERWAY_AGENT_MODEL": "llama", "STEERWAY_AGENT_MAX_COST": "1"}
    assert budgets_of(settings(limited | priced)).cost(10**6, 10**6) == 5.0
    with pytest.raises(Invalid, match="prices of 'llama' are not known"):
        settings(limited)
    with pytest.raises(Invalid, match="belong together"):
        settings({"STEERWAY_AGENT_PROMPT_PRICE": "2"})


def test_settings_reach_a_child_process_unchanged() -> None:
    here = settings({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "STEERWAY_AGENT_MAX_TOKENS": "9"})
    there = settings(here.environment())
    assert (there.agent_base_url, budgets_of(there)) == ("http://127.0.0.1:9/v1", budgets_of(here))

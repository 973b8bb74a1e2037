"""The study of records that come in, cut short: real runs on a real cluster, of which one is sent records."""

from pathlib import Path

import pytest

from benchmarks.studies.data.study_data import QUICK, carry_out

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


def test_real_run_takes_in_what_it_is_sent(tmp_path: Path) -> None:
    made = carry_out(tmp_path / "results.jsonl", print, [1], QUICK)
    live, alone = made.rows["live"][0], made.rows["alone"][0]
    assert live["requests"] == 2 * QUICK.fresh_sequences
    assert live["in_mixture"] == live["records"] > 0
    assert QUICK.sent_from < live["first_step"] <= QUICK.steps
    # The same until the first record is drawn, and another training from there on.
    before = [pair for pair in live["evals"]["missing"] if pair[0] < live["first_step"]]
    assert before == alone["evals"]["missing"][: len(before)]
    assert live["evals"]["old"][-1] != alone["evals"]["old"][-1]
    assert [step for step, _ in alone["evals"]["old"]] == list(range(20, 121, 20))

"""The study of feedback on episodes, cut short: real runs on a real cluster, of which one is sent scores."""

from pathlib import Path

import pytest

from benchmarks.studies.data.study_feedback import QUICK, carry_out

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


def test_real_run_learns_from_what_it_is_sent(tmp_path: Path) -> None:
    made = carry_out(tmp_path / "results.jsonl", print, [1], QUICK, ("alone", "scores"))
    scores, alone = made.rows["scores"][0], made.rows["alone"][0]
    assert scores["in_mixture"] == scores["records"] > 0
    assert QUICK.judged_from < scores["first_step"] <= QUICK.steps
    # The same until the first score is drawn, and another training afterwards.
    before = [pair for pair in scores["curves"]["returns"] if pair[0] < scores["first_step"]]
    assert before == alone["curves"]["returns"][: len(before)]
    assert scores["curves"]["entries"][-1] != alone["curves"]["entries"][-1]

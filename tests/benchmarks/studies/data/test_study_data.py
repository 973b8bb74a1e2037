"""The study of records that come in: figures follow from results, the page says what was missed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.studies.data import data_page, study_data
from benchmarks.studies.data.study_data import QUICK, WHOLE, Study, carry_out, frames_of, key_of, result_of
from benchmarks.studies.results import append
from control_plane.core.model.errors import SteerwayError
from ray_jobs.workloads.desktop_screen import CHANNELS, HEIGHT, WIDTH

SEEDS = (1, 2, 3)


def row(arm: str, seed: int, missing: float, old: float, in_mixture: int = 700) -> dict[str, Any]:
    """A run whose errors are 0.4 and 0.1 before the records, and these at its end."""
    steps = range(WHOLE.evaluate_every, WHOLE.steps + 1, WHOLE.evaluate_every)
    evals = {
        name: [[step, early if step < 260 else late + seed / 1000] for step in steps]
        for name, early, late in (("missing", 0.4, missing), ("old", 0.1, old))
    }
    frame = np.full((study_data.SHOWN, CHANNELS, HEIGHT, WIDTH), 7, np.uint8).tobytes().hex()
    made = {"key": key_of(arm, seed, WHOLE), "arm": arm, "seed": seed, "evals": evals, "step_s": 0.1}
    made |= {"first_step": 260, "frames": dict.fromkeys(data_page.COLUMNS, frame)}
    sent = {"requests": 120, "records": 700, "duplicates": 9, "bytes": 10**7, "seconds": 9.0, "in_mixture": in_mixture}
    return made | (sent if arm == "live" else {"first_step": WHOLE.steps + 1})


def study(missing: float = 0.1, old: float = 0.11, in_mixture: int = 700) -> Study:
    ends = {"live": (missing, old), "alone": (0.41, 0.1)}
    return Study(WHOLE, {arm: [row(arm, seed, *end, in_mixture) for seed in SEEDS] for arm, end in ends.items()})


def test_figures_follow_from_the_results() -> None:
    result = result_of(study(), 3)
    assert result.met
    assert result.figures["missing_before"] == pytest.approx(0.4)
    assert result.figures["missing_after"] == pytest.approx(0.102)
    assert result.figures["missing_ratio"] == pytest.approx(0.103 / 0.4)
    assert result.figures["forgetting"] == pytest.approx(0.112 / 0.102 - 1)


@pytest.mark.parametrize(
    ("changed", "target"),
    [
        ({"missing": 0.25}, "missing_ratio"),
        ({"old": 0.14}, "forgetting"),
        ({"in_mixture": 699}, "records_lost_or_doubled"),
    ],
)
def test_missed_target_is_not_met_and_the_page_says_so(changed: dict[str, Any], target: str, tmp_path: Path) -> None:
    missed = study(**changed)
    result = result_of(missed, 3)
    assert [name for name in result.targets if result.verdict_on(name) != "met"] == [target]
    data_page.write(tmp_path / "data.md", missed, result, [])
    assert (tmp_path / "data.md").read_text().count("not met |") == 1


def test_page_and_figures_are_made_of_the_results(tmp_path: Path) -> None:
    made = study()
    names = data_page.draw(made, tmp_path, lambda line: None)
    data_page.write(tmp_path / "data.md", made, result_of(made, 3), names)
    page = (tmp_path / "data.md").read_text()
    assert "| before the records | 0.400 (0.400 to 0.400) | 0.100 (0.100 to 0.100) |" in page
    assert "Unfinished" not in page
    assert "741 steps with the new records, 74 s" in page
    assert all((tmp_path / name).stat().st_size > 1000 and f"]({name})" in page for name in names)


def test_page_says_that_seeds_or_steps_are_missing() -> None:
    short = Study(QUICK, study().rows)
    assert "3 of 3 seeds, 120 of 1000 steps" in data_page.unfinished(3, short)[0]
    assert "2 of 3 seeds, 1000 of 1000 steps" in data_page.unfinished(2, study())[0]


def test_frames_before_are_of_the_last_evaluation_that_no_record_has_changed(tmp_path: Path) -> None:
    for step in range(20, 121, 20):
        frames = np.full((6, CHANNELS, HEIGHT, WIDTH), step, np.uint8)
        np.savez(tmp_path / f"frames-{step}.npz", last=frames, event=frames, next=frames, predicted=frames)
    kept = frames_of(tmp_path, 41, QUICK)
    assert {name: data_page.pixels(each)[0, 0, 0, 0] for name, each in kept.items()} == {
        "last": 120, "next": 120, "before": 40, "after": 120
    }  # fmt: skip
    assert frames_of(tmp_path, 40, QUICK)["before"].startswith("14")


def test_what_the_file_has_is_not_run_again(tmp_path: Path, monkeypatch: Any) -> None:
    def no_cluster(say: Any) -> Any:
        raise SteerwayError("a cluster was asked for")

    monkeypatch.setattr("benchmarks.studies.data.series.own_cluster", no_cluster)
    path = tmp_path / "results.jsonl"
    for arm in study_data.ARMS:
        append(path, row(arm, 1, 0.1, 0.1))
    assert carry_out(path, lambda line: None, [1], WHOLE).errors("live", "missing") == [pytest.approx(0.101)]
    with pytest.raises(SteerwayError, match="a cluster was asked for"):
        carry_out(path, lambda line: None, [1, 2], WHOLE)

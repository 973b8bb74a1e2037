"""The study of automatic mixtures: its plan, figures that follow from results, and what the page says of them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies.data import mixture_page
from benchmarks.studies.data.mixture_plan import (
    ARMS,
    CLEAN,
    NOISY,
    NOISY_COPIES,
    QUICK,
    RECORD_WORDS,
    SEEDS,
    WHOLE,
    key_of,
    noisy_words,
    write,
)
from benchmarks.studies.data.study_mixture import Study, carry_out, result_of
from benchmarks.studies.paired import difference
from benchmarks.studies.results import append
from control_plane.core.model.errors import SteerwayError
from ray_jobs.config.run_config import load

ENDS = {"ado": 4.5, "odm": 4.8, "natural": 4.7, "uniform": 4.6}
SHARES = {"ado": 0.5, "odm": 0.2, "natural": 0.25, "uniform": 0.5}


def row(arm: str, seed: int, end: float, failed: int = 0) -> dict[str, Any]:
    """A run that ends at this loss, and whose weights are changed once, in the middle."""
    middle = WHOLE.steps // 2
    shares = [[0, 0.25]] + ([[middle, SHARES[arm]]] if arm != "natural" else [])
    made: dict[str, Any] = {"key": key_of(arm, seed, WHOLE), "arm": arm, "seed": seed, "seconds": 60.0}
    made |= {"evals": [[100, 6.0], [WHOLE.steps, end + 0.01 * seed]], "source_losses": {CLEAN: [], NOISY: []}}
    return made | {"looks": [60, 80, 110], "shares": shares, "failed": failed}


def study(failed: int = 0, **ends: float) -> Study:
    by_arm = {arm: [row(arm, seed, (ENDS | ends)[arm], failed) for seed in SEEDS] for arm in ARMS}
    return Study(WHOLE, by_arm)


def test_figures_follow_from_the_results() -> None:
    result = result_of(study(), len(SEEDS))
    assert result.verdict == "met"
    assert result.figures["ado_loss"] == pytest.approx(4.53)
    assert result.figures["ado_minus_natural"] == pytest.approx(-0.2)
    assert result.figures["ado_clean_share"] == pytest.approx((0.25 + 0.5) / 2)
    assert result.figures["changes_applied"] == 3 * len(SEEDS)


def test_missed_targets_are_told(tmp_path: Path) -> None:
    worse = result_of(study(ado=4.9), len(SEEDS))
    assert worse.verdict_on("ado_minus_natural_high") == "not met"
    rows = {arm: [row(arm, seed, ENDS["natural"] + (seed - 3) * (arm == "ado")) for seed in SEEDS] for arm in ARMS}
    assert result_of(Study(WHOLE, rows), len(SEEDS)).verdict_on("ado_minus_natural_high") == "not proved"
    failed = study(failed=1)
    result = result_of(failed, len(SEEDS))
    assert result.verdict == "not met"
    mixture_page.write(tmp_path / "mixture.md", failed, result, [])
    assert "| changes of weights that were rejected or failed | 20 | 0 | not met |" in (
        tmp_path / "mixture.md"
    ).read_text("utf-8")


def test_page_and_figure_are_made_of_the_results(tmp_path: Path) -> None:
    made = study()
    names = mixture_page.draw(made, tmp_path, lambda line: None)
    mixture_page.write(tmp_path / "mixture.md", made, result_of(made, len(SEEDS)), names)
    page = (tmp_path / "mixture.md").read_text("utf-8")
    assert "**ADO ends lowest**, at 4.530" in page
    assert "beside the natural shares: lower" in page
    assert "| ado - natural | -0.2000 (-0.2000 to -0.2000) | 0.062 |" in page
    assert "ADO's proposals were 25 apart, 20 to 30" in page
    assert "Unfinished" not in page
    assert all((tmp_path / name).stat().st_size > 1000 and f"]({name})" in page for name in names)
    assert "2 of 5 seeds" in mixture_page.unfinished(2, made)[0]
    assert f"{QUICK.steps} of {WHOLE.steps} steps" in mixture_page.unfinished(5, Study(QUICK, made.rows))[0]


def test_interval_of_paired_differences_is_students() -> None:
    made = difference([1.0, 2.0, 4.0, 5.0, 8.0], [1.0, 1.0, 2.0, 2.0, 4.0])
    # Differences 0 to 4: mean 2, standard error 0.7071; t with 4 degrees of freedom is 2.776.
    assert (made.mean, made.high - made.mean) == (2.0, pytest.approx(2.776 * math.sqrt(0.5), rel=0.005))
    assert math.isinf(difference([1.0], [2.0]).high)


def test_what_the_file_has_is_not_run_again(tmp_path: Path, monkeypatch: Any) -> None:
    def no_cluster(say: Any) -> Any:
        raise SteerwayError("a cluster was asked for")

    monkeypatch.setattr("benchmarks.studies.data.series.own_cluster", no_cluster)
    path = tmp_path / "results.jsonl"
    for arm in ARMS:
        append(path, row(arm, 1, 4.0))
    assert carry_out(path, lambda line: None, [1], WHOLE).losses("odm") == [4.01]
    with pytest.raises(SteerwayError, match="a cluster was asked for"):
        carry_out(path, lambda line: None, [1, 2], WHOLE)


def test_texts_and_config_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"word{number % 40}" for number in range(3 * RECORD_WORDS + 5)]
    (tmp_path / "text").mkdir()
    for split in ("valid", "test"):
        (tmp_path / "text" / f"{split}.txt").write_text(" ".join(words))
    monkeypatch.setattr("benchmarks.studies.data.mixture_plan.WIKITEXT", tmp_path / "text")
    config = load(write(tmp_path, "odm", 2, WHOLE))
    assert config.agent is not None
    assert (config.agent.policy, config.agent.every_steps) == ("odm", WHOLE.every_steps)
    assert config.agent.mixing.least_batches == WHOLE.least_batches
    clean, noisy = (
        [json.loads(line)["text"].split() for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in (CLEAN, NOISY)
    )
    assert [word for record in clean for word in record] == words[: 3 * RECORD_WORDS]
    assert len(noisy) == NOISY_COPIES * len(words) // RECORD_WORDS
    mixed = noisy_words(words, 7)
    assert sorted(mixed) == sorted(words)
    assert mixed != words
    assert noisy_words(words, 7) == mixed != noisy_words(words, 8)

"""The vocabulary of steering on real ranks: docs/vocabulary.md says what is so, and each of its columns is run."""

from pathlib import Path

import pytest

from tests.jobs import vocabulary as v
from tests.jobs import vocabulary_table as page


@pytest.fixture(scope="module")
def written() -> page.Table:
    return page.parsed(page.DOCUMENT.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.jobs
@pytest.mark.timeout(page.ARM_TIMEOUT_S + 60)
@pytest.mark.parametrize("arm", v.ARMS)
def test_every_command_does_bit_for_bit_what_is_done_by_hand_or_is_refused(
    tmp_path: Path, written: page.Table, arm: str
) -> None:
    """If the page is to change: `python -m tests.jobs.vocabulary_table`."""
    column = page.judged(v.ARMS[arm], page.run(arm, tmp_path))
    assert page.wrong({arm: column}) == []
    assert column == written[arm]


def test_the_page_has_a_cell_for_every_command_in_every_kind_of_training(written: page.Table) -> None:
    assert list(written) == list(v.ARMS)
    assert all(list(column) == [row.name for row in v.rows()] for column in written.values())
    assert page.rendered(written) == page.DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("arm", v.ARMS)
def test_only_what_an_optimizer_has_no_use_for_is_refused(written: page.Table, arm: str) -> None:
    refused = {row: cell for row, cell in written[arm].items() if cell != page.EXACT}
    lacking = ["momentum"] if v.ARMS[arm].is_adam else ["betas", "eps"]
    assert list(refused) == [f"set_knobs {name}" for name in lacking]
    for name, cell in zip(lacking, refused.values(), strict=True):
        assert cell.startswith(f"there is no knob '{name}'; this run has ")


def test_every_row_has_a_name_and_every_command_an_intent_of_its_own() -> None:
    names = [row.name for trial in v.TRIALS for row in trial.rows]
    assert len(set(names)) == len(names)
    assert all(row.at < trial.steps or row.intent["kind"] == "stop" for trial in v.TRIALS for row in trial.rows)

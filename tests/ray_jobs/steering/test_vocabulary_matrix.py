"""The vocabulary of steering on real ranks: docs/vocabulary.md says what is so, and each of its columns is run."""

from pathlib import Path
from typing import Any

import pytest

from control_plane.core.model.records import CommandSettled
from tests.ray_jobs.support import vocabulary as v
from tests.ray_jobs.support import vocabulary_table as page


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
    """If the page is to change: `python -m tests.ray_jobs.support.vocabulary_table`."""
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


def test_rows_have_names_of_their_own_and_take_effect_before_the_end() -> None:
    names = [row.name for trial in v.TRIALS for row in trial.rows]
    assert len(set(names)) == len(names)
    assert all(row.at < trial.steps or row.intent["kind"] == "stop" for trial in v.TRIALS for row in trial.rows)


# --- What is taken for exact: one command, judged by what a training was seen to do ---

ARM = v.ARMS["plain"]
TRIAL = next(trial for trial in v.TRIALS if trial.name == "set_knobs gradient_clipping")
ROW = TRIAL.rows[0]
UNTOUCHED = [f"step {step}" for step in range(v.STEPS + 1)]
STEERED = [*UNTOUCHED[: v.AT + 1], *(f"{each}, clipped" for each in UNTOUCHED[v.AT + 1 :])]


class Told(page.Trained):
    """A training of which only is told what it did."""

    def __init__(self, weights: list[str], other_rank: list[str] | None = None, **settled: Any) -> None:
        ranks = (weights, other_rank or weights)
        object.__setattr__(self, "seen", [{"weights": dict(enumerate(each))} for each in ranks])
        object.__setattr__(self, "outcome", CommandSettled(uuid=ROW.uuid, **({"status": "applied"} | settled)))

    def of(self, kind: type) -> list[Any]:
        return [self.outcome] if kind is CommandSettled else []  # type: ignore[attr-defined]


def cell(steered: list[str], by_hand: list[str] = STEERED, other_rank: list[str] | None = None, **settled: Any) -> str:
    reading = {"gradient_clipping": 0.05}
    told = {"step": v.AT, "world_size": 2, "after": reading, "ranks": (reading, reading)} | settled
    trained = {
        TRIAL.name: Told(steered, other_rank, **told),
        f"{TRIAL.name}, by hand": Told(by_hand),
        "undisturbed": Told(UNTOUCHED),
    }
    return page.judged(ARM, trained, [TRIAL])[ROW.name]


def test_a_command_that_did_what_is_done_by_hand_is_exact() -> None:
    assert cell(STEERED) == page.EXACT


@pytest.mark.parametrize(
    ("steered", "more", "wrong"),
    [
        (STEERED, {"by_hand": [*STEERED[:4], "other", *STEERED[5:]]}, "not as by hand from step 4 on"),
        (UNTOUCHED, {"by_hand": UNTOUCHED}, "step 3 is not different"),
        (STEERED[:-1], {"by_hand": STEERED[:-1]}, "it has the steps [0, 1, 2, 3, 4, 5]"),
        (STEERED, {"other_rank": [*STEERED[:-1], "other"]}, "the ranks differ"),
        (STEERED, {"step": v.AT + 1}, "applied at step 3, not 2"),
        (STEERED, {"ranks": ({"gradient_clipping": 0.05}, {"gradient_clipping": 1.0})}, "the ranks read"),
        (STEERED, {"after": {"gradient_clipping": 1.0}}, "gradient_clipping reads 1.0, not 0.05"),
        (STEERED, {"status": "failed", "reason": "rank 1: no"}, "failed: rank 1: no"),
        (STEERED, {"status": "rejected", "reason": "no"}, "step 3 is different"),
    ],
)
def test_a_command_that_did_not_is_wrong_and_says_how(steered: list[str], more: dict[str, Any], wrong: str) -> None:
    found = cell(steered, **more)
    assert found.startswith(page.WRONG)
    assert wrong in found


def test_a_refusal_that_left_the_training_undisturbed_is_told_in_its_own_words() -> None:
    assert cell(UNTOUCHED, status="rejected", reason="there is no such knob") == "there is no such knob"

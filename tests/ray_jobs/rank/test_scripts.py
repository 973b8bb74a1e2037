"""Scripts as people write them, started by the run: they do what they do when they are started by hand, also after a
loss. All of them live in one process that is forked, on one rank without DeepSpeed."""

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.ray_jobs.support.crashes import run_crashes

pytestmark = pytest.mark.jobs

HALVE = {
    "uuid": str(UUID(int=1)),
    "author": "test",
    "intent": {"kind": "set_learning_rate", "factor": 0.5},
    "not_before_step": 2,
}
EVALUATE = {"kind": "evaluate"}
FOLDS = {"script": "folds", "every_steps": 3, "commands": [HALVE]}
TWICE = {"script": "twice", "every_steps": 3}

DRAWS = {"script": "draws", "every_steps": 5, "sampler": "own"}
BACK = [[12, {"kind": "rollback", "checkpoint": "step-00000005-g1"}]]

TRIALS: dict[str, dict[str, Any]] = {
    "masks": DRAWS,
    "masks, lost": DRAWS | {"kills": [[1, 8], [1, 17]]},
    "masks, workers": DRAWS | {"workers": 2, "kills": [[1, 17]]},
    "masks, rolled back": DRAWS | {"asked": BACK},
    "lengths": DRAWS | {"sampler": "lengths"},
    "lengths, lost": DRAWS | {"sampler": "lengths", "kills": [[1, 17]]},
    "stream": DRAWS | {"stream": "own"},
    "stream, lost": DRAWS | {"stream": "own", "every_steps": 4, "kills": [[1, 6], [1, 10]]},
    "stream, lost at the end of a pass": DRAWS | {"stream": "own", "kills": [[1, 6], [1, 13]]},
    "tail": DRAWS | {"tail": True, "sampler": None},
    "tail, lost": DRAWS | {"tail": True, "sampler": None, "every_steps": 3, "kills": [[1, 8], [1, 12]]},
    "library": DRAWS | {"stream": "library"},
    "library, lost": DRAWS | {"stream": "library", "every_steps": 4, "kills": [[1, 10]]},
    "folds": FOLDS,
    "folds, lost in the second": FOLDS | {"kills": [[2, 5]]},
    "folds, lost in each": FOLDS | {"kills": [[1, 5], [2, 2], [2, 8]]},
    "folds, the first left out after a loss": FOLDS | {"skips": True, "kills": [[2, 5]]},
    "twice": TWICE,
    "twice, lost in the second": TWICE | {"kills": [[2, 5]]},
    "result": {"script": "result"},
    "result, lost after the last step": {"script": "result", "every_steps": 3, "kills": [["after", None]]},
    "counts": {"script": "counts"},
    "numbers": {"script": "numbers", "every_steps": 3, "kills": [[1, 6]]},
    "patience": {"script": "patience", "asked": [[3, EVALUATE], [5, EVALUATE]]},
    "early stop": {"script": "early stop"},
    "early stop, lost before": {"script": "early stop", "every_steps": 3, "kills": [[1, 5], [1, 8]]},
    "early stop, lost after": {"script": "early stop", "every_steps": 4, "kills": [[1, "after"]]},
    "epochs": {"script": "epochs"},
    "epochs, lost": {"script": "epochs", "every_steps": 4, "kills": [[1, 6], [1, 10]]},
    "own rate": {"script": "own rate", "commands": [HALVE]},
    "bare except, rolled back": {
        "script": "bare except",
        "every_steps": 3,
        "asked": [[5, {"kind": "rollback", "checkpoint": "step-00000003-g1"}]],
    },
    "leaves by sys.exit": {"script": "leaves", "every_steps": 3, "kills": [["exit", None]]},
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the last life of each script saw."""
    folder: Path = tmp_path_factory.mktemp("scripts")
    trials = [
        {**spec, "function": "tests.ray_jobs.trials.script_trials:train", "root": str(folder / f"run-{number}")}
        for number, spec in enumerate(TRIALS.values())
    ]
    answers = run_crashes(trials, 1, folder)
    return {name: answer["ranks"][0] for name, answer in zip(TRIALS, answers, strict=True)}


def test_each_training_of_a_script_begins_at_its_own_beginning(seen: dict[str, Any]) -> None:
    assert seen["folds"]["made"] == [list(range(1, 7)), list(range(1, 9))]
    assert seen["twice"]["made"] == [list(range(1, 7))] * 2


@pytest.mark.parametrize("how", ["lost in the second", "lost in each"])
def test_each_training_of_a_script_goes_on_from_its_own_checkpoints(seen: dict[str, Any], how: str) -> None:
    """With the commands of its own: the learning rate was halved in the first training alone."""
    killed = seen[f"folds, {how}"]
    assert (killed["fold-0"], killed["fold-1"]) == (seen["folds"]["fold-0"], seen["folds"]["fold-1"])
    assert killed["made"] == [[], [4, 5, 6, 7, 8] if how == "lost in the second" else [7, 8]]


def test_training_is_known_by_its_data_where_those_before_are_left_out(seen: dict[str, Any]) -> None:
    killed = seen["folds, the first left out after a loss"]
    assert killed["made"] == [[4, 5, 6, 7, 8]]
    assert killed["fold-1"] == seen["folds"]["fold-1"]


def test_second_training_of_one_trainer_goes_on_from_its_own_checkpoints(seen: dict[str, Any]) -> None:
    killed = seen["twice, lost in the second"]
    assert killed["made"] == [[], [4, 5, 6]]
    assert (killed["first"], killed["second"]) == (seen["twice"]["first"], seen["twice"]["second"])


def test_train_answers_the_whole_trainings_metrics_where_no_step_is_left(seen: dict[str, Any]) -> None:
    lost, undisturbed = seen["result, lost after the last step"], seen["result"]
    assert lost["made"] == [[]]
    assert (lost["step"], lost["loss"]) == (undisturbed["step"], undisturbed["loss"])


def test_subclass_may_ask_for_its_loader_before_it_is_whole(seen: dict[str, Any]) -> None:
    """And is told of the one that it will train with."""
    assert seen["counts"]["counted"] == len(seen["counts"]["made"][0]) == 20


def test_script_that_catches_everything_goes_on_with_the_branch(seen: dict[str, Any]) -> None:
    assert seen["bare except, rolled back"]["made"] == [[4, 5, 6, 7, 8]]


def test_script_that_leaves_its_training_has_failed_and_goes_on_from_its_checkpoint(seen: dict[str, Any]) -> None:
    assert seen["leaves by sys.exit"]["made"] == [[4, 5, 6]]


def test_numbers_of_numpy_and_tensors_in_the_log_are_saved_and_what_is_no_number_costs_no_checkpoint(
    seen: dict[str, Any],
) -> None:
    assert seen["numbers"]["made"] == [[4, 5, 6]]
    assert seen["numbers"]["kept"] == {"step": 1, "mine": 1.5, "count": 2, "norm": 0.5}


def test_evaluation_that_was_asked_for_is_not_counted_and_tells_the_loss_of_every_set(seen: dict[str, Any]) -> None:
    losses = ["eval_one_loss", "eval_two_loss"]
    assert seen["patience"]["commands"] == [["applied", losses]] * 2
    assert seen["patience"]["made"] == [[1, 2, 3, 4, 5, 6]]


def test_learning_rate_that_the_optimizer_would_not_use_is_refused(seen: dict[str, Any]) -> None:
    ((status, reason),) = seen["own rate"]["commands"]
    assert (status, "relative_step=False" in reason) == ("rejected", True)


def test_samples_that_fill_no_global_batch_are_told(seen: dict[str, Any]) -> None:
    assert seen["own rate"]["facts"]["samples_left_out"] == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_callbacks_that_export_their_state_go_on_with_it_and_an_early_stop_comes_at_its_step(
    seen: dict[str, Any], when: str
) -> None:
    lost, undisturbed = seen[f"early stop, lost {when}"], seen["early stop"]
    assert undisturbed["step"] < 20
    assert (lost["step"], lost["count"]) == (undisturbed["step"], undisturbed["count"])
    assert lost["made"] == ([[7, 8]] if when == "before" else [[]])


def test_evaluation_at_an_epochs_end_belongs_to_that_step_and_is_made_before_its_checkpoint(
    seen: dict[str, Any],
) -> None:
    lost, undisturbed = seen["epochs, lost"], seen["epochs"]
    assert undisturbed["evaluated"] == [4, 8, 12]
    for what in ("evaluated", "losses", "weights"):
        assert lost[what] == undisturbed[what]
    assert lost["made"] == [[9, 10, 11, 12]]


@pytest.mark.parametrize(
    ("undisturbed", "how"),
    [
        ("masks", "lost"),
        ("masks", "workers"),
        ("masks", "rolled back"),
        ("lengths", "lost"),
        ("stream", "lost"),
        ("stream", "lost at the end of a pass"),
        ("library", "lost"),
        ("tail", "lost"),
    ],
)
def test_data_that_draws_at_random_is_the_same_after_a_failure(
    seen: dict[str, Any], undisturbed: str, how: str
) -> None:
    """To the last bit, with and without workers, in later epochs, and in later passes of a stream."""
    whole, disturbed = seen[undisturbed], seen[f"{undisturbed}, {how}"]
    assert len(disturbed["losses"]) >= 3
    assert disturbed["losses"].items() <= whole["losses"].items()
    assert disturbed["weights"] == whole["weights"]


def test_epoch_ends_with_a_smaller_step_where_its_tail_is_kept(seen: dict[str, Any]) -> None:
    assert seen["tail"]["made"] == [list(range(1, 13))]
    assert "samples_left_out" not in seen["tail"]["facts"]


def test_generator_that_the_data_keeps_for_itself_is_named(seen: dict[str, Any]) -> None:
    assert seen["masks"]["facts"]["not_exact"] == [
        "random numbers from data_collator.own (numpy.random.Generator), which the script keeps"
    ]

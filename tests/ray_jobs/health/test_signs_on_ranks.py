"""Signs on real ranks: they change no bit of a training, and say the same in every ZeRO stage."""

from pathlib import Path
from typing import Any

import pytest

from control_plane.core.model.health import AlertRaised
from control_plane.core.model.records import CheckpointCommitted, GenerationStarted, StateDigested
from control_plane.core.rules.digests import compare
from control_plane.storage.journal.writer import read
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from tests.ray_jobs.rank.test_steering import command
from tests.ray_jobs.support.ranks import run_ranks

STAGES = [None, 0, 1, 2, 3]
STEPS, SAVE_EVERY, POISON_AT = 12, 6, 9
BEFORE, AFTER = POISON_AT - 2, POISON_AT + 2
EVERYTHING = {"hook_steps": 4}
GROUPS = {"wte", "wpe", "h.0", "h.1", "ln_f"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    folder = tmp_path_factory.mktemp("signs")
    trainings: dict[Any, dict[str, Any]] = {}
    for stage in STAGES:
        one = {"stage": stage, "steps": STEPS}
        trainings[stage, "off"] = one | {"health": None}
        trainings[stage, "on"] = one | {"health": EVERYTHING}
    trainings["saving"] = {"stage": 1, "steps": STEPS, "health": EVERYTHING, "save_every": SAVE_EVERY}
    trainings["checkpointing"] = trainings[1, "on"] | {"checkpointing": True}
    # Saves with a name are finished at their boundary.
    saves = [command(step, kind="save_checkpoint", name=f"step-{step:08d}-g1") for step in (BEFORE, AFTER)]
    poisoned = {"stage": 0, "steps": POISON_AT + 4, "health": {}, "poison_at": POISON_AT, "commands": saves}
    trainings["poisoned"] = poisoned
    named = {name: folder / str(number) for number, name in enumerate(trainings)}
    specs = [one | {"root": str(named[name])} for name, one in trainings.items()]
    run_ranks("tests.ray_jobs.trials.health_trials:train_each", 2, {"trainings": specs}, folder)
    return named


def records(root: Path, kind: type) -> list[Any]:
    return [entry.record for entry in read(RunFiles(root).journal) if isinstance(entry.record, kind)]


def points(root: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for point in MetricsStore(RunFiles(root).metrics).read(0, 100_000).points:
        found.setdefault(point.name, {})[point.step] = point.value
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_all_signs_on_leave_every_bit_of_a_training_as_it_is(roots: dict[Any, Path], stage: int | None) -> None:
    off, on = (records(roots[stage, arm], StateDigested) for arm in ("off", "on"))
    found = compare(off, on)
    assert found.verdict == "identical"
    assert len(found.steps) == STEPS + 1


def test_what_is_saved_with_signs_leaves_a_training_as_it_is(roots: dict[Any, Path]) -> None:
    off, saving = (records(roots[name], StateDigested) for name in ((1, "off"), "saving"))
    assert compare(off, saving).verdict == "identical"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_norms_of_layers_are_in_every_zero_stage_those_of_whole_layers(roots: dict[Any, Path], stage: int) -> None:
    plain, ours = points(roots[0, "on"]), points(roots[stage, "on"])
    for sign in ("weight_norm", "layer_grad_norm", "update_norm", "update_ratio"):
        for group in GROUPS:
            assert ours[f"{sign}/{group}"].keys() == {10}
            assert ours[f"{sign}/{group}"][10] == pytest.approx(plain[f"{sign}/{group}"][10], rel=0.02), (sign, group)


@pytest.mark.parametrize("name", [(0, "on"), (3, "on"), "checkpointing"])
def test_hooks_measure_every_block_once_and_where_activations_are_computed_twice(
    roots: dict[Any, Path], name: Any
) -> None:
    seen = points(roots[name])
    for sign in ("hidden_std", "dormant", "attention_entropy", "attention_logit_max", "qk_entropy"):
        for block in ("h.0", "h.1"):
            assert seen[f"{sign}/{block}"].keys() == {4, 8, 12}, sign
    assert 0 < seen["hidden_std/h.1"][4] < 10
    assert 0.5 < seen["attention_entropy/h.0"][4] <= 1


def test_signs_of_every_step_are_charted_at_the_log_interval(roots: dict[Any, Path]) -> None:
    seen = points(roots[2, "on"])
    for sign in ("loss_local", "step_s", "own_step_s", "data_wait_s", "memory_bytes", "tokens_per_s", "phase_s"):
        assert seen[sign].keys() == {10}, sign
    # Logged by the Trainer itself, and not twice.
    assert len(seen["loss"]) == len(seen["grad_norm"]) == 1


def test_a_start_names_the_vectors_layout_among_its_facts(roots: dict[Any, Path]) -> None:
    (start,) = records(roots[1, "on"], GenerationStarted)
    assert start.facts["health"]["vector_floats"] == 1 + 7 + 3 * len(GROUPS)
    assert "health" not in records(roots[1, "off"], GenerationStarted)[0].facts


def test_a_weight_that_is_no_number_is_an_alert_one_step_later_and_the_next_checkpoint_is_suspect(
    roots: dict[Any, Path],
) -> None:
    raised = [record.alert for record in records(roots["poisoned"], AlertRaised)]
    alert = next(one for one in raised if one.kind == "non_finite")
    assert POISON_AT <= alert.onset_step <= alert.step <= POISON_AT + 1
    saved = {one.step: one for one in records(roots["poisoned"], CheckpointCommitted)}
    assert saved[AFTER].health == "suspect"
    assert "non_finite" in saved[AFTER].health_reasons
    assert saved[BEFORE].health in ("trusted", "unknown")

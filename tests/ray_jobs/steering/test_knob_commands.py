"""Knobs and schedules on real ranks: two gloo processes, plainly and with DeepSpeed's ZeRO 1 and 3.

That a value was set is believed when the training ends, bit for bit, where one ends in which it was set by hand.
"""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from control_plane.core.model.records import CheckpointCommitted, CommandSettled, GenerationStarted
from control_plane.storage.checkpoint.store import read_manifest
from control_plane.storage.journal.writer import read
from control_plane.storage.layout import RunFiles
from tests.ray_jobs.support.crashes import run_crashes
from tests.ray_jobs.support.ranks import run_ranks
from tests.ray_jobs.trials.knob_trials import (
    BETAS,
    BY_HAND,
    CLIPPING,
    DROPOUT,
    EPS,
    EVAL_STEPS,
    LOGGING_STEPS,
    PLANNED_STEPS,
    SAMPLES,
    SET_AT,
    STEPS,
    WEIGHT_DECAY,
)

# ZeRO stage, optimizer, and the parameter groups: those of Transformers, or the one that DeepSpeed makes.
ARMS: dict[str, tuple[int | None, str, list[str]]] = {
    "plain": (None, "hf", ["decay", "no_decay"]),
    "zero1": (1, "hf", ["decay", "no_decay"]),
    "zero3": (3, "deepspeed", ["group0"]),
}
pytestmark = pytest.mark.jobs
each_arm = pytest.mark.parametrize("arm", ARMS)


def command(step: int, kind: str, **intent: Any) -> dict[str, Any]:
    return {"uuid": str(uuid4()), "author": "test", "intent": {"kind": kind, **intent}, "not_before_step": step}


def set_knobs(step: int, **values: Any) -> dict[str, Any]:
    return command(step, "set_knobs", changes=[{"knob": name, "value": value} for name, value in values.items()])


def commands() -> list[dict[str, Any]]:
    return [
        set_knobs(
            SET_AT,
            weight_decay=WEIGHT_DECAY,
            betas=BETAS,
            eps=EPS,
            gradient_clipping=CLIPPING,
            dropout=DROPOUT,
            logging_steps=LOGGING_STEPS,
            eval_steps=EVAL_STEPS,
        ),
        # At the last boundary of the last planned epoch.
        set_knobs(PLANNED_STEPS, total_steps=STEPS),
        set_knobs(SET_AT, momentum=0.5),
        set_knobs(SET_AT, weight_decay=0.5, gradient_clipping=3.0),
    ]


def expected(arm: str) -> dict[str, Any]:
    groups = len(ARMS[arm][2])
    return {
        "weight_decay": [WEIGHT_DECAY, 0.0][:groups],
        "betas": [list(BETAS)] * groups,
        "eps": [EPS] * groups,
        "gradient_clipping": CLIPPING,
        "dropout": DROPOUT,
        "logging_steps": LOGGING_STEPS,
        "eval_steps": EVAL_STEPS,
        "total_steps": STEPS,
    }


class Run:
    """One training's folder, with what each rank's witness saw."""

    def __init__(self, root: Path, seen: list[dict[str, Any]]) -> None:
        self.files, self.seen = RunFiles(root), seen

    def of(self, kind: type) -> list[Any]:
        return [entry.record for entry in read(self.files.journal) if isinstance(entry.record, kind)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Each arm steered and by hand; and by hand without one of the values each, which must make a difference."""
    folder = tmp_path_factory.mktemp("knobs")
    limits = {"gradient_clipping": {"max": 2.0}}
    specs: dict[str, dict[str, Any]] = {}
    for arm, (stage, optimizer, _) in ARMS.items():
        common = {"stage": stage, "optimizer": optimizer}
        specs[arm] = common | {"steps": PLANNED_STEPS, "commands": commands(), "limits": limits}
        specs[f"{arm} by hand"] = common | {"steps": STEPS, "by_hand": BY_HAND}
    for left_out in BY_HAND:
        names = [name for name in BY_HAND if name != left_out]
        specs[f"plain without {left_out}"] = {"stage": None, "optimizer": "hf", "steps": STEPS, "by_hand": names}
    trainings = [spec | {"root": str(folder / name)} for name, spec in specs.items()]
    seen = run_ranks("tests.ray_jobs.trials.knob_trials:train_each", 2, {"trainings": trainings}, folder / "ranks")
    return {name: Run(folder / name, [rank[index] for rank in seen]) for index, name in enumerate(specs)}


@each_arm
def test_knobs_are_applied_at_one_step_and_read_back_from_each_rank(runs: dict[str, Run], arm: str) -> None:
    first, last = (each for each in runs[arm].of(CommandSettled) if each.status == "applied")
    assert (first.step, first.world_size, last.step) == (SET_AT, 2, PLANNED_STEPS)
    assert [reading | last.after for reading in first.ranks] == [expected(arm)] * 2
    assert first.before["weight_decay"][0] == 0.1
    assert first.before["dropout"] == 0.1


@each_arm
def test_every_rank_uses_them_from_the_next_step_on_and_not_before(runs: dict[str, Run], arm: str) -> None:
    for rank in runs[arm].seen:
        wanted = {name: expected(arm)[name] for name in ("weight_decay", "betas", "eps", "gradient_clipping")}
        before, after = rank["used"][str(SET_AT)], rank["used"][str(SET_AT + 1)]
        assert {name: after[name] for name in wanted} == wanted
        assert (before["dropout"], after["dropout"]) == ([0.1], [DROPOUT])
        assert all(before[name] != value for name, value in wanted.items())


@each_arm
def test_the_training_ends_where_one_ends_that_was_set_by_hand(runs: dict[str, Run], arm: str) -> None:
    steered, by_hand = runs[arm].seen, runs[f"{arm} by hand"].seen
    assert [rank["step"] for rank in steered] == [STEPS] * 2, "the added steps need an epoch that was not planned"
    assert [rank["weights"] for rank in steered] == [rank["weights"] for rank in by_hand]


@pytest.mark.parametrize("name", BY_HAND)
def test_each_value_makes_a_difference(runs: dict[str, Run], name: str) -> None:
    assert runs["plain by hand"].seen[0]["weights"] != runs[f"plain without {name}"].seen[0]["weights"]


@each_arm
def test_intervals_count_from_then_on(runs: dict[str, Run], arm: str) -> None:
    for rank in runs[arm].seen:
        assert rank["logged"] == [*range(1, SET_AT + 1), 6, 8, 10]
        assert rank["evaluated"] == [6, PLANNED_STEPS, 9, STEPS]  # and at the end, planned or real


@each_arm
def test_what_cannot_be_is_refused_by_all_ranks_with_a_reason(runs: dict[str, Run], arm: str) -> None:
    unknown, beyond = (each for each in runs[arm].of(CommandSettled) if each.status == "rejected")
    assert "there is no knob 'momentum'; this run has" in unknown.reason
    assert "gradient_clipping would be 3; this run allows at most 2" in beyond.reason


@each_arm
def test_what_can_be_set_is_told_at_the_start(runs: dict[str, Run], arm: str) -> None:
    (started,) = runs[arm].of(GenerationStarted)
    about = started.facts["knobs"]
    names = {"betas", "checkpoint_steps", "dropout", "eps", "eval_steps", "gradient_clipping", "logging_steps"}
    assert set(about) == names | {"total_steps", "weight_decay"}
    assert about["weight_decay"]["per_group"]
    assert started.knobs["groups"] == ARMS[arm][2]


# --- Killed and started again ---

KILLED_IN, RESTORED_AT, LONGER = 8, 6, 12


def changes() -> list[dict[str, Any]]:
    return [
        set_knobs(2, weight_decay=0.3, betas=(0.8, 0.95), gradient_clipping=0.05, dropout=0.3),
        set_knobs(3, **{"*.attn.*:p": 0.2, "total_steps": LONGER, "checkpoint_steps": 3}),
        command(3, "set_schedule", shape="cosine", warmup_steps=2, peak=2.0, end=0.1),
        command(7, "set_learning_rate", factor=0.5),
    ]


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any], dict[str, Any]]]:
    """Of ZeRO 1 and 3: a training that is killed after its checkpoint at step 6, and one that is not."""
    folder, given = tmp_path_factory.mktemp("lives"), changes()
    spec = {"scheduler": "hf", "steps": 10, "samples": SAMPLES, "every_steps": 2}
    trainings = [
        spec
        | {"root": str(folder / f"{name}{'-killed' * bool(kills)}"), "stage": stage, "kills": kills}
        | {"optimizer": optimizer, "commands": given, "patient": True}
        for name, (stage, optimizer, _) in ARMS.items()
        if stage is not None
        for kills in ([], [[1, KILLED_IN, "forward"]])
    ]
    answers = run_crashes(trainings, 2, folder)
    names = {"zero1": answers[:2], "zero3": answers[2:]}
    return {name: (folder / f"{name}-killed", whole, killed) for name, (whole, killed) in names.items()}


@pytest.mark.parametrize("name", ["zero1", "zero3"])
def test_a_training_that_was_killed_holds_what_was_set_and_ends_the_same(lives: dict[str, Any], name: str) -> None:
    root, whole, killed = lives[name]
    assert [life["kill"][1] for life in killed["died"]] == [KILLED_IN]
    for mine, theirs in zip(killed["ranks"], whole["ranks"], strict=True):
        assert mine["began_at"] == RESTORED_AT + 1
        assert (mine["step"], mine["state"], mine["random"]) == (LONGER, theirs["state"], theirs["random"])
        assert mine["used"]["12"] == theirs["used"]["12"]
    held = [entry.record for entry in read(RunFiles(root / "runs" / "crashed").journal)]
    started = [record for record in held if isinstance(record, GenerationStarted)][-1]
    assert started.knobs["gradient_clipping"] == 0.05
    assert started.knobs["schedule"] == ["course"] * len(ARMS[name][2])
    assert started.knobs["groups"] == ARMS[name][2]
    assert started.knobs["transformer.h.0.attn.attn_dropout:p"] == 0.2
    assert started.knobs["transformer.drop:p"] == 0.3
    assert started.total_steps == LONGER


@pytest.mark.parametrize("name", ["zero1", "zero3"])
def test_a_manifest_tells_the_knobs(lives: dict[str, Any], name: str) -> None:
    root, _, _ = lives[name]
    files = RunFiles(root / "runs" / "crashed")
    saved = [entry.record for entry in read(files.journal) if isinstance(entry.record, CheckpointCommitted)]
    at = next(record for record in saved if record.step == RESTORED_AT)
    knobs = read_manifest(files.root / at.path, None).knobs
    assert "dropout" not in knobs, "they differ now"
    assert (knobs["transformer.h.0.attn.attn_dropout:p"], knobs["transformer.drop:p"]) == (0.2, 0.3)
    assert (knobs["total_steps"], knobs["checkpoint_steps"], knobs["weight_decay"]) == (
        LONGER,
        3,
        [0.3, 0.0][: len(ARMS[name][2])],
    )

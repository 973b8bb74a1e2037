"""Reflexes `clip` and `pause` on real ranks: clipping by ZClip's formula for a while; a pause that a person ends."""

from pathlib import Path
from typing import Any

import pytest

from control_plane.core.model.health import AlertRaised
from control_plane.core.model.records import CommandAccepted, CommandSettled, GenerationEnded
from control_plane.core.rules.reflexes import clipped_norm
from control_plane.storage.journal.writer import read
from control_plane.storage.layout import RunFiles
from tests.ray_jobs.support.ranks import run_ranks
from tests.ray_jobs.trials.reflex_trials import CLIP_STEPS, FAULT_AT, SHORT_STEPS

pytestmark = [pytest.mark.jobs, pytest.mark.slow, pytest.mark.timeout(300)]

CLIPPING = 1e3
WITHIN_STEPS = 10
"""From the fault to the command: one boundary until the sign is judged, and what the control server takes."""

DEEPSPEED = {
    "train_micro_batch_size_per_gpu": 16,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": CLIPPING,
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "torch_adam": True}},
    "zero_optimization": {"stage": 1, "overlap_comm": False},
    "zero_allow_untested_optimizer": True,
    "steps_per_print": 10**9,
}
TRAININGS = [
    {"name": "clip", "fault": "spike", "reflexes": {"gradient_spike": {"do": "clip", "clip_steps": CLIP_STEPS}}},
    {"name": "pause", "fault": "nan", "reflexes": {"critical": "pause"}},
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """Answers of both ranks, by training."""
    root = tmp_path_factory.mktemp("clip-and-pause")
    trainings = [one | {"deepspeed": DEEPSPEED} for one in TRAININGS]
    spec = {"root": str(root), "trainings": trainings}
    answers = run_ranks("tests.ray_jobs.trials.reflex_trials:fault_each", 2, spec, root / "ranks")
    return root, {str(one["name"]): [rank[at] for rank in answers] for at, one in enumerate(trainings)}


def records(root: Path, name: str, kind: type) -> list[Any]:
    journal = RunFiles(root / "runs" / name).journal
    return [entry.record for entry in read(journal) if isinstance(entry.record, kind)]


def settled_of(root: Path, name: str, author: str) -> list[CommandSettled]:
    asked = [record.command.uuid for record in records(root, name, CommandAccepted) if record.command.author == author]
    outcomes = {record.uuid: record for record in records(root, name, CommandSettled)}
    return [outcomes[uuid] for uuid in asked]


def test_clip_lowers_the_clipping_by_zclips_formula_and_puts_it_back(seen: tuple[Path, dict[str, Any]]) -> None:
    root, answers = seen
    (record,) = [one for one in records(root, "clip", AlertRaised) if one.reflex]
    assert (record.alert.kind, record.alert.onset_step, record.declined) == ("gradient_spike", FAULT_AT, "")
    norm = clipped_norm(record.alert.evidence, 2.5)
    assert norm is not None
    assert 0 < norm < CLIPPING
    lowered, back = settled_of(root, "clip", "reflex:gradient_spike")
    assert [one.status for one in (lowered, back)] == ["applied", "applied"]
    # Read back on every rank from the live engine.
    assert [rank["gradient_clipping"] for rank in lowered.ranks] == [norm, norm]
    assert [rank["gradient_clipping"] for rank in back.ranks] == [CLIPPING, CLIPPING]
    assert lowered.step is not None
    assert FAULT_AT <= lowered.step <= FAULT_AT + WITHIN_STEPS
    assert back.step == record.alert.step + CLIP_STEPS
    for rank in answers["clip"]:
        used = {int(step): value for step, value in rank["clipping"].items()}
        assert used == {
            step: norm if lowered.step < step <= back.step else CLIPPING for step in range(1, SHORT_STEPS + 1)
        }


def test_pause_holds_the_run_until_a_person_resumes_it(seen: tuple[Path, dict[str, Any]]) -> None:
    root, answers = seen
    record = next(one for one in records(root, "pause", AlertRaised) if one.reflex)
    assert (record.alert.kind, record.alert.level, record.reflex) == ("non_finite", "critical", "critical")
    (paused,) = settled_of(root, "pause", "reflex:critical")
    (resumed,) = settled_of(root, "pause", "operator")
    assert (paused.status, resumed.status) == ("applied", "applied")
    assert paused.step is not None
    assert FAULT_AT <= paused.step <= FAULT_AT + WITHIN_STEPS
    assert resumed.step == paused.step, "no step was made in between"
    assert answers["pause"][0]["resumed"] == 1
    assert [rank["steps"] for rank in answers["pause"]] == [SHORT_STEPS] * 2
    (ended,) = records(root, "pause", GenerationEnded)
    assert (ended.ending, ended.step) == ("finished", SHORT_STEPS)

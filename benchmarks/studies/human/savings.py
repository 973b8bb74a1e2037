"""Savings of live steering against stopping a run, queueing it again and restarting it, by stated assumptions."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from benchmarks.studies.human import plan

if TYPE_CHECKING:
    from benchmarks.studies.human.study_human import Study

QUEUE_S = 600.0
CHECKPOINT_EVERY_STEPS = 100


@dataclass(frozen=True)
class Saving:
    """Cost that live steering saves. `steps`: trained again; `share`: processor seconds, as a share of one run's."""

    label: str
    steps: float
    seconds: float
    cpu_s: float
    share: float


def savings(study: "Study") -> list[Saving]:
    """Return the savings against each way to change a run without live steering."""
    changes = [one["step"] for one in study.interventions]
    every = CHECKPOINT_EVERY_STEPS
    return [
        _saving(study, "saved at each change, restarted from there", [0] * len(changes), 0.0),
        _saving(
            study,
            f"saved at each change, {QUEUE_S:.0f} s in the queue, restarted from there",
            [0] * len(changes),
            QUEUE_S,
        ),
        _saving(
            study,
            f"restarted from the latest checkpoint, one every {every} steps",
            [step % every for step in changes],
            0.0,
        ),
        _saving(study, "begun anew at each change", changes, 0.0),
        _saving(study, f"{QUEUE_S:.0f} s in the queue and begun anew at each change", changes, QUEUE_S),
    ]


def _saving(study: "Study", label: str, lost: Sequence[int], queue_s: float) -> Saving:
    """Return the saving if the steps in `lost` are trained again, one entry a restart."""
    runs = study.rows["steered"]
    starts = plan.recorded()["restarts"]
    start_s, start_cpu_s = (fmean(one[name] for one in starts) if starts else 0.0 for name in ("seconds", "cpu_s"))
    step_s, step_cpu_s = (fmean(row[name] for row in runs) / study.steps for name in ("seconds", "cpu_s"))
    steps = sum(lost)
    cpu_s = steps * step_cpu_s + len(lost) * start_cpu_s
    seconds = steps * step_s + len(lost) * (start_s + queue_s)
    return Saving(label, steps, seconds, cpu_s, cpu_s / (step_cpu_s * study.steps))

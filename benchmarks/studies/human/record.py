"""Recorder: writes the interventions of a run that was watched, from its journal and metrics, as the study's data.

    python -m benchmarks.studies.human.record RUN_FOLDER --made-by TEXT [--restart SECONDS:CPU_SECONDS ...]

Every applied change of the learning rate becomes an intervention: step, time, command, reason. Nothing is chosen here.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies.human import plan
from control_plane.core.model.records import CommandAccepted, CommandSettled
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore

KINDS = ("set_learning_rate", "set_schedule")


def interventions(files: RunFiles) -> list[dict[str, Any]]:
    """Return the applied changes of the learning rate, in order, as the journal has them."""
    entries = list(writer.read(files.journal))
    asked = {entry.record.command.uuid: entry for entry in entries if isinstance(entry.record, CommandAccepted)}
    found = []
    for entry in entries:
        record = entry.record
        if not isinstance(record, CommandSettled) or record.status != "applied" or record.uuid not in asked:
            continue
        accepted = asked[record.uuid]
        assert isinstance(accepted.record, CommandAccepted)
        command = accepted.record.command
        if command.intent.kind in KINDS:
            found.append(
                {
                    "step": record.step,
                    "time": accepted.time,
                    "what": command.intent.describe(),
                    "reason": command.reason,
                    "intent": command.intent.model_dump(mode="json", exclude_none=True),
                }
            )
    return found


def evaluations(files: RunFiles) -> list[tuple[int, float]]:
    """Return the evaluations of the run as they were stored: step and loss."""
    store = MetricsStore(files.metrics)
    try:
        return [(point.step, point.value) for point in store.read(0, 10_000, ("eval_loss",)).points]
    finally:
        store.close()


def recording(folder: Path, made_by: str, weights: str, restarts: Sequence[tuple[float, float]]) -> Mapping[str, Any]:
    """Return what the study needs of a watched run.

    Args:
        restarts: of real starts of the run, seconds from its creation to the start of training, and processor
            seconds of the rank until then.
    """
    files = RunFiles(folder)
    return {
        "made_by": made_by,
        "seed": plan.RECORDED_SEED,
        "start": plan.START,
        "steps": plan.STEPS,
        "weights": weights,
        "interventions": interventions(files),
        "evals": evaluations(files),
        "restarts": [{"seconds": seconds, "cpu_s": cpu_s} for seconds, cpu_s in restarts],
    }


def main() -> None:
    """Write the recording of a run."""
    from benchmarks.studies.human.weights import pretrained

    parser = argparse.ArgumentParser(prog="record")
    parser.add_argument("folder", type=Path, help="folder of the run that was watched")
    parser.add_argument("--made-by", required=True, help="who or what made the interventions, and when")
    parser.add_argument("--restart", action="append", default=[], help="a real start: seconds:processor seconds")
    given = parser.parse_args()
    restarts = [(float(seconds), float(cpu_s)) for seconds, _, cpu_s in (one.partition(":") for one in given.restart)]
    made = recording(given.folder, given.made_by, pretrained()["digest"], restarts)
    plan.RECORDED.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{len(made['interventions'])} interventions are in {plan.RECORDED}")


if __name__ == "__main__":
    main()

"""The matrix of the vocabulary: run on real ranks, judged cell by cell, and written as docs/vocabulary.md.

    python -m tests.jobs.vocabulary_table                 runs everything and writes the table
    python -m tests.jobs.vocabulary_table "3 ds/ds" ...   runs these arms alone and prints what it found

A cell is `exact`, or the sentence with which all ranks refuse, or what is wrong with it, which begins with WRONG.
"""

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_plane.core.records import CheckpointCommitted, CommandSettled
from control_plane.storage.journal import read
from control_plane.storage.layout import RunFiles
from tests.jobs import vocabulary as v
from tests.jobs.ranks import run_ranks

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "vocabulary.md"
EXACT, WRONG = "exact", "WRONG"
ARM_TIMEOUT_S = 1200.0
"""One arm's trainings on a machine that does other things, too; it is there to end a hang, and measures nothing."""

Table = dict[str, dict[str, str]]
Seen = list[dict[str, Any]]

INTRODUCTION = """\
# The vocabulary of steering, command by command

Made by `python -m tests.jobs.vocabulary_table`, and checked by `pytest -m slow tests/jobs/test_vocabulary_matrix.py`.

Every cell is a training of its own on two real ranks (gloo, on CPUs, a GPT-2 of one layer in fp32), into which the
command was sent, beside one of Transformers' own Trainer, with none of Steerway's callbacks, in which the same was done
by hand after the same step. **exact** means:

- the command was applied at the step that it was sent for, and both ranks read the same values back from their live
  objects, which are the values that were asked for;
- after every single step, on both ranks, all weights are bit for bit those of the training by hand;
- they are those of an undisturbed training up to the command, and others from the next step on. For what is to change
  nothing (evaluate, save, pause, resume, stop, cancel, logging and checkpoint intervals) they are the undisturbed ones
  to the end.

A number stands for a refusal: all ranks voted, none changed anything, and the training went on undisturbed, bit for
bit. The sentences are below the table.

The columns: `plain` is a Trainer without DeepSpeed; the others are ZeRO's stage, then the optimizer and the scheduler,
each Hugging Face's (`hf`) or DeepSpeed's (`ds`, or `sgd`: torch's SGD, made by DeepSpeed).
"""


@dataclass(frozen=True, slots=True)
class Trained:
    """A training's folder, and what each rank's witness saw."""

    files: RunFiles
    seen: Seen

    def of(self, kind: type) -> list[Any]:
        return [entry.record for entry in read(self.files.journal) if isinstance(entry.record, kind)]

    def weights(self) -> dict[int, str]:
        """After each step. Ranks that differ have no common digest."""
        first, *others = ({int(step): each for step, each in rank["weights"].items()} for rank in self.seen)
        return {step: each if all(o.get(step) == each for o in others) else "differ" for step, each in first.items()}


# --- Run ---


def specs(arm: v.Arm, root: Path) -> dict[str, dict[str, Any]]:
    """By name: an undisturbed training, and for each trial a steered one and, where there is one, one by hand."""
    kind = {"stage": arm.stage, "optimizer": arm.optimizer, "scheduler": arm.scheduler}
    found: dict[str, dict[str, Any]] = {"undisturbed": {"by_hand": []}}
    for trial in v.TRIALS:
        found[trial.name] = {
            "commands": [row.command() for row in trial.rows if not row.while_paused],
            "while_paused": [row.command() for row in trial.rows if row.while_paused],
        }
        if trial.by_hand and not _cannot_by_hand(arm, trial):
            found[_by_hand(trial)] = {"by_hand": list(trial.by_hand)}
    return {name: kind | spec | {"root": str(root / f"{at:02d}")} for at, (name, spec) in enumerate(found.items())}


def _by_hand(trial: v.Trial) -> str:
    return f"{trial.name}, by hand"


def _cannot_by_hand(arm: v.Arm, trial: v.Trial) -> bool:
    """What the optimizer has no use for cannot be set by hand either."""
    return trial.by_hand[0][1] in (("momentum",) if arm.is_adam else ("betas", "eps"))


def run(names: Iterable[str], folder: Path) -> dict[str, dict[str, Trained]]:
    """Train every arm's trials, all in the same two processes; importing and building cost more than training."""
    wanted = {name: specs(v.ARMS[name], folder / f"arm-{list(v.ARMS).index(name)}") for name in names}
    trainings = [spec for arm in wanted.values() for spec in arm.values()]
    timeout_s = ARM_TIMEOUT_S * len(wanted)
    answers = run_ranks("tests.jobs.matrix_trials:train_each", 2, {"trainings": trainings}, folder / "ranks", timeout_s)
    per_training = iter(zip(*answers, strict=True))
    return {
        name: {trial: Trained(RunFiles(Path(spec["root"])), list(next(per_training))) for trial, spec in arm.items()}
        for name, arm in wanted.items()
    }


# --- Judge ---


def judged(runs: dict[str, dict[str, Trained]]) -> Table:
    """Every row's cell in every arm."""
    table: Table = {row.name: {} for row in v.rows()}
    for name, trained in runs.items():
        for trial in v.TRIALS:
            for row in trial.rows:
                if row.name in table:
                    table[row.name][name] = _cell(v.ARMS[name], trial, row, trained)
    return table


def _cell(arm: v.Arm, trial: v.Trial, row: v.Row, trained: dict[str, Trained]) -> str:
    settled = {each.uuid: each for each in trained[trial.name].of(CommandSettled)}.get(row.uuid)
    if settled is None:
        return f"{WRONG}: it was never settled"
    refused = settled.status == "rejected"
    problems = list(_weights(trial, trained, refused))
    if refused:
        return f"{WRONG}: {'; '.join(problems)}" if problems else str(settled.reason)
    problems += [*_outcome(arm, row, settled), *_consequences(row, trained, trial)]
    return f"{WRONG}: {'; '.join(problems)}" if problems else EXACT


def _outcome(arm: v.Arm, row: v.Row, settled: CommandSettled) -> Iterator[str]:
    if settled.status != "applied":
        yield f"{settled.status}: {settled.reason}"
        return
    if settled.step != row.at:
        yield f"applied at step {settled.step}, not {row.at}"
    if row is not v.CANCEL and (settled.world_size != 2 or settled.ranks[0] != settled.ranks[1]):
        yield f"the ranks read {settled.ranks}"
    for name, value in row.expected(arm).items():
        if (settled.after or {}).get(name) != value:
            yield f"{name} reads {(settled.after or {}).get(name)}, not {value}"
    if row.name.startswith("set_learning_rate value") and (settled.after or {})["lr"][0] != v.RATE:
        yield f"the rates read {(settled.after or {})['lr']}"


def _weights(trial: v.Trial, trained: dict[str, Trained], refused: bool) -> Iterator[str]:
    steered, untouched = trained[trial.name].weights(), trained["undisturbed"].weights()
    steps = v.STEPS if refused else trial.steps
    if sorted(steered) != list(range(steps + 1)):
        yield f"it has the steps {sorted(steered)}"
    if "differ" in steered.values():
        yield "the ranks differ"
    if not refused and _by_hand(trial) in trained and steered != trained[_by_hand(trial)].weights():
        yield f"not as by hand from step {_parts(steered, trained[_by_hand(trial)].weights())} on"
    yield from _effect(None if refused else trial.differs_from, steered, untouched)
    if trial.parts_from is not None and not refused:
        other, step = trial.parts_from
        yield from _effect(step, steered, trained[other].weights())


def _effect(differs_from: int | None, steered: dict[int, str], other: dict[int, str]) -> Iterator[str]:
    """From which step on the weights must be others: from then on at every step, and not before."""
    for step in sorted(steered.keys() & other.keys()):
        is_other, should_be = steered[step] != other[step], differs_from is not None and step >= differs_from
        if is_other != should_be:
            yield f"step {step} is {'' if is_other else 'not '}different"
            return


def _parts(one: dict[int, str], other: dict[int, str]) -> int | None:
    return next((step for step in sorted(one | other) if one.get(step) != other.get(step)), None)


def _consequences(row: v.Row, trained: dict[str, Trained], trial: v.Trial) -> Iterator[str]:
    """What a command is for, where the weights do not tell."""
    steered = trained[trial.name]
    committed = {each.checkpoint: each for each in steered.of(CheckpointCommitted)}
    match row.name:
        case "set_knobs logging_steps":
            if any(rank["logged"] != [1, 2, 4, 6] for rank in steered.seen):
                yield f"logged at {steered.seen[0]['logged']}"
        case "set_knobs eval_steps":
            yield from _evaluations(steered, trained[_by_hand(trial)])
        case "set_knobs checkpoint_steps":
            if [each.step for each in committed.values()] != [v.CHECKPOINT_STEPS]:
                yield f"checkpoints at {[each.step for each in committed.values()]}"
        case "evaluate":
            yield from _evaluations(steered, trained[_by_hand(trial)])
            losses = {each["eval_loss"] for each in _settled(steered, row).ranks}
            if losses != {steered.seen[0]["evaluated"][str(row.at)]}:
                yield f"the ranks read {losses}"
        case "save_checkpoint label, note, pin":
            found = committed[(_settled(steered, row).after or {})["checkpoint"]]
            if (found.step, found.label, found.note, found.pinned) != (row.at, v.LABEL, v.NOTE, True):
                yield f"committed as {found}"
        case "pause" | "resume":
            if not steered.seen[0]["heard_paused"]:
                yield "nobody heard of a pause"
        case "stop with a checkpoint":
            if [each.step for each in committed.values()] != [row.at]:
                yield "there is no checkpoint"


def _settled(trained: Trained, row: v.Row) -> CommandSettled:
    return next(each for each in trained.of(CommandSettled) if each.uuid == row.uuid)


def _evaluations(steered: Trained, by_hand: Trained) -> Iterator[str]:
    for mine, theirs in zip(steered.seen, by_hand.seen, strict=True):
        if mine["evaluated"] != theirs["evaluated"] or not mine["evaluated"]:
            yield f"evaluated {mine['evaluated']}, by hand {theirs['evaluated']}"


# --- Write ---


def rendered(table: Table) -> str:
    """The document. Refusals are numbered in the order in which they are met."""
    sentences: dict[str, int] = {}
    lines = [f"| | {' | '.join(v.ARMS)} |", f"|---|{'---|' * len(v.ARMS)}"]
    for name, cells in table.items():
        shown = [_shown(cells[arm], sentences) for arm in v.ARMS]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    counted = [cell for cells in table.values() for cell in cells.values()]
    exact = counted.count(EXACT)
    notes = [f"{number}. {sentence}" for sentence, number in sentences.items()]
    summary = f"{len(counted)} cells: {exact} exact, {len(counted) - exact} refused."
    return "\n".join([INTRODUCTION, *lines, "", summary, "", "Refusals:", "", *notes]) + "\n"


def _shown(cell: str, sentences: dict[str, int]) -> str:
    if cell == EXACT or cell.startswith(WRONG):
        return cell
    return f"refused ({sentences.setdefault(cell, len(sentences) + 1)})"


def wrong(table: Table) -> list[str]:
    """The cells that prove nothing."""
    return [
        f"{row}, {arm}: {cell}" for row, cells in table.items() for arm, cell in cells.items() if cell.startswith(WRONG)
    ]


def main(names: list[str]) -> None:
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        table = judged(run(names or v.ARMS, Path(folder)))
    print("\n".join(wrong(table)) or "no cell is wrong")
    cells = [cell for row in table.values() for cell in row.values()]
    refused = len(cells) - cells.count(EXACT) - len(wrong(table))
    print(f"{len(cells)} cells, {cells.count(EXACT)} exact, {refused} refused, {time.monotonic() - begun_s:.0f} s")
    if not names and not wrong(table):
        DOCUMENT.write_text(rendered(table), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

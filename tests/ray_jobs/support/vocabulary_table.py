"""The matrix of the vocabulary: run on real ranks, judged cell by cell, and written as docs/vocabulary.md.

    python -m tests.ray_jobs.support.vocabulary_table                 runs every arm and writes its column
    python -m tests.ray_jobs.support.vocabulary_table "3 ds/ds"       runs this arm alone

A cell is `exact`, or the sentence with which all ranks refuse, or what is wrong with it, which begins with WRONG.
"""

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_plane.core.model.records import CheckpointCommitted, CommandSettled
from control_plane.storage.journal.writer import read
from control_plane.storage.layout import RunFiles
from tests.ray_jobs.support import vocabulary as v
from tests.ray_jobs.support.ranks import run_ranks

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "vocabulary.md"
EXACT, WRONG, REFUSALS = "exact", "WRONG", "Refusals:"
ARM_TIMEOUT_S = 1200.0
"""One arm's trainings on a machine that does other things, too; it is there to end a hang, and measures nothing."""

Column = dict[str, str]
"""Of one arm: each row's cell."""

Table = dict[str, Column]
"""By arm."""

Seen = list[dict[str, Any]]

INTRODUCTION = """\
# The vocabulary of steering, command by command

Made by `python -m tests.ray_jobs.support.vocabulary_table`, and checked by
`pytest -m slow tests/ray_jobs/steering/test_vocabulary_matrix.py`.

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


@dataclass(frozen=True)
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


def run(name: str, folder: Path) -> dict[str, Trained]:
    """One arm's trials, all in the same two processes; importing and building cost more than training."""
    wanted = specs(v.ARMS[name], folder)
    trainings = {"trainings": list(wanted.values())}
    answers = run_ranks("tests.ray_jobs.trials.matrix_trials:train_each", 2, trainings, folder / "ranks", ARM_TIMEOUT_S)
    seen = [list(per_rank) for per_rank in zip(*answers, strict=True)]
    return {
        trial: Trained(RunFiles(Path(spec["root"])), each)
        for (trial, spec), each in zip(wanted.items(), seen, strict=True)
    }


# --- Judge ---


def judged(arm: v.Arm, trained: Mapping[str, Trained], trials: Iterable[v.Trial] = v.TRIALS) -> Column:
    """Every row's cell in this arm."""
    listed = {row.name for row in v.rows()}
    return {row.name: _cell(arm, trial, row, trained) for trial in trials for row in trial.rows if row.name in listed}


def _cell(arm: v.Arm, trial: v.Trial, row: v.Row, trained: Mapping[str, Trained]) -> str:
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


def _weights(trial: v.Trial, trained: Mapping[str, Trained], refused: bool) -> Iterator[str]:
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


def _consequences(row: v.Row, trained: Mapping[str, Trained], trial: v.Trial) -> Iterator[str]:
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
    lines = [f"| | {' | '.join(table)} |", f"|---|{'---|' * len(table)}"]
    for row in v.rows():
        shown = [_shown(column[row.name], sentences) for column in table.values()]
        lines.append(f"| {row.name} | {' | '.join(shown)} |")
    notes = [f"{number}. {sentence}" for sentence, number in sentences.items()]
    return "\n".join([INTRODUCTION, *lines, "", f"{counted(table)}.", "", REFUSALS, "", *notes]) + "\n"


def _shown(cell: str, sentences: dict[str, int]) -> str:
    if cell == EXACT or cell.startswith(WRONG):
        return cell
    return f"refused ({sentences.setdefault(cell, len(sentences) + 1)})"


def parsed(page: str) -> Table:
    """The reverse of `rendered`."""
    notes = page.partition(REFUSALS)[2].split("\n")
    sentences = {f"refused ({number})": rest for number, _, rest in (note.partition(". ") for note in notes) if rest}
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.split("\n") if line.startswith("| ")]
    arms = lines[0][1:]
    return {
        arm: {line[0]: sentences.get(line[at], line[at]) for line in lines[1:]} for at, arm in enumerate(arms, start=1)
    }


def counted(table: Table) -> str:
    """`15 cells: 14 exact, 1 refused`."""
    cells = [cell for column in table.values() for cell in column.values()]
    return f"{len(cells)} cells: {cells.count(EXACT)} exact, {len(cells) - cells.count(EXACT)} refused"


def wrong(table: Table) -> list[str]:
    """The cells that prove nothing."""
    cells = ((f"{arm}: {row}: {cell}", cell) for arm, column in table.items() for row, cell in column.items())
    return [told for told, cell in cells if cell.startswith(WRONG)]


def main(names: list[str]) -> None:
    for name in names or v.ARMS:
        begun_s = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            # A folder below: the signing key lies beside that of all runs, which nobody else may write to.
            column = judged(v.ARMS[name], run(name, Path(folder) / "runs"))
        told = "\n".join(["", *wrong({name: column})])
        print(f"{name}: {counted({name: column})}, {time.monotonic() - begun_s:.0f} s{told}", flush=True)
        if not wrong({name: column}):
            write(name, column)


def write(name: str, column: Column) -> None:
    """Put one arm's column into the page."""
    page = parsed(DOCUMENT.read_text(encoding="utf-8")) if DOCUMENT.exists() else {}
    page[name] = column
    DOCUMENT.write_text(rendered({arm: page[arm] for arm in v.ARMS if arm in page}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Replay check: whether a replay reproduced its run, by digests of the live state, then by losses, branch by branch.

    verdict = judge(replay, run)      the files of two runs; the run's journal may be an imported one

A replay that leaves a command out is compared until the step where that had taken effect, and no further.
`identical`: every digest that both have is equal on every rank, and so is every loss, to the last bit. `divergent`
names the first step and branch, the ranks, and, where the ranks' own files are there, the tensors.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from control_plane.core.model.intent_base import Message
from control_plane.core.model.records import NOT_EXACT, Entry, GenerationStarted, StateDigested
from control_plane.core.model.state import fold
from control_plane.core.model.values import LeftOut
from control_plane.core.rules.digests import DigestComparison, compare
from control_plane.storage.digest_files import named
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MAX_POINTS_PER_READ, MetricsStore

LOSS = "loss"
OTHER_BEGINNING = (
    "The script's initial model is different: its weights come from random numbers that the run's seed does not "
    "control, or from a different number of draws, or it loaded other weights"
)
MAX_NAMES = 5
"""Tensors listed per rank: after the first difference nearly everything differs."""

Line = tuple[int, str]
"""(training, branch): each has steps of its own, from 0."""

Losses = dict[tuple[Line, int], float]


class ReplayDifference(Message):
    """The first difference of two runs: step, branch, ranks, and what differs."""

    branch: str
    step: int
    training: int = Field(default=1, description="which of the script's trainings")
    ranks: dict[int, tuple[str, ...]] = Field(default={}, description="by rank, the parts of its state that differ")
    loss: tuple[float, float] | None = Field(default=None, description="the replay's and the run's, where they differ")

    def sentence(self) -> str:
        """Return e.g. `step 12 of main: rank 1 differs in optimizer/wte/exp_avg`."""
        details = [f"rank {rank} differs in {', '.join(parts) or 'its state'}" for rank, parts in self.ranks.items()]
        details += [f"the loss is {self.loss[0]!r}, and was {self.loss[1]!r}"] if self.loss else []
        of = self.branch if self.training == 1 else f"{self.branch}, training {self.training} of the script"
        if self.step == 0 and self.ranks:
            return f"the beginning of {of}, before any step: {'; '.join(details)}. {OTHER_BEGINNING}"
        return f"step {self.step} of {of}: {'; '.join(details) or 'other samples were trained'}"


class ReplayVerdict(Message):
    """Result of comparing a replay with its run."""

    verdict: Literal["identical", "divergent", "incomparable"]
    digests: int = Field(description="digests of all ranks at one step that both runs have")
    losses: int
    first: ReplayDifference | None = None
    notes: tuple[str, ...] = ()
    until_step: int | None = Field(default=None, description="last step compared: there a command is left out")

    def sentence(self) -> str:
        """Return the verdict as a sentence."""
        seen = f"{self.digests} digests of every rank and {self.losses} losses"
        seen += f" until step {self.until_step}" if self.until_step is not None else ""
        if self.verdict == "identical":
            return f"identical: {seen} are equal, bit for bit"
        if self.first is None:
            return f"incomparable: {seen} were compared, which is not enough to tell"
        return f"divergent: the first difference is at {self.first.sentence()}"


def judge(replay: RunFiles, run: RunFiles) -> ReplayVerdict:
    """Compare the files of a replay and its run. Raises `NotFound` or `Damaged` if a journal cannot be read."""
    ours, theirs = (writer.read(files.journal) for files in (replay, run))
    cut = _cut(ours, theirs)
    our_streams, their_streams = _streams(ours, cut), _streams(theirs, cut)
    our_losses, their_losses = _losses(replay), _losses(run)
    until_step = cut.step if cut is not None else None
    untold = any(map(_does_not_say_the_training, (ours, theirs), (our_losses, their_losses)))
    if untold:
        our_losses = their_losses = Losses()
    our_losses, their_losses = _before(cut, our_losses), _before(cut, their_losses)
    common = [line for line in our_streams if line in their_streams]
    compared = {line: compare(our_streams[line], their_streams[line]) for line in common}
    differing = [_digested(line, each, replay, run) for line, each in compared.items() if each.first is not None]
    shared = our_losses.keys() & their_losses.keys()
    differing += _lost(our_losses, their_losses)
    digests = sum(len(each.steps) - len(each.unlike) for each in compared.values())
    notes = _notes(ours, theirs, compared)
    if untold:
        notes += ("losses were not compared: an earlier release did not record to which training each belongs",)
    if differing:
        notes += _inexact(ours, theirs)
        order = list(fold(theirs).tree.branches)
        first = min(differing, key=lambda each: (each.training, order.index(each.branch), each.step, not each.ranks))
        return ReplayVerdict(
            verdict="divergent", digests=digests, losses=len(shared), first=first, notes=notes, until_step=until_step
        )
    verdict: Literal["identical", "incomparable"] = "identical" if digests or shared else "incomparable"
    return ReplayVerdict(verdict=verdict, digests=digests, losses=len(shared), notes=notes, until_step=until_step)


def _cut(ours: Sequence[Entry], theirs: Sequence[Entry]) -> LeftOut | None:
    """Return the command that a replay leaves out of the other run; of two replays of one run, the earlier one."""
    replay, run = fold(list(ours)), fold(list(theirs))
    if replay.parent is not None and replay.parent.run == run.run:
        return replay.parent.without
    parents = [state.parent for state in (replay, run) if state.parent is not None]
    cuts = [parent.without for parent in parents if parent.without is not None]
    return min(cuts, key=lambda cut: (cut.training, cut.step), default=None)


def _is_before(cut: LeftOut | None, training: int, step: int) -> bool:
    """Return whether a state digested after `step` is from before the command that is left out.

    A state is digested after the commands of its step; the loss of a step is from before them.
    """
    return cut is None or (training, step) < (cut.training, cut.step)


def _streams(entries: Sequence[Entry], cut: LeftOut | None = None) -> dict[Line, list[StateDigested]]:
    state = fold(list(entries))
    line_of = {each: (state.training_of_generation[each], branch) for each, branch in state.tree.of_generation.items()}
    streams: dict[Line, list[StateDigested]] = {line: [] for line in line_of.values()}
    for entry in entries:
        if isinstance(entry.record, StateDigested):
            line = line_of[entry.record.generation]
            if _is_before(cut, line[0], entry.record.step):
                streams[line].append(entry.record)
    return streams


def _does_not_say_the_training(entries: Sequence[Entry], losses: Losses) -> bool:
    several = len(set(fold(list(entries)).training_of_generation.values())) > 1
    return several and bool(losses) and all(training == 1 for (training, _), _ in losses)


def _before(cut: LeftOut | None, losses: Losses) -> Losses:
    """Return the losses from before the command that is left out: that of its own step is."""
    return {key: loss for key, loss in losses.items() if _is_before(cut, key[0][0], key[1] - 1)}


def _losses(files: RunFiles) -> Losses:
    if not files.metrics.is_file():
        return {}
    store, found, after = MetricsStore(files.metrics), Losses(), 0
    try:
        while (read := store.read(after, MAX_POINTS_PER_READ, (LOSS,))).points:
            found |= {((point.training, point.branch), point.step): point.value for point in read.points}
            after = read.cursor
    finally:
        store.close()
    return found


def _digested(line: Line, found: DigestComparison, replay: RunFiles, run: RunFiles) -> ReplayDifference:
    assert found.first is not None
    names = {each.rank: each.names[:MAX_NAMES] for each in named(found.first, replay, run)}
    ranks = {rank: names.get(rank, ()) for rank in found.first.ranks}
    return ReplayDifference(training=line[0], branch=line[1], step=found.first.step, ranks=ranks)


def _lost(ours: Losses, theirs: Losses) -> list[ReplayDifference]:
    """Return the first differing loss of each line; equal NaN bits are equal."""
    first: dict[Line, ReplayDifference] = {}
    for line, step in sorted(ours.keys() & theirs.keys()):
        mine, other = ours[line, step], theirs[line, step]
        if line not in first and struct.pack(">d", mine) != struct.pack(">d", other):
            first[line] = ReplayDifference(training=line[0], branch=line[1], step=step, loss=(mine, other))
    return list(first.values())


def _inexact(ours: Sequence[Entry], theirs: Sequence[Entry]) -> tuple[str, ...]:
    """Return the trainers' own reasons why a recovery was not bit-identical."""
    started = [entry.record for entry in (*theirs, *ours) if isinstance(entry.record, GenerationStarted)]
    reasons = dict.fromkeys(str(reason) for each in started for reason in each.facts.get(NOT_EXACT, ()))
    return tuple(f"not exact after a failure: {reason}" for reason in reasons)


def _notes(ours: Sequence[Entry], theirs: Sequence[Entry], found: Mapping[Line, DigestComparison]) -> tuple[str, ...]:
    mine, other = fold(list(ours)), fold(list(theirs))
    trained = {branch for _, branch in found}
    untrained = (branch for branch in other.tree.branches if branch not in trained)
    notes = [f"branch {branch} was never trained by the replay" for branch in untrained]
    if mine.generation and other.generation and mine.generation.world_size != other.generation.world_size:
        notes.append(f"{mine.generation.world_size} ranks replayed a run of {other.generation.world_size} ranks")
    for (_, branch), each in found.items():
        if each.their_contradictions:
            step = each.their_contradictions[0].step
            notes.append(f"the run itself made step {step} of {branch} twice, with different results")
    return tuple(notes)

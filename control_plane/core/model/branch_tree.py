"""The branch tree of a run: lineage of a branch, and the history that belongs to it.

    main ----10----20----30          rolled back to the checkpoint of step 20: what main did after it
                    \\                is main's own, and no part of branch-2's history
                     branch-2 ----30

A branch starts at a checkpoint of its parent. Its history is its own decisions plus those its parent had made when that
checkpoint was saved, and so on to the root. Later decisions of the parent, even at earlier steps (after a failure, or
when the run is switched back to it), are not part of it. A branch adopted from another run has no parent here: its
history begins with its checkpoint.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from control_plane.core.model.health import MAKES_SUSPECT, Alert
from control_plane.core.model.records import MAIN, CheckpointCommitted, Parent, Readback

NEVER = 2**63
"""Later than every record."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One branch of training, forked from `parent` at `checkpoint` (after `step`); the first branch has neither.

    `origin` is set on a branch adopted from another run.
    """

    name: str = MAIN
    parent: str | None = None
    checkpoint: str | None = None
    step: int = 0
    training: int = 1
    began_seq: int = 0
    rollback: UUID | None = None
    origin: Parent | None = None


@dataclass(slots=True)
class BranchState:
    """Branches of one run, as its journal has them. Only `state.evolve` changes it."""

    branches: dict[str, Branch] = field(default_factory=lambda: {MAIN: Branch()})
    # The current branch: trained now, or by the next trainers.
    head: str = MAIN
    # When the run was last taken to another branch; pauses and stops before that have no effect any more.
    branched_seq: int = 0
    of_generation: dict[int, str] = field(default_factory=dict)
    # The highest step in the journal of each branch.
    reached: dict[str, int] = field(default_factory=dict)
    # The last known knobs of each branch; the head's are `RunState.knobs`.
    knobs_of: dict[str, Readback] = field(default_factory=dict)
    # Generation starts by (branch, training): pairs of the record's seq and the first step.
    begun: dict[tuple[str, int], list[tuple[int, int]]] = field(default_factory=dict)


@dataclass(slots=True)
class CheckpointState:
    """Checkpoints of one run, as its journal has them. Only `state.evolve` changes it."""

    # In the order of their commits, without the discarded ones.
    existing: list[CheckpointCommitted] = field(default_factory=list)
    discarded: set[str] = field(default_factory=set)
    # Seq of the record that committed each checkpoint, of the discarded ones too.
    committed_seq: dict[str, int] = field(default_factory=dict)
    # Checkpoints beyond a later start of their own branch, with the seq of that start: the branch was restarted from
    # before them, and its history diverged.
    abandoned: dict[str, int] = field(default_factory=dict)

    def find(self, name: str | None) -> CheckpointCommitted | None:
        """Return the existing checkpoint of this name, or None."""
        return next((checkpoint for checkpoint in self.existing if checkpoint.checkpoint == name), None)

    def usable(self) -> list[CheckpointCommitted]:
        """Return the existing checkpoints that are not abandoned."""
        return [checkpoint for checkpoint in self.existing if checkpoint.checkpoint not in self.abandoned]


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """Fork point of a branch: what the parent decided after it is not part of the branch's history.

    `trained_from` is the earliest step from which the branch has trained: earlier than `step` if its checkpoint did not
    verify.
    """

    checkpoint: str
    step: int
    seq: int
    decided_here: tuple[UUID, ...]
    trained_from: int

    def keeps(self, step: int, settled_seq: int, command: UUID) -> bool:
        """Return whether a command settled at `step` (record `settled_seq`) lies before the fork point."""
        return settled_seq < self.seq and (step < self.step or (step == self.step and command in self.decided_here))


@dataclass(frozen=True, slots=True)
class LineagePart:
    """The part of a branch that belongs to another branch's history: up to all of `cuts`, the nearest first."""

    branch: str
    cuts: tuple[ForkPoint, ...]


def to_the_root(branches: Mapping[str, Branch], name: str) -> Iterator[Branch]:
    """Yield the branch and its ancestors, itself first."""
    branch: Branch | None = branches[name]
    while branch is not None:
        yield branch
        branch = branches[branch.parent] if branch.parent is not None else None


def lineage(tree: BranchState, checkpoints: CheckpointState, head: str, training: int = 1) -> Iterator[LineagePart]:
    """Yield the branch and its ancestors, each as far as it belongs to the history of this training."""
    cuts: tuple[ForkPoint, ...] = ()
    for branch in to_the_root(tree.branches, head):
        yield LineagePart(branch.name, cuts)
        cuts = (_cut(tree, checkpoints, branch, cuts[0].seq if cuts else NEVER, training), *cuts)


def _cut(tree: BranchState, checkpoints: CheckpointState, branch: Branch, until_seq: int, training: int) -> ForkPoint:
    base = checkpoints.find(branch.checkpoint)
    starts = (step for seq, step in tree.begun.get((branch.name, training), ()) if seq < until_seq)
    seq = checkpoints.committed_seq.get(branch.checkpoint or "", branch.began_seq)
    # Trainings are consecutive: those before the checkpoint's were complete then, those after it had not begun.
    step = branch.step if training == branch.training else NEVER if training < branch.training else -1
    decided_here = base.decided_here if base is not None else ()
    return ForkPoint(branch.checkpoint or "", step, seq, decided_here, trained_from=min(starts, default=step))


def belongs(line: Sequence[LineagePart], branch: str, step: int, settled_seq: int, command: UUID) -> bool:
    """Return whether a command settled on `branch` at `step` is part of the history described by `line`."""
    for stretch in line:
        if stretch.branch == branch:
            return all(cut.keeps(step, settled_seq, command) for cut in stretch.cuts)
    return False


def candidates(
    tree: BranchState, checkpoints: CheckpointState, head: str, training: int | None = None
) -> list[CheckpointCommitted]:
    """Return the checkpoints that `head` can be restored from, the best first: its own, then its ancestors'.

    Args:
        training: which training of the script; None for all of them, the last one's first.
    """
    existing = checkpoints.existing
    wanted = sorted({checkpoint.training for checkpoint in existing})[::-1] if training is None else [training]
    best_first: list[CheckpointCommitted] = []
    for one in wanted:
        for part in lineage(tree, checkpoints, head, one):
            own = (other for other in existing if (other.training, other.branch) == (one, part.branch))
            usable = [checkpoint for checkpoint in own if _leads_on(checkpoints, part, checkpoint)]
            best_first += sorted(usable, key=lambda checkpoint: checkpoint.step)[::-1]
    return best_first


def _leads_on(checkpoints: CheckpointState, part: LineagePart, checkpoint: CheckpointCommitted) -> bool:
    """Return whether the branch can be restored from this checkpoint.

    True if everything later in this history happened at its step or after, and it contains nothing else.
    """
    left_seq = checkpoints.abandoned.get(checkpoint.checkpoint, NEVER)
    if not part.cuts:
        return left_seq == NEVER
    nearest, *others = part.cuts
    if checkpoint.step > min([cut.trained_from for cut in part.cuts] + [cut.step for cut in others]):
        return False
    if checkpoint.checkpoint == nearest.checkpoint:
        return True
    before = checkpoints.committed_seq.get(checkpoint.checkpoint, NEVER) < nearest.seq < left_seq
    return before and checkpoint.step < nearest.step


def is_doubted(tree: BranchState, checkpoint: CheckpointCommitted, alert: Alert) -> bool:
    """Return whether the alert makes the checkpoint suspect: it lies in the alert's history, at its onset or later."""
    if alert.kind not in MAKES_SUSPECT or alert.branch not in tree.branches or checkpoint.training != alert.training:
        return False
    until = NEVER
    for branch in to_the_root(tree.branches, alert.branch):
        if branch.name == checkpoint.branch:
            return alert.onset_step <= checkpoint.step <= until
        until = min(until, branch.step)
    return False


def distrust(tree: BranchState, checkpoints: CheckpointState, alert: Alert) -> None:
    """Make the checkpoints suspect that the alert speaks of. Only `state.evolve` calls it."""
    for place, each in enumerate(checkpoints.existing):
        if is_doubted(tree, each, alert):
            known = each.health_reasons if each.health == "suspect" else ()
            reasons = tuple(dict.fromkeys((*known, alert.kind)))
            checkpoints.existing[place] = each.model_copy(update={"health": "suspect", "health_reasons": reasons})


def free_name(taken: Sequence[str] | Mapping[str, object]) -> str:
    """Return the first of `branch-2`, `branch-3`, ... that is not taken."""
    return next(name for number in range(2, len(taken) + 3) if (name := f"branch-{number}") not in taken)

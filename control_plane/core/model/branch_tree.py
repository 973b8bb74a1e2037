"""Branches: a run as a tree, and what of it belongs to the history of one branch.

    main ----10----20----30          rolled back to the checkpoint of step 20: what main did after it
                    \\                is main's own, and no part of branch-2's history
                     branch-2 ----30

A branch stands on a checkpoint of its parent. The history of a branch is its own, and what its parent had decided when
that checkpoint was saved, and so on to the root. What the parent does later, even at earlier steps, after a loss or
when somebody goes on with it, is its own. A branch that was adopted from another run has no parent here: its history
begins with its checkpoint.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from control_plane.core.model.records import MAIN, CheckpointCommitted, Parent

NEVER = 2**63
"""Later than every record."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A line of training. `checkpoint` at `step` is where it left its `parent`; the first one has neither.

    One that was adopted from another run has its `origin` there.
    """

    name: str = MAIN
    parent: str | None = None
    checkpoint: str | None = None
    step: int = 0
    training: int = 1
    began_seq: int = 0
    rollback: UUID | None = None
    origin: Parent | None = None


class Tree(Protocol):
    """What a run knows of its branches: a `RunState` is one."""

    @property
    def branches(self) -> Mapping[str, Branch]:
        """Every branch, by its name."""
        ...

    @property
    def checkpoints(self) -> Sequence[CheckpointCommitted]:
        """Those that there are."""
        ...

    @property
    def committed_seq(self) -> Mapping[str, int]:
        """The record of each checkpoint."""
        ...

    @property
    def abandoned(self) -> Mapping[str, int]:
        """Checkpoints beyond a later start of their own branch, each with the record of that start."""
        ...

    @property
    def begun(self) -> Mapping[tuple[str, int], Sequence[tuple[int, int]]]:
        """Of each branch and training the starts of its trainers: the record, and the step at which they began."""
        ...


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a branch left another: what that one did later, or decided later at that step, is not of its history.

    `trained_from` is the earliest step from which the branch has trained, as its checkpoint need not have verified.
    """

    checkpoint: str
    step: int
    seq: int
    decided_here: tuple[UUID, ...]
    trained_from: int

    def keeps(self, step: int, settled_seq: int, command: UUID) -> bool:
        """Whether what was decided at that step and recorded there is on this side."""
        return settled_seq < self.seq and (step < self.step or (step == self.step and command in self.decided_here))


@dataclass(frozen=True, slots=True)
class Stretch:
    """A branch, as far as it belongs to the history of another: up to all of these cuts, the nearest first."""

    branch: str
    cuts: tuple[Cut, ...]


def to_the_root(branches: Mapping[str, Branch], name: str) -> Iterator[Branch]:
    """The branch and those that it stands on, itself first."""
    branch: Branch | None = branches[name]
    while branch is not None:
        yield branch
        branch = branches[branch.parent] if branch.parent is not None else None


def lineage(tree: Tree, head: str, training: int = 1) -> Iterator[Stretch]:
    """The branch itself, then what it stands on, to the root: as far as it is the history of this training."""
    cuts: tuple[Cut, ...] = ()
    for branch in to_the_root(tree.branches, head):
        yield Stretch(branch.name, cuts)
        cuts = (_cut(tree, branch, cuts[0].seq if cuts else NEVER, training), *cuts)


def _cut(tree: Tree, branch: Branch, until_seq: int, training: int) -> Cut:
    name = branch.checkpoint or ""
    decided_here = next((each.decided_here for each in tree.checkpoints if each.checkpoint == name), ())
    starts = (step for seq, step in tree.begun.get((branch.name, training), ()) if seq < until_seq)
    seq = tree.committed_seq.get(name, branch.began_seq)
    # Trainings come one after the other: those before the checkpoint's were whole then, and those after it unknown.
    step = branch.step if training == branch.training else NEVER if training < branch.training else -1
    return Cut(name, step, seq, decided_here, trained_from=min(starts, default=step))


def belongs(line: Sequence[Stretch], branch: str, step: int, settled_seq: int, command: UUID) -> bool:
    """Whether a command that was decided on a branch at a step is part of the history that this line is."""
    for stretch in line:
        if stretch.branch == branch:
            return all(cut.keeps(step, settled_seq, command) for cut in stretch.cuts)
    return False


def candidates(tree: Tree, head: str, training: int | None = None) -> list[CheckpointCommitted]:
    """The checkpoints from which `head` can go on, the best one first: its own, then those that it stands on.

    Those of this training of the script; without one, those of every training, the last one's first.
    """
    wanted = sorted({each.training for each in tree.checkpoints})[::-1] if training is None else [training]
    found: list[CheckpointCommitted] = []
    for one in wanted:
        of_it = [each for each in tree.checkpoints if each.training == one]
        for stretch in lineage(tree, head, one):
            own = [each for each in of_it if each.branch == stretch.branch and _leads_on(tree, stretch, each)]
            found += sorted(own, key=lambda each: each.step)[::-1]
    return found


def _leads_on(tree: Tree, stretch: Stretch, checkpoint: CheckpointCommitted) -> bool:
    """Whether all that came after it in this history came at its step or later, and nothing else is in it."""
    left_seq = tree.abandoned.get(checkpoint.checkpoint, NEVER)
    if not stretch.cuts:
        return left_seq == NEVER
    nearest, *others = stretch.cuts
    if checkpoint.step > min([cut.trained_from for cut in stretch.cuts] + [cut.step for cut in others]):
        return False
    if checkpoint.checkpoint == nearest.checkpoint:
        return True
    before = tree.committed_seq.get(checkpoint.checkpoint, NEVER) < nearest.seq < left_seq
    return before and checkpoint.step < nearest.step


def free_name(taken: Sequence[str] | Mapping[str, object]) -> str:
    """`branch-2`, `branch-3`, ...: the first that is not taken."""
    return next(name for number in range(2, len(taken) + 3) if (name := f"branch-{number}") not in taken)

"""Branches: a run as a tree, and what of it belongs to the history of one branch.

    main ----10----20----30          rolled back to the checkpoint of step 20: what main did after it
                    \\                is main's own, and no part of branch-2's history
                     branch-2 ----30

A branch stands on a checkpoint of its parent. The history of a branch is its own, and what its parent had decided when
that checkpoint was saved, and so on to the root.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from control_plane.core.records import MAIN, CheckpointCommitted


@dataclass(frozen=True, slots=True)
class Branch:
    """A line of training. `checkpoint` at `step` is where it left its `parent`; the first one has neither."""

    name: str = MAIN
    parent: str | None = None
    checkpoint: str | None = None
    step: int = 0
    began_seq: int = 0
    rollback: UUID | None = None


def to_the_root(branches: Mapping[str, Branch], name: str) -> Iterator[Branch]:
    """The branch and those that it stands on, itself first."""
    branch: Branch | None = branches[name]
    while branch is not None:
        yield branch
        branch = branches[branch.parent] if branch.parent is not None else None


def belongs(
    branches: Mapping[str, Branch],
    checkpoints: Sequence[CheckpointCommitted],
    head: str,
    where: tuple[str, int],
    command: UUID,
) -> bool:
    """Whether a command that was decided on a branch at a step (`where`) is part of the history of `head`."""
    branch, step = where
    for child in to_the_root(branches, head):
        if child.name == branch:
            return True
        if child.parent == branch:
            contained = (each.decided_here for each in checkpoints if each.checkpoint == child.checkpoint)
            return step < child.step or (step == child.step and command in next(contained, ()))
    return False


def candidates(
    branches: Mapping[str, Branch], checkpoints: Sequence[CheckpointCommitted], head: str
) -> list[CheckpointCommitted]:
    """The checkpoints from which `head` can go on, the best one first: its own, then those that it stands on."""
    found: list[CheckpointCommitted] = []
    child: Branch | None = None
    for branch in to_the_root(branches, head):
        own = [each for each in checkpoints if each.branch == branch.name]
        if child is not None:
            base, before = child.checkpoint, child.step
            own = [each for each in own if each.checkpoint == base or each.step < before]
        found += sorted(own, key=lambda each: each.step)[::-1]
        child = branch
    return found


def free_name(taken: Sequence[str] | Mapping[str, object]) -> str:
    """`branch-2`, `branch-3`, ...: the first that is not taken."""
    return next(name for number in range(2, len(taken) + 3) if (name := f"branch-{number}") not in taken)

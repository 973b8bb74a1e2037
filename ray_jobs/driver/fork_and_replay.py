"""Fork and replay of runs: a fork starts a new run from a checkpoint, a replay repeats all steps and commands of a run.

    python -m ray_jobs.driver.fork_and_replay fork RUN CHECKPOINT [key=value ...] [--first '[INTENT, ...]' ...] [--json]
    python -m ray_jobs.driver.fork_and_replay replay RUN [--until STEP] [--json]

Both need only the folder of the old run, which may be active meanwhile, and do not change it. The new run has its own
folder: its config, a file that records its origin, and, for a fork, its own copy of the checkpoint.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from uuid import UUID, uuid4

from pydantic import TypeAdapter, ValidationError

from control_plane.config import Settings, settings
from control_plane.core.model.characters import one_line
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Invalid, NotFound, SteerwayError
from control_plane.core.model.intents import First, Rollback
from control_plane.core.model.records import CheckpointCommitted, Parent
from control_plane.core.model.state import RunState, fold
from control_plane.core.model.values import MAX_NAMES_TOLD
from control_plane.core.rules.branch_rules import AdoptedCheckpoint, Origin, first_commands
from control_plane.core.rules.effect.plan import plan
from control_plane.core.rules.replay_plan import recorded
from control_plane.storage.checkpoint.store import read_manifest
from control_plane.storage.checkpoint.transfer import transfer_checkpoint, transfer_shards, write_origin
from control_plane.storage.code.unpacked import inherit_code
from control_plane.storage.data.inheriting import inherit_indexes
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles, find_run
from control_plane.storage.private import write_file
from ray_jobs.config.environment import keep_secrets, read_secrets
from ray_jobs.config.own_config import own_config, trust
from ray_jobs.config.run_config import RunConfig, with_overrides
from ray_jobs.submit import author, check, new_run_id, prepare, submit

Fill = Callable[[RunFiles], None]
"""Writes what a new run has beside its config: its origin, with copies of checkpoints."""

FIRST: TypeAdapter[tuple[First, ...]] = TypeAdapter(tuple[First, ...])


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code. Errors are printed to stderr."""
    parser = argparse.ArgumentParser(
        prog="ray_jobs.driver.fork_and_replay", description="Start a run from another one."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    forking = verbs.add_parser("fork")
    forking.add_argument("run")
    forking.add_argument("checkpoint")
    forking.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    forking.add_argument(
        "--first", action="append", help="first commands of a fork, as a JSON list of intents; one fork per option"
    )
    replaying = verbs.add_parser("replay")
    replaying.add_argument("run")
    replaying.add_argument("--until", type=int)
    for verb in (forking, replaying):
        verb.add_argument("--trust", action="store_true", help="trust a run that this installation did not make")
        verb.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    try:
        where = settings()
        if given.verb == "replay":
            begun = [replay(where, given.run, given.until, given.trust)]
        else:
            firsts = [_first(text) for text in given.first or ["[]"]]
            begun = fork(where, given.run, given.checkpoint, given.overrides, firsts, given.trust)
    except SteerwayError as error:
        print(one_line(f"steer: {error.reason}"), file=sys.stderr)
        return error.exit_code
    result = {"runs": [files.run for files in begun], "parent": given.run}
    print(json.dumps(result) if given.json else "\n".join(f"submitted run {run}" for run in result["runs"]))
    return 0


def _first(text: str) -> tuple[First, ...]:
    try:
        return FIRST.validate_json(text)
    except ValidationError as error:
        raise Invalid(f"--first {text[:80]!r} is not a list of intents: {error.errors()[0]['msg']}") from None


def fork(
    where: Settings,
    run: str,
    checkpoint: str,
    overrides: Sequence[str],
    firsts: Sequence[tuple[First, ...]],
    given_trust: bool = False,
) -> list[RunFiles]:
    """Start one run for each of `firsts`, from a checkpoint of `run`, with its config and `overrides`.

    Raises: `NotFound` for an unknown run or checkpoint, `Damaged` if the checkpoint does not verify, `Invalid` for
    invalid overrides, `Unavailable` if no Ray cluster takes the job, `Refused` for a run that this installation did
    not make, without `given_trust`.
    """
    parent, state, config = read_run(where, run, given_trust)
    committed = recorded_checkpoint(state, checkpoint)
    config = with_overrides(config, overrides)
    check(config)
    begun = []
    for first in firsts:
        command = Command(uuid=uuid4(), author=author(), intent=Rollback(checkpoint=checkpoint, first=first))
        begun.append(_begin(config, where, parent, forked_from(parent, committed, command, config, state)))
    return begun


def forked_from(
    parent: RunFiles, committed: CheckpointCommitted, begun: Command, config: RunConfig, state: RunState
) -> Fill:
    """Return what gives a new run its own copy of a checkpoint, and the commands of the rollback `begun`.

    `config` and `state` of the parent tell its sources.
    """
    sources = config.sources | state.data.added

    def fill(files: RunFiles) -> None:
        parentage = Parent(
            kind="fork",
            run=parent.run,
            branch=committed.branch,
            checkpoint=committed.checkpoint,
            step=committed.step,
        )
        scheduled = tuple(first_commands(begun, committed.step))
        inherited = transfer_checkpoint(parent, committed, files)
        write_origin(files, Origin(parent=parentage, checkpoint=inherited, scheduled=scheduled))
        if sources:
            manifest = read_manifest(files.root / inherited.path, None)
            inherit_indexes(parent, files, sources, manifest.settled)

    return fill


def replay(where: Settings, run: str, until_step: int | None = None, given_trust: bool = False) -> RunFiles:
    """Start a run that repeats the steps and commands of `run`, up to its current step or `until_step`.

    Raises: `NotFound` for an unknown run, `Conflict` if there is nothing to replay, or if the run was a fork and its
    first checkpoint is missing; `Invalid` for a step that it never reached; `Refused` for a run that this installation
    did not make, without `given_trust`.
    """
    source, state, config = read_run(where, run, given_trust)
    return _begin(replayed_config(config), where, source, replay_of(source, state, until_step))


def replayed_config(config: RunConfig) -> RunConfig:
    """Return the config of a replay: the only checkpoints that matter in it are those that the run rolled back to, and
    these are scheduled."""
    return config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every_steps": 0})})


def replay_of(
    source: RunFiles,
    state: RunState,
    until_step: int | None,
    without: UUID | None = None,
    placebo: float | None = None,
) -> Fill:
    """Return what gives a new run the commands and checkpoints of `source` to repeat.

    Args:
        without: a command to leave out, see `core.rules.effect.plan`.
        placebo: relative change of the learning rate in its place.

    Raises: `Conflict` if there is nothing to replay, or no effect of `without` to measure; `NotFound` for an unknown
    command; `Invalid` for a step that the run never reached.
    """
    reached = max(state.tree.reached.values(), default=0)
    if until_step is not None and not 0 < until_step <= reached:
        raise Invalid(
            f"run {source.run} cannot be replayed until step {until_step}: it has made the steps 1 to {reached}"
        )
    entries = writer.read(source.journal)
    left_out = plan(entries, without, placebo, until_step) if without is not None else None
    scheduled = left_out.scheduled if left_out is not None else recorded(entries, until_step)
    at = until_step or state.tree.reached.get(state.tree.head, 0)
    base = state.parent.checkpoint if state.parent is not None and state.parent.kind == "fork" else None
    committed = recorded_checkpoint(state, base) if base is not None else None

    def fill(files: RunFiles) -> None:
        parentage = Parent(
            kind="replay",
            run=source.run,
            branch=state.tree.head,
            step=at,
            without=left_out.without if left_out is not None else None,
        )
        transfer_shards(source, files)
        inherited = transfer_checkpoint(source, committed, files) if committed is not None else None
        adopted = adopted_by(state, source, files)
        write_origin(files, Origin(parent=parentage, checkpoint=inherited, scheduled=scheduled, adopted=adopted))

    return fill


def adopted_by(state: RunState, source: RunFiles, files: RunFiles) -> tuple[AdoptedCheckpoint, ...]:
    """Copy the checkpoints that `source` has adopted from other runs to `files`. Raises like `transfer_checkpoint`."""
    origins = {branch.name: branch.origin for branch in state.tree.branches.values() if branch.origin is not None}
    return tuple(
        AdoptedCheckpoint(
            origin=origins[saved.branch], checkpoint=transfer_checkpoint(source, saved, files, saved.branch)
        )
        for saved in state.checkpoints.existing
        if saved.generation == 0 and saved.branch in origins
    )


def recorded_checkpoint(state: RunState, checkpoint: str) -> CheckpointCommitted:
    """Return the record of a run's checkpoint. Raises `NotFound`."""
    committed = next((saved for saved in state.checkpoints.existing if saved.checkpoint == checkpoint), None)
    if committed is None:
        listed = ", ".join(saved.checkpoint for saved in state.checkpoints.existing[-MAX_NAMES_TOLD:]) or "none"
        raise NotFound(f"run {state.run} has no checkpoint {checkpoint!r}; the newest are {listed}")
    return committed


def read_run(where: Settings, run: str, given_trust: bool) -> tuple[RunFiles, RunState, RunConfig]:
    """Return a run's files, state and config. Raises `NotFound`, `Damaged`, or `Refused` without `given_trust`."""
    files = find_run(where.runs_dir, run)
    state = fold(writer.read(files.journal))
    if given_trust:
        trust(files)
    return files, state, own_config(files)


def _begin(config: RunConfig, where: Settings, parent: RunFiles, fill: Fill) -> RunFiles:
    """Make the folder of a run, with the secrets of its parent, and submit it; remove it if that cannot be done."""
    files = prepare(config, where.runs_dir, new_run_id(config.name))
    try:
        if config.bundle is not None:
            inherit_code(parent, config.bundle, files)
        if parent.secrets.exists():
            write_file(files.secrets, json.dumps(read_secrets(parent)))
        keep_secrets(files, config, os.environ)
        fill(files)
        submit(files, where)
    except SteerwayError:
        shutil.rmtree(files.root, ignore_errors=True)
        raise
    return files


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

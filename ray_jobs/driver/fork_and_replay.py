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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from control_plane.config import Settings, settings
from control_plane.core.model.characters import one_line
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Invalid, NotFound, SteerwayError
from control_plane.core.model.intents import First, Rollback
from control_plane.core.model.records import CheckpointCommitted, Parent
from control_plane.core.model.state import RunState, fold
from control_plane.core.model.values import MAX_NAMES_TOLD
from control_plane.core.rules.branch_rules import AdoptedCheckpoint, Origin, ScheduledCommand, first_commands
from control_plane.core.rules.replay_plan import recorded
from control_plane.storage.checkpoint.transfer import transfer_checkpoint, write_origin
from control_plane.storage.code.unpacked import inherit_code
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles, find_run
from control_plane.storage.private import write_file
from ray_jobs.config.environment import keep_secrets, read_secrets
from ray_jobs.config.own_config import own_config, trust
from ray_jobs.config.run_config import RunConfig, with_overrides
from ray_jobs.submit import author, check, new_run_id, prepare, submit

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
    parent, state, config = _read(where, run, given_trust)
    committed = _recorded(state, checkpoint)
    config = with_overrides(config, overrides)
    check(config)
    parentage = Parent(kind="fork", run=run, branch=committed.branch, checkpoint=checkpoint, step=committed.step)
    begun = []
    for first in firsts:
        with _new_run(config, where, parent) as files:
            scheduled = _scheduled(first, checkpoint, committed.step)
            origin = Origin(
                parent=parentage, checkpoint=transfer_checkpoint(parent, committed, files), scheduled=scheduled
            )
            _submit(files, where, origin)
        begun.append(files)
    return begun


def replay(where: Settings, run: str, until_step: int | None = None, given_trust: bool = False) -> RunFiles:
    """Start a run that repeats the steps and commands of `run`, up to its current step or `until_step`.

    Raises: `NotFound` for an unknown run, `Conflict` if there is nothing to replay, or if the run was a fork and its
    first checkpoint is missing; `Invalid` for a step that it never reached; `Refused` for a run that this installation
    did not make, without `given_trust`.
    """
    source, state, config = _read(where, run, given_trust)
    entries = writer.read(source.journal)
    reached = max(state.tree.reached.values(), default=0)
    if until_step is not None and not 0 < until_step <= reached:
        raise Invalid(f"run {run} cannot be replayed until step {until_step}: it has made the steps 1 to {reached}")
    scheduled = recorded(entries, until_step)
    # The only checkpoints that matter are those that the run rolled back to, and these are scheduled.
    config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every_steps": 0})})
    parentage = Parent(
        kind="replay", run=run, branch=state.tree.head, step=until_step or state.tree.reached.get(state.tree.head, 0)
    )
    with _new_run(config, where, source) as files:
        base = state.parent.checkpoint if state.parent is not None and state.parent.kind == "fork" else None
        inherited = transfer_checkpoint(source, _recorded(state, base), files) if base is not None else None
        adopted = adopted_by(state, source, files)
        origin = Origin(parent=parentage, checkpoint=inherited, scheduled=scheduled, adopted=adopted)
        _submit(files, where, origin)
    return files


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


def _recorded(state: RunState, checkpoint: str) -> CheckpointCommitted:
    committed = next((saved for saved in state.checkpoints.existing if saved.checkpoint == checkpoint), None)
    if committed is None:
        listed = ", ".join(saved.checkpoint for saved in state.checkpoints.existing[-MAX_NAMES_TOLD:]) or "none"
        raise NotFound(f"run {state.run} has no checkpoint {checkpoint!r}; the newest are {listed}")
    return committed


def _read(where: Settings, run: str, given_trust: bool) -> tuple[RunFiles, RunState, RunConfig]:
    files = find_run(where.runs_dir, run)
    state = fold(writer.read(files.journal))
    if given_trust:
        trust(files)
    return files, state, own_config(files)


def _scheduled(first: tuple[First, ...], checkpoint: str, step: int) -> tuple[ScheduledCommand, ...]:
    begun = Command(uuid=uuid4(), author=author(), intent=Rollback(checkpoint=checkpoint, first=first))
    return tuple(first_commands(begun, step))


@contextmanager
def _new_run(config: RunConfig, where: Settings, parent: RunFiles) -> Iterator[RunFiles]:
    """Make the folder of a run, with the secrets of its parent; remove it if the run cannot be submitted."""
    files = prepare(config, where.runs_dir, new_run_id(config.name))
    try:
        if config.bundle is not None:
            inherit_code(parent, config.bundle, files)
        if parent.secrets.exists():
            write_file(files.secrets, json.dumps(read_secrets(parent)))
        keep_secrets(files, config, os.environ)
        yield files
    except SteerwayError:
        shutil.rmtree(files.root, ignore_errors=True)
        raise


def _submit(files: RunFiles, where: Settings, origin: Origin) -> None:
    write_origin(files, origin)
    submit(files, where)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""New runs from old ones: a fork goes on from a checkpoint with something changed, a replay does all of it again.

    python -m ray_jobs.descend fork RUN CHECKPOINT [key=value ...] [--first '[INTENT, ...]' ...] [--json]
    python -m ray_jobs.descend replay RUN [--until STEP] [--json]

Both need the folder of the old run only, which may be at work meanwhile, and leave it as it is. The new run has a
folder of its own: its config, a file that says where it comes from, and, for a fork, the checkpoint, which is its own.
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
from control_plane.core.branching import Adopted, Origin, Scheduled, first_commands
from control_plane.core.characters import one_line
from control_plane.core.commands import Command
from control_plane.core.errors import Invalid, NotFound, SteerwayError
from control_plane.core.intents import MAX_NAMES_TOLD, First, Rollback
from control_plane.core.records import CheckpointCommitted, Parent
from control_plane.core.replaying import recorded
from control_plane.core.state import RunState, fold
from control_plane.storage import journal
from control_plane.storage.descent import inherit, write_origin
from control_plane.storage.layout import RunFiles, find_run
from control_plane.storage.private import write_file
from ray_jobs.config import RunConfig, changed
from ray_jobs.environment import keep_secrets, read_secrets
from ray_jobs.own_config import own_config, trust
from ray_jobs.submit import author, check, new_run_id, prepare, submit

FIRST: TypeAdapter[tuple[First, ...]] = TypeAdapter(tuple[First, ...])


def main(arguments: Sequence[str]) -> int:
    """The command line. Errors are a sentence on stderr and an exit code."""
    parser = argparse.ArgumentParser(prog="ray_jobs.descend", description="Begin a run from another one.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    forking = verbs.add_parser("fork")
    forking.add_argument("run")
    forking.add_argument("checkpoint")
    forking.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    forking.add_argument(
        "--first", action="append", help="what a fork begins with: a JSON list of intents; one fork each"
    )
    replaying = verbs.add_parser("replay")
    replaying.add_argument("run")
    replaying.add_argument("--until", type=int)
    for verb in (forking, replaying):
        verb.add_argument("--trust", action="store_true", help="take a run of elsewhere for your own")
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
    told = {"runs": [files.run for files in begun], "parent": given.run}
    print(json.dumps(told) if given.json else "\n".join(f"submitted run {run}" for run in told["runs"]))
    return 0


def _first(text: str) -> tuple[First, ...]:
    try:
        return FIRST.validate_json(text)
    except ValidationError as error:
        raise Invalid(f"a fork cannot begin with {text[:80]!r}: {error.errors()[0]['msg']}") from None


def fork(
    where: Settings,
    run: str,
    checkpoint: str,
    overrides: Sequence[str],
    firsts: Sequence[tuple[First, ...]],
    given_trust: bool = False,
) -> list[RunFiles]:
    """Start one run for each of `firsts`, from a checkpoint of `run`, with its config and these changes to it.

    Raises: `NotFound` for an unknown run or checkpoint, `Damaged` if the checkpoint does not verify, `Invalid` for a
    change that the config cannot take, `Unavailable` if no Ray cluster takes the job, `Refused` for a run of elsewhere
    without `given_trust`.
    """
    parent, state, config = _read(where, run, given_trust)
    found = _recorded(state, checkpoint)
    config = changed(config, overrides)
    check(config)
    parentage = Parent(kind="fork", run=run, branch=found.branch, checkpoint=checkpoint, step=found.step)
    begun = []
    for first in firsts:
        with _new_run(config, where, parent) as files:
            scheduled = _scheduled(first, checkpoint, found.step)
            origin = Origin(parent=parentage, checkpoint=inherit(parent, found, files), scheduled=scheduled)
            _submit(files, where, origin)
        begun.append(files)
    return begun


def replay(where: Settings, run: str, until_step: int | None = None, given_trust: bool = False) -> RunFiles:
    """Start a run that does again what `run` has done, up to where it is by now.

    Raises: `NotFound` for an unknown run, `Conflict` if there is nothing to do again, or if the run was a fork and its
    first checkpoint is not here; `Invalid` for a step that it never reached; `Refused` for a run of elsewhere without
    `given_trust`.
    """
    source, state, config = _read(where, run, given_trust)
    entries = journal.read(source.journal)
    reached = max(state.reached.values(), default=0)
    if until_step is not None and not 0 < until_step <= reached:
        raise Invalid(f"run {run} has been at the steps 1 to {reached}; it cannot be replayed until step {until_step}")
    scheduled = recorded(entries, until_step)
    # Only what the run went back to is saved again: other checkpoints change nothing.
    config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every_steps": 0})})
    parentage = Parent(kind="replay", run=run, branch=state.head, step=until_step or state.reached.get(state.head, 0))
    with _new_run(config, where, source) as files:
        base = state.parent.checkpoint if state.parent is not None and state.parent.kind == "fork" else None
        inherited = inherit(source, _recorded(state, base), files) if base is not None else None
        adopted = adopted_by(state, source, files)
        origin = Origin(parent=parentage, checkpoint=inherited, scheduled=scheduled, adopted=adopted)
        _submit(files, where, origin)
    return files


def adopted_by(state: RunState, source: RunFiles, files: RunFiles) -> tuple[Adopted, ...]:
    """What `source` was given after it had begun, given to `files` as well. Raises what `inherit` does."""
    origins = {each.name: each.origin for each in state.branches.values() if each.origin is not None}
    return tuple(
        Adopted(origin=origins[each.branch], checkpoint=inherit(source, each, files, each.branch))
        for each in state.checkpoints
        if each.generation == 0 and each.branch in origins
    )


def _recorded(state: RunState, checkpoint: str) -> CheckpointCommitted:
    found = next((each for each in state.checkpoints if each.checkpoint == checkpoint), None)
    if found is None:
        listed = ", ".join(each.checkpoint for each in state.checkpoints[-MAX_NAMES_TOLD:]) or "none"
        raise NotFound(f"run {state.run} has no checkpoint {checkpoint!r}; the newest are {listed}")
    return found


def _read(where: Settings, run: str, given_trust: bool) -> tuple[RunFiles, RunState, RunConfig]:
    files = find_run(where.runs_dir, run)
    state = fold(journal.read(files.journal))
    if given_trust:
        trust(files)
    return files, state, own_config(files)


def _scheduled(first: tuple[First, ...], checkpoint: str, step: int) -> tuple[Scheduled, ...]:
    begun = Command(uuid=uuid4(), author=author(), intent=Rollback(checkpoint=checkpoint, first=first))
    return tuple(first_commands(begun, step))


@contextmanager
def _new_run(config: RunConfig, where: Settings, parent: RunFiles) -> Iterator[RunFiles]:
    """A run with the secrets of its parent. One that was never taken is not a run."""
    files = prepare(config, where.runs_dir, new_run_id(config.name))
    try:
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

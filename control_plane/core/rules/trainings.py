"""Identification of a script's trainings: by the order of its `train()` calls, checked by a fingerprint.

    training, note = which_training(state, call, fingerprint)      the `call`-th `train()` of a restarted script

A script with several trainings (k-fold, a second stage) starts all of them again after a failure, in the same order;
each resumes from its own checkpoints. A script that skips finished trainings is identified by its model and data.
"""

from control_plane.core.model.errors import Refused
from control_plane.core.model.state import RunState


def which_training(state: RunState, call: int, fingerprint: str) -> tuple[int, str]:
    """Return the number of the training and a note for the log. Without a `fingerprint` the order decides.

    Raises `Refused` if order and fingerprint contradict each other: the training could only be guessed.
    """
    known = state.trainings
    if not fingerprint or not known.get(call) or known[call] == fingerprint:
        return call, ""
    later = next((each for each in sorted(known) if each > call and known[each] == fingerprint), None)
    if later is not None:
        return later, f"identified as training {later} of the script by its model and data; earlier ones were skipped"
    if all(_has_finished(state, each) for each in known if each >= call):
        new = max(known) + 1
        return new, f"model and data match none of the {len(known)} trainings of this run: this is training {new}"
    if len(known) == 1:
        return call, "the data has changed since this training began; it continues, with other samples"
    raise Refused(
        f"call {call} of train() in this script has another model or other data than training {call} of this run, and "
        f"matches none of its {len(known)} trainings, so it is unknown which one to resume. Let the script start its "
        "trainings in the same order, with the same data, at every start; or submit it as a new run"
    )


def _has_finished(state: RunState, training: int) -> bool:
    """Return whether the training finished on the current branch, or on its parent before the fork point."""
    return (state.tree.head, training) in state.finished_trainings or training < state.tree.branches[
        state.tree.head
    ].training

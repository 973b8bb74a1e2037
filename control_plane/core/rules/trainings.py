"""Which training of a script a start is: by the order of its calls of `train()`, checked by what each is known by.

    training, note = which_training(state, call, fingerprint)      the `call`-th `train()` of a script that began anew

A script with several trainings (k-fold, a second stage) begins all of them again after a loss, in the same order: each
goes on from its own checkpoints. One that leaves out what it has done before is known by its model and its data.
"""

from control_plane.core.model.errors import Refused
from control_plane.core.model.state import RunState


def which_training(state: RunState, call: int, fingerprint: str) -> tuple[int, str]:
    """The number of the training, and what is to be told of it. `fingerprint` may be empty: then the order decides.

    Raises `Refused` if the order says one thing, and model and data another: it could only be guessed.
    """
    known = state.trainings
    if not fingerprint or not known.get(call) or known[call] == fingerprint:
        return call, ""
    later = next((each for each in sorted(known) if each > call and known[each] == fingerprint), None)
    if later is not None:
        return later, f"this is training {later} of the script, by its model and data: it left out those before"
    if all(_has_finished(state, each) for each in known if each >= call):
        new = max(known) + 1
        return new, f"model and data are of none of the {len(known)} trainings of this run: this is training {new}"
    if len(known) == 1:
        return call, "the data is not what it was when this training began: it goes on, with other samples"
    raise Refused(
        f"call {call} of train() in this script has another model or other data than training {call} of this run, and "
        f"none of its {len(known)} trainings has these: it is not known which one to go on with. Let the script begin "
        "its trainings in the same order, with the same data, at every start; or submit it as a new run"
    )


def _has_finished(state: RunState, training: int) -> bool:
    """On the branch that is trained, or before that branch left its parent."""
    return (state.head, training) in state.finished_trainings or training < state.branches[state.head].training

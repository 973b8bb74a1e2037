"""State of a script's own callbacks, by Transformers' `ExportableState`, saved in checkpoints and restored.

    kept = captured(trainer, False)    this rank's: each callback's state, and whether one has ended the training
    put_back(trainer, kept)            before `on_train_begin`

Transformers makes new callbacks of what was saved, and only if it is told to; here the script's own ones go on, so
that early stopping keeps its patience over a restart. Callbacks without such a state begin anew, as they do by hand.
"""

import copy
import logging
from collections import defaultdict
from typing import Any

from transformers import Trainer, TrainerControl
from transformers.trainer_callback import ExportableState

log = logging.getLogger(__name__)

Kept = dict[str, Any]


def captured(trainer: Trainer, was_told_to_stop: bool) -> Kept:
    """Return the callbacks' states and whether the script has ended the training; may be empty.

    `was_told_to_stop`: whether a command, not the script, ends the training: commands are replayed by themselves.
    """
    kept: dict[str, list[Any]] = defaultdict(list)
    for name, callback in _stateful(trainer):
        try:
            kept[name].append(copy.deepcopy(callback.state()))
        except Exception as error:
            log.warning("the state of callback %s is not saved: %s: %s", name, type(error).__name__, error)
            kept[name].append(None)
    state, stops = trainer.state, bool(trainer.control.should_training_stop)
    # At the planned last step everything stops; that needs no word, and a run may still be given more steps.
    ended = stops and state.global_step < state.max_steps and not was_told_to_stop
    return ({"states": dict(kept)} if kept else {}) | ({"ended": True} if ended else {})


def put_back(trainer: Trainer, kept: Kept) -> None:
    """Restore each callback from the state of the same class and position; one that fails starts anew."""
    left = {name: list(states) for name, states in kept.get("states", {}).items()}
    for name, callback in _stateful(trainer):
        state = left[name].pop(0) if left.get(name) else None
        if state is None:
            continue
        try:
            vars(callback).update(vars(type(callback).from_state(state)))
        except Exception as error:
            log.warning("callback %s begins anew: it did not take its state: %s: %s", name, type(error).__name__, error)


def _stateful(trainer: Trainer) -> list[tuple[str, Any]]:
    return [
        (type(callback).__name__, callback)
        for callback in trainer.callback_handler.callbacks
        if isinstance(callback, ExportableState) and not isinstance(callback, TrainerControl)
    ]

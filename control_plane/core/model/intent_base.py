"""Base classes of messages and intents: the facts that every intent kind states about itself."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

LEARNING_RATE = "lr"
ACTION = "action/"
"""Prefix of the limit of a script's action."""


class Message(BaseModel):
    """Base of every immutable message between processes (frozen pydantic model): unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class BaseIntent(Message):
    """Base of every intent kind. A kind overrides the facts that hold for it; rules ask these, not for its class.

    changes_training: repeated after a failure at the step where it took effect, since the training depends on it.
    changes_course: the run's course depends on it, so that a command based on an earlier view is stale.
    needs_ranks: voted on and applied by the ranks; otherwise by the control server, in closed runs, too.
    is_queued: waits for a step boundary; subject to admission control, groups and limits.
    is_replayed: repeated by a replay of the run.
    sets_knobs: the readback after it holds the run's knobs.
    allowed_for_agents: the role `agent` may send it. An agent may tune and look: what it changes is a number within
        the run's limits, and can be set back. Not allowed: to hold or end a run or take it to another branch; what no
        command takes back; pins, which people rely on; and other people's commands.
    agents_need_grant: an agent needs a limit that names it, see `core.model.limits`: its effect is unknown here.
    """

    changes_training: ClassVar[bool] = False
    changes_course: ClassVar[bool] = False
    needs_ranks: ClassVar[bool] = True
    is_queued: ClassVar[bool] = True
    is_replayed: ClassVar[bool] = False
    sets_knobs: ClassVar[bool] = False
    allowed_for_agents: ClassVar[bool] = False
    agents_need_grant: ClassVar[bool] = False

    kind: str

    def describe(self) -> str:
        """Return a short description: `lr = 0.0001`, `lr x 0.5 (group 1, hold)`, `weight_decay = 0.1, betas = ...`."""
        return self.kind.replace("_", " ")

    def knobs(self) -> tuple[str, ...]:
        """Return the knobs that it names; an action counts as one."""
        return ()

    def changed_knobs(self, after: Mapping[str, Any] | None) -> tuple[str, ...]:
        """Return the knobs that it has changed, once applied with the readback `after`."""
        return self.knobs()

    def groups(self) -> tuple[int | str | None, ...]:
        """Return the parameter groups that it names."""
        return ()

    def requested(self, knob: str) -> Iterable[tuple[Any, float | None]]:
        """Return the (value, factor) pairs that it requests for a knob; one of the two is None."""
        return ()

    def parts(self) -> "tuple[BaseIntent, ...]":
        """Return itself and the intents that it contains."""
        return (self,)


class TrainingIntent(BaseIntent):
    """Base of intents that change the training."""

    changes_training: ClassVar[bool] = True
    changes_course: ClassVar[bool] = True
    is_replayed: ClassVar[bool] = True


class ServerIntent(BaseIntent):
    """Base of intents that the control server applies itself."""

    needs_ranks: ClassVar[bool] = False
    is_queued: ClassVar[bool] = False

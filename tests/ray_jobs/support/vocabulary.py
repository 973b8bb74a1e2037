"""The whole steering vocabulary as rows, and the kinds of training as columns: what the matrix of both proves.

A *trial* is a steered training with commands, and a stock one in which the same was done by hand (`matrix_trials.Hand`)
and which knows nothing of Steerway. A *row* is one command of a trial. Nothing here imports a framework.
"""

from dataclasses import dataclass, field
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

STEPS, AT, LATER = 6, 2, 4
"""Steps of a training, the boundary at which a command takes effect, and the boundary for what follows it."""

LONGER = 8
RATE, FACTOR = 1e-3, 0.5
WARMUP, PEAK, END, OVER = 1, 1.5, 0.25, 3
MOMENTUM, ATTENTION_DROPOUT, NORM_EPS = 0.5, 0.4, 0.1
LOSS_WEIGHT, LOSS_FACTOR = 0.25, 3.0
DECAY_FACTOR = 4.0
LOGGING_STEPS, EVAL_STEPS, CHECKPOINT_STEPS = 2, 3, 5
MODULE, SEED = "transformer.h.0.mlp.", 11
LABEL, NOTE = "kept", "before the change"
STOP_AT = 4


@dataclass(frozen=True, slots=True)
class Arm:
    """One kind of training. `stage` is DeepSpeed's ZeRO stage, None without DeepSpeed."""

    stage: int | None
    optimizer: str
    scheduler: str

    @property
    def is_adam(self) -> bool:
        return self.optimizer != "sgd"

    @property
    def groups(self) -> int:
        """Transformers makes two parameter groups, and DeepSpeed one."""
        return 2 if self.optimizer == "hf" else 1


PAIRS = (("hf", "hf"), ("deepspeed", "hf"), ("deepspeed", "deepspeed"))
SHORT = {"hf": "hf", "deepspeed": "ds", "sgd": "sgd"}
ARMS: dict[str, Arm] = {"plain": Arm(None, "hf", "hf")}
ARMS |= {
    f"{stage} {SHORT[optimizer]}/{SHORT[scheduler]}": Arm(stage, optimizer, scheduler)
    for stage in range(4)
    for optimizer, scheduler in PAIRS
}
ARMS |= {f"{stage} sgd/hf": Arm(stage, "sgd", "hf") for stage in (1, 3)}

Reading = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One command: when, what, and what it must read back (for a number of parameter groups)."""

    name: str
    intent: dict[str, Any]
    at: int = AT
    # Sent only when the run is known to be paused.
    while_paused: bool = False
    reads: Reading = field(default_factory=dict)
    per_group: Reading = field(default_factory=dict)

    @property
    def uuid(self) -> UUID:
        return uuid5(NAMESPACE_URL, self.name)

    def command(self) -> dict[str, Any]:
        sent = {"uuid": str(self.uuid), "author": "test", "intent": self.intent}
        # A paused run would never reach the step of a resume.
        return sent if self.intent["kind"] == "resume" else sent | {"not_before_step": self.at}

    def expected(self, arm: Arm) -> Reading:
        return self.reads | {name: values[: arm.groups] for name, values in self.per_group.items()}


@dataclass(frozen=True, slots=True)
class Trial:
    """One steered training and its stock reference, where each pair of `by_hand` is a step and what is done after it.

    `differs_from` is the first step whose weights are not those of an undisturbed training; None: there is none.
    """

    name: str
    rows: tuple[Row, ...]
    by_hand: tuple[tuple[int, str], ...] = ()
    differs_from: int | None = AT + 1
    steps: int = STEPS
    # Which step the weights tell that the second command of two was in force: they leave the first one's here.
    parts_from: tuple[str, int] | None = None


def one(name: str, intent: dict[str, Any], hand: str, differs_from: int = AT + 1, **more: Any) -> Trial:
    """A trial of a single command."""
    return Trial(name, (Row(name, intent, **more),), ((AT, hand),), differs_from)


def knob(shown: str, hand: str, name: str, reads: Reading | None = None, per_group: Any = None, **change: Any) -> Trial:
    """A trial of one knob. What it reads is the value, unless it is given."""
    intent = {"kind": "set_knobs", "changes": [{"knob": name, **change}]}
    grouped = {name: per_group} if per_group is not None else {}
    if reads is None and not grouped:
        reads = {name: change["value"]}
    return one(f"set_knobs {shown}", intent, hand, reads=reads or {}, per_group=grouped)


def rate(shown: str, hand: str, **intent: Any) -> Trial:
    return one(f"set_learning_rate {shown}", {"kind": "set_learning_rate", **intent}, hand)


def schedule(shown: str, hand: str, **intent: Any) -> Trial:
    row = {"kind": "set_schedule", **intent}
    # A course begins at the live value, so that the next step is as it would have been.
    return one(f"set_schedule {shown}", row, hand, AT + 2, per_group={"schedule": ["course", "course"]})


FREEZE = {"kind": "freeze", "parameters": f"{MODULE}*"}
QUIET = (
    Row(
        "set_knobs logging_steps",
        {"kind": "set_knobs", "changes": [{"knob": "logging_steps", "value": LOGGING_STEPS}]},
        reads={"logging_steps": LOGGING_STEPS},
    ),
    Row(
        "set_knobs checkpoint_steps",
        {"kind": "set_knobs", "changes": [{"knob": "checkpoint_steps", "value": CHECKPOINT_STEPS}]},
        reads={"checkpoint_steps": CHECKPOINT_STEPS},
    ),
    Row("evaluate", {"kind": "evaluate"}, LATER),
)
SAVE = Row(
    "save_checkpoint label, note, pin",
    {"kind": "save_checkpoint", "label": LABEL, "note": NOTE, "pin": True},
    LATER,
)
PAUSE = Row("pause", {"kind": "pause"}, reads={"paused": True})
RESUME = Row("resume", {"kind": "resume"}, while_paused=True, reads={"paused": False})
TAKEN_BACK = Row(
    "taken back",
    {"kind": "set_knobs", "changes": [{"knob": "gradient_clipping", "value": 0.01}]},
    LATER,
    while_paused=True,
)
CANCEL = Row(
    "cancel",
    {"kind": "cancel", "command": str(TAKEN_BACK.uuid)},
    while_paused=True,
    reads={"cancelled": str(TAKEN_BACK.uuid)},
)

TRIALS: tuple[Trial, ...] = (
    rate("value", "rate_value", value=RATE),
    rate("factor", "rate_factor", factor=FACTOR),
    rate("value, one group", "rate_group", value=RATE, group=0),
    rate("value, hold", "rate_hold", value=RATE, schedule="hold"),
    schedule("constant", "course_constant", shape="constant"),
    schedule("linear", "course_linear", shape="linear", end=END, over_steps=OVER),
    schedule(
        "cosine with warm-up",
        "course_cosine",
        shape="cosine",
        end=END,
        over_steps=OVER,
        warmup_steps=WARMUP,
        peak=PEAK,
    ),
    knob("weight_decay", "weight_decay", "weight_decay", value=0.3, per_group=[0.3, 0.0]),
    knob("weight_decay factor, one group", "decay_factor", "weight_decay", factor=DECAY_FACTOR, group=0, reads={}),
    knob("betas", "betas", "betas", value=[0.8, 0.95], per_group=[[0.8, 0.95]] * 2),
    knob("eps", "eps", "eps", value=1e-6, per_group=[1e-6] * 2),
    knob("momentum", "momentum", "momentum", value=MOMENTUM, per_group=[MOMENTUM] * 2),
    knob("gradient_clipping", "gradient_clipping", "gradient_clipping", value=0.05),
    knob("dropout", "dropout", "dropout", value=0.3),
    knob(
        "PATTERN:p (dropouts of attentions)",
        "attention_dropout",
        "*.attn.*:p",
        value=ATTENTION_DROPOUT,
        reads={
            "transformer.h.0.attn.attn_dropout:p": ATTENTION_DROPOUT,
            "transformer.h.0.attn.resid_dropout:p": ATTENTION_DROPOUT,
        },
    ),
    knob(
        "PATTERN:eps (of norms)",
        "norm_eps",
        "transformer.h.*.ln_?:eps",
        value=NORM_EPS,
        reads={"transformer.h.0.ln_1:eps": NORM_EPS, "transformer.h.0.ln_2:eps": NORM_EPS},
    ),
    knob("of the script's own", "loss_weight", "loss/weight", value=LOSS_WEIGHT),
    Trial(
        "set_knobs eval_steps, total_steps",
        (
            Row(
                "set_knobs eval_steps",
                {"kind": "set_knobs", "changes": [{"knob": "eval_steps", "value": EVAL_STEPS}]},
                reads={"eval_steps": EVAL_STEPS},
            ),
            Row(
                "set_knobs total_steps",
                {"kind": "set_knobs", "changes": [{"knob": "total_steps", "value": LONGER}]},
                at=LATER,
                reads={"total_steps": LONGER},
            ),
        ),
        ((AT, "eval_steps"), (LATER, "total_steps")),
        differs_from=EVAL_STEPS + 1,  # an evaluation that Transformers makes draws random numbers
        steps=LONGER,
    ),
    one("freeze", FREEZE, "freeze"),
    Trial(
        "unfreeze",
        (
            Row("freeze before unfreeze", FREEZE),
            Row(
                "unfreeze", {"kind": "unfreeze", "parameters": "*"}, LATER, reads={"frozen": [], "frozen_parameters": 0}
            ),
        ),
        ((AT, "freeze"), (LATER, "unfreeze")),
        parts_from=("freeze", LATER + 1),
    ),
    # The weights after the very step of the boundary are looked at when the boundary is over.
    one("reset_parameters", {"kind": "reset_parameters", "modules": f"{MODULE}*", "seed": SEED}, "reset", AT),
    one(
        "run_action",
        {"kind": "run_action", "name": "scale_loss", "arguments": {"by": LOSS_FACTOR}},
        "scale_loss",
        reads={"weight": LOSS_FACTOR},
    ),
    Trial("quiet", QUIET, ((LATER, "evaluate"),), differs_from=None),
    Trial("pause, resume, cancel, save", (PAUSE, TAKEN_BACK, CANCEL, RESUME, SAVE), differs_from=None),
    Trial(
        "stop", (Row("stop", {"kind": "stop"}, STOP_AT, reads={"stopping": True}),), differs_from=None, steps=STOP_AT
    ),
    Trial(
        "stop with a checkpoint",
        (Row("stop with a checkpoint", {"kind": "stop", "save": True}, STOP_AT, reads={"stopping": True}),),
        differs_from=None,
        steps=STOP_AT,
    ),
)

UNLISTED = {TAKEN_BACK.name, "freeze before unfreeze"}
"""Commands that a trial needs, and that have a row elsewhere or are the object of another."""


def rows() -> list[Row]:
    """Every row of the table, in its order."""
    return [row for trial in TRIALS for row in trial.rows if row.name not in UNLISTED]


def kinds() -> set[str]:
    """The intents that the matrix exercises."""
    return {row.intent["kind"] for row in rows()}

"""Interactive Training's commands, each with ours and how far ours goes: what docs/interactive-training.md shows.

python -m tests.ray_jobs.support.peer_commands        writes the page; a test checks that it is up to date
"""

from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "interactive-training.md"
NOT_YET = "not yet"
GOING_BACK = "`rollback`, `steer fork`"
"""Proved in `tests/ray_jobs/steering/test_rollback.py` and `test_replay.py`: a row of the matrix holds one training."""
NO_COMMAND = "no command"


@dataclass(frozen=True, slots=True)
class Peer:
    """One command of theirs. `rows` are the rows of the vocabulary's matrix that prove ours; none: we have none."""

    version: str
    theirs: str
    ours: str
    how_far: str
    rows: tuple[str, ...] = ()


RATES = ("set_learning_rate value", "set_learning_rate factor", "set_learning_rate value, one group")
MODULE_NUMBERS = ("set_knobs PATTERN:p (dropouts of attentions)", "set_knobs PATTERN:eps (of norms)")
SAVE = ("save_checkpoint label, note, pin",)

PEERS: tuple[Peer, ...] = (
    Peer(
        "v1",
        "update_optimizer: learning rate",
        "`set_learning_rate`, `set_schedule`",
        "absolute or times a factor, one parameter group or all; the rest of the schedule is kept, held, or replaced",
        (*RATES, "set_learning_rate value, hold", "set_schedule linear", "set_schedule cosine with warm-up"),
    ),
    Peer(
        "v1",
        "update_optimizer: the other hyper-parameters",
        "`set_knobs`",
        "several at once or none of them; per parameter group; within the limits that the run's owner has set",
        ("set_knobs weight_decay", "set_knobs betas", "set_knobs eps", "set_knobs momentum"),
    ),
    Peer("v1", "save checkpoint", "`save_checkpoint`", "sharded, hashed, signed; label, note, pin", SAVE),
    Peer("v1", "load checkpoint", GOING_BACK, "in the living processes, as a branch; bit-equal to fresh ones"),
    Peer("v1", "pause", "`pause`", "held at a step boundary on all ranks, and commands are still taken", ("pause",)),
    Peer("v1", "resume", "`resume`", "", ("resume",)),
    Peer("v1", "stop", "`stop`", "with a last checkpoint, if asked", ("stop", "stop with a checkpoint")),
    Peer("v1", "evaluate", "`evaluate`", "the training's random numbers are left as they were", ("evaluate",)),
    Peer(
        "v1",
        "dataset reload",
        "`run_action`",
        "an action that the script registers reloads its data on every rank; the order of samples stays the seed's",
        ("run_action",),
    ),
    Peer(
        "v1",
        "dataset run-time parameters (a mixture's weights)",
        "`set_knobs`, after `register_knob`",
        "a knob of the script's own, for a number that its dataset, sampler or loss reads; kept and replayed",
        ("set_knobs of the script's own",),
    ),
    Peer(
        "v1",
        "layer operations: reset, freeze and the like",
        "`reset_parameters`, `freeze`, `unfreeze`, `run_action`",
        "by patterns of names; what a script wants called beside these it registers, with typed arguments",
        ("reset_parameters", "freeze", "unfreeze", "run_action"),
    ),
    Peer(
        "v1",
        "layer parameters",
        "`set_knobs` with `PATTERN:ATTRIBUTE`, `dropout`",
        "floats that modules hold; weights are reset or frozen, and not written number by number",
        (*MODULE_NUMBERS, "set_knobs dropout"),
    ),
    Peer(
        "v2",
        "set_knob lr",
        "`set_learning_rate`",
        "as above; the name `lr` in `set_knobs` is refused, and says so",
        RATES,
    ),
    Peer(
        "v2",
        "set_knob weight_decay",
        "`set_knobs weight_decay`",
        "groups that do not decay stay so, unless they are named",
        ("set_knobs weight_decay", "set_knobs weight_decay factor, one group"),
    ),
    Peer("v2", "set_knob adam_beta1", "`set_knobs betas`", "both of them", ("set_knobs betas",)),
    Peer("v2", "set_knob eps", "`set_knobs eps`", "", ("set_knobs eps",)),
    Peer(
        "v2",
        "set_knob max_grad_norm",
        "`set_knobs gradient_clipping`",
        "in every place where DeepSpeed keeps it",
        ("set_knobs gradient_clipping",),
    ),
    Peer(
        "v2",
        "set_knob of the script's own",
        "`set_knobs`, after `register_knob`",
        "kept in checkpoints",
        ("set_knobs of the script's own",),
    ),
    Peer(
        "v2",
        "custom actions",
        "`run_action`, after `action`",
        "arguments are checked before any rank calls it",
        ("run_action",),
    ),
    Peer("v2", "save", "`save_checkpoint`", "as above", SAVE),
    Peer("v2", "load (fork)", GOING_BACK, "a fork is a run of its own, with its own copy of the checkpoint"),
    Peer("v2", "pause, resume", "`pause`, `resume`", "", ("pause", "resume")),
    Peer("v2", "stop", "`stop`", "", ("stop", "stop with a checkpoint")),
    Peer("v2", "evaluate", "`evaluate`", "", ("evaluate",)),
    Peer(
        "v2",
        "reset_module",
        "`reset_parameters`",
        "the same fresh weights on every rank, from a seed",
        ("reset_parameters",),
    ),
    Peer(
        "v2",
        "note",
        "a command's reason, `save_checkpoint` with a note",
        "there is no note that stands by itself",
        SAVE,
    ),
    Peer(
        "v2",
        "set_agent, configure_agent, set_context",
        NO_COMMAND,
        "`steer agent` is a client that is started and stopped beside the run, with a token and limits of its own",
    ),
)


@dataclass(frozen=True, slots=True)
class BadInput:
    """Input of which Interactive Training makes something bad, and what becomes of it here."""

    what: str
    theirs: str
    ours: str


BAD_INPUTS: dict[str, BadInput] = {
    "not finite": BadInput(
        "a learning rate or a value that is NaN or infinite",
        "v1 accepts it; in v2 NaN passes the clamp",
        "refused before it is accepted: it is no well-formed command",
    ),
    "negative": BadInput("a learning rate of 0 or below", "v1 accepts it", "refused before it is accepted"),
    "example": BadInput(
        "an optimizer update that does not fit this optimizer",
        "the README's own example ends v1's training",
        "refused by a vote of all ranks, with a sentence that lists the knobs of this run; the training goes on",
    ),
    "checkpoint": BadInput(
        "a checkpoint that does not exist",
        "loading it ends v1's run",
        "refused with what there is; nothing else happens (to pin or to delete one; to go back to one)",
    ),
    "path": BadInput(
        "`../` in a name",
        "v1's branch names leave the folder",
        "a run's name that could leave its folder is refused, and labels and notes are never part of a path",
    ),
    "method": BadInput(
        "any method of any module",
        "v1 calls it",
        "only what the script has registered can be called, with arguments of the types that it has declared",
    ),
}

INTRODUCTION = """\
# Interactive Training's commands, and ours

Made by `python -m tests.ray_jobs.support.peer_commands`; a test checks it, and that each of our commands exists and
has its row in [the vocabulary's matrix](vocabulary.md), where it is proved on real ranks.

Interactive Training is the closest work before this. v1 was run for comparison, of v2 the code was read. For each of
its commands: what ours is, and how far ours goes.

Of every command with a row in the matrix this holds, with DeepSpeed's ZeRO 0 to 3 and without DeepSpeed: it takes
effect on **all ranks** at the same step; the ranks **vote**, and if one cannot, none does and you are told why;
*applied* means that every rank **read the value back** from its live objects and they agree. It is in the journal, and
after a crash what changes the training is repeated at the step where it first took effect.
"""


def rendered() -> str:
    """The page."""
    lines = ["| | theirs | ours | how far |", "|---|---|---|---|"]
    lines += [f"| {each.version} | {each.theirs} | {each.ours} | {each.how_far} |" for each in PEERS]
    lines += ["", "## Bad input", "", "| what | theirs | ours |", "|---|---|---|"]
    lines += [f"| {each.what} | {each.theirs} | {each.ours} |" for each in BAD_INPUTS.values()]
    return "\n".join([INTRODUCTION, *lines]) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(rendered(), encoding="utf-8")

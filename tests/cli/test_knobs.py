"""The rest of the vocabulary on the command line: knobs, schedules, parameters, actions, checkpoints, cancels."""

import json
from typing import Any

import pytest

from control_plane.api.messages import Report
from control_plane.cli.commands.knobs import allowed, parse_assignment, value_per_group
from control_plane.cli.errors import UsageError
from control_plane.cli.output.formatting import change
from control_plane.core.model.limits import Limit
from control_plane.storage.layout import RunFiles
from tests.cli.conftest import Steer
from tests.core import examples
from tests.gateway.rig import RUN, LiveGateway, open_server, start_trainers


def asked(steer: Steer, *words: str) -> dict[str, Any]:
    """The command that these words have sent, as the run has it."""
    answer = steer(*words, "--json")
    assert answer.exit_code == 0, answer.stderr
    command: dict[str, Any] = json.loads(answer.stdout)["command"]
    return command


def test_set_of_several_knobs_is_one_command(gateway: LiveGateway, steer: Steer) -> None:
    answer = steer("set", RUN, "eval_steps=10", "betas=0.9,0.95")
    assert answer.stdout == (
        "applied at step 7 on 2 of 2 ranks: eval_steps = 10, betas = (0.9, 0.95) "
        "(eval_steps 50 -> 10; betas (0.9, 0.999) -> 0.9, 0.95)\n"
    )
    (view,) = gateway.call(gateway.server.snapshot()).commands
    assert view.what == "eval_steps = 10, betas = (0.9, 0.95)"


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (("weight_decay=0.1",), {"knob": "weight_decay", "value": 0.1, "factor": None, "group": None}),
        (("weight_decay*=2",), {"knob": "weight_decay", "value": None, "factor": 2.0, "group": None}),
        (("weight_decay=x0.5",), {"knob": "weight_decay", "value": None, "factor": 0.5, "group": None}),
        (("weight_decay=2", "--factor"), {"knob": "weight_decay", "value": None, "factor": 2.0, "group": None}),
        (("eval_steps=20",), {"knob": "eval_steps", "value": 20, "factor": None, "group": None}),
        (("*:p=true", "--group", "0"), {"knob": "*:p", "value": True, "factor": None, "group": 0}),
    ],
)
def test_set_of_another_knob_sends_its_change(
    gateway: LiveGateway, steer: Steer, words: tuple[str, ...], change: dict[str, Any]
) -> None:
    assert asked(steer, "set", RUN, *words)["intent"] == {"kind": "set_knobs", "changes": [change]}


def test_learning_rate_among_other_knobs_is_one_of_the_changes(gateway: LiveGateway, steer: Steer) -> None:
    intent = asked(steer, "set", RUN, "learning_rate=1e-4", "eval_steps=10")["intent"]
    assert [change["knob"] for change in intent["changes"]] == ["lr", "eval_steps"]


@pytest.mark.parametrize(
    ("words", "intent"),
    [
        (
            ("schedule", RUN, "cosine", "--end", "0.1", "--warmup", "100", "--peak", "2", "--over", "1000"),
            {
                "kind": "set_schedule",
                "shape": "cosine",
                "end": 0.1,
                "warmup_steps": 100,
                "peak": 2.0,
                "over_steps": 1000,
            },
        ),
        (("freeze", RUN, "transformer.h.0.*"), {"kind": "freeze", "parameters": "transformer.h.0.*"}),
        (("unfreeze", "transformer.h.0.*"), {"kind": "unfreeze", "parameters": "transformer.h.0.*"}),
        (("reset", RUN, "lm_head", "--seed", "7"), {"kind": "reset_parameters", "modules": "lm_head", "seed": 7}),
        (("skip", RUN, "2048"), {"kind": "skip_samples", "samples": 2048}),
        (
            ("action", RUN, "reshuffle", "seed=7", "share=0.5", "all=true", "why=a=b"),
            {
                "kind": "run_action",
                "name": "reshuffle",
                "arguments": {"seed": 7, "share": 0.5, "all": True, "why": "a=b"},
            },
        ),
        (
            ("save", RUN, "--note", "before the surgery", "--pin"),
            {"kind": "save_checkpoint", "label": None, "note": "before the surgery", "pin": True, "name": None},
        ),
    ],
)
def test_words_become_the_intent(
    gateway: LiveGateway, steer: Steer, words: tuple[str, ...], intent: dict[str, Any]
) -> None:
    assert asked(steer, *words)["intent"] == intent


def test_options_of_every_command_reach_the_run(gateway: LiveGateway, steer: Steer) -> None:
    seq = gateway.call(gateway.server.snapshot()).seq
    options = ("--reason", "too hot", "--not-before", "5", "--not-after", "9", "--based-on", str(seq))
    command = asked(steer, "freeze", RUN, "*", *options)
    assert (command["reason"], command["not_before_step"], command["not_after_step"]) == ("too hot", 5, 9)
    assert command["based_on_seq"] == seq
    assert command["role"] == "operator"


def test_view_that_is_stale_exits_with_five(gateway: LiveGateway, steer: Steer) -> None:
    seq = gateway.call(gateway.server.snapshot()).seq
    steer("set", RUN, "lr=1e-4")
    answer = steer("set", RUN, "lr=2e-4", "--based-on", str(seq))
    assert answer.exit_code == 5
    assert "test-operator: lr = 0.0001" in answer.stderr


def test_cancel_by_the_beginning_of_a_uuid_takes_a_command_back(gateway: LiveGateway, steer: Steer) -> None:
    receipt = json.loads(steer("set", RUN, "lr=1e-4", "--not-before", "50", "--detach", "--json").stdout)
    answer = steer("cancel", RUN, receipt["uuid"][:8])
    assert (answer.exit_code, answer.stdout.startswith("applied at step 7")) == (0, True), answer.stderr
    assert gateway.call(gateway.server.snapshot()).commands[0].status == "cancelled"
    told = steer("journal", RUN).stdout
    assert "test-operator: cancel 'lr = 0.0001'" in told
    again = steer("cancel", RUN, receipt["uuid"])
    assert (again.exit_code, "cannot be cancelled" in again.stderr) == (5, True)


def test_cancel_of_a_beginning_that_two_commands_share_asks_for_more(gateway: LiveGateway, steer: Steer) -> None:
    for number in (1, 2):
        gateway.call(gateway.server.submit(examples.command(number, not_before_step=50)))
    answer = steer("cancel", RUN, "00000000")
    assert (answer.exit_code, "2 commands" in answer.stderr) == (2, True)


def test_checkpoint_is_pinned_unpinned_and_deleted_at_once(gateway: LiveGateway, steer: Steer) -> None:
    older, newest = examples.committed(3, note="before the surgery"), examples.committed(5)
    gateway.call(gateway.server.report(Report(generation=1, checkpoints=(older, newest))))
    pinned = steer("checkpoint", "pin", RUN, older.checkpoint)
    assert (pinned.exit_code, pinned.stdout) == (0, f"applied at once: pin {older.checkpoint}\n")
    row = steer("checkpoints", RUN).stdout.splitlines()[1]
    assert row.split(maxsplit=7) == [older.checkpoint, "3", "5", "B", "yes", "unknown", "-", "before the surgery"]
    refused = steer("checkpoint", "delete", RUN, older.checkpoint)
    assert (refused.exit_code, "unpin it first" in refused.stderr) == (5, True)
    assert steer("checkpoint", "unpin", RUN, older.checkpoint).exit_code == 0
    assert steer("checkpoint", "delete", RUN, older.checkpoint).exit_code == 0
    assert [each.checkpoint for each in gateway.call(gateway.server.snapshot()).checkpoints] == [newest.checkpoint]


def test_knobs_lists_values_bounds_and_limits(gateway: LiveGateway, steer: Steer) -> None:
    limits = {"lr": Limit(max=0.01), "weight*": Limit(max_factor=10, roles=("operator", "admin"))}
    server = open_server(RunFiles(gateway.runs.root / "run-2"), limits)
    gateway.runs.handles["run-2"] = server
    gateway.call(start_trainers(server))
    head, *rows = steer("knobs", "run-2").stdout.splitlines()
    assert head.split() == ["KNOB", "VALUE", "TYPE", "BOUNDS", "LIMITS", "DESCRIPTION"]
    cells = {row.split()[0]: " ".join(row.split()) for row in rows}
    assert cells["lr"] == "lr decay 0.001, no_decay 0.0005 number - to 0.01 -"
    assert cells["weight_decay"] == (
        "weight_decay decay 0.1, no_decay 0 number from 0 to 1 at most x 10, operator or admin of the optimizer"
    )
    assert cells["betas"] == "betas (0.9, 0.999) numbers from 0 to 1 - -"
    assert cells["eval_steps"] == "eval_steps 50 integer from 1 - -"
    told = json.loads(steer("knobs", "run-2", "--json").stdout)
    assert told["groups"] == ["decay", "no_decay"]
    assert told["knobs"]["lr"]["limit"] == {"max": 0.01}
    assert told["knobs"]["eval_steps"] == {"value": 50, "per_group": False, "kind": "integer", "least": 1}


@pytest.mark.parametrize("text", ["lr=", "lr=true", "x=", "x=a,b", "x*=true", "=1x"])
def test_assignment_of_no_value_is_misused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a number"):
        parse_assignment(text)


@pytest.mark.parametrize(
    ("value", "per_group", "said"),
    [
        ([0.1, 0.0], True, "a 0.1, b 0"),
        ([0.1, 0.1], True, "0.1"),
        ([[0.9, 0.9], [0.9, 0.95]], True, "a (0.9, 0.9), b (0.9, 0.95)"),
        (7, False, "7"),
        (None, False, "-"),
    ],
)
def test_value_is_told_by_group_where_groups_differ(value: Any, per_group: bool, said: str) -> None:
    assert value_per_group(value, ["a", "b"], per_group) == said


def test_limit_is_told_in_a_few_words() -> None:
    limit = Limit(min=1e-6, max=1e-2, max_factor=10, cool_down_s=30, roles=("operator",))
    assert allowed(limit) == "from 1e-06 to 0.01, at most x 10, every 30 s, operator"


@pytest.mark.parametrize(
    ("kind", "body", "before", "after", "said"),
    [
        (
            "reset_parameters",
            {"modules": "a"},
            {},
            {"reset": ["a.b"], "digest": "ab"},
            "reset a (seed 0) (reset a.b; digest ab)",
        ),
        ("run_action", {"name": "count"}, {}, {"count": 7}, "run count (count 7)"),
        ("run_action", {"name": "count"}, {}, {"count": 7, "skipped_steps": 1}, "run count (count 7)"),
        (
            "set_learning_rate",
            {"value": 0.1},
            {"lr": [0.2]},
            {"lr": [0.1], "skipped_steps": 1, "step_was_skipped": True},
            "lr 0.2 -> 0.1",
        ),
        ("stop", {}, {}, {"stopping": True}, "stop"),
        ("freeze", {"parameters": "h.*"}, {"frozen": []}, {"frozen": ["h.0"]}, "freeze h.* (frozen none -> h.0)"),
        (
            "set_schedule",
            {"shape": "constant"},
            {"lr": [0.1], "schedule": ["keep"]},
            {"lr": [0.1], "schedule": ["course"]},
            "schedule constant (schedule keep -> course)",
        ),
    ],
)
def test_result_of_a_command_is_told(kind: str, body: Any, before: Any, after: Any, said: str) -> None:
    what = examples.command(1, kind, **body).describe()
    assert change(what, examples.settled(1, before=before, after=after)) == said

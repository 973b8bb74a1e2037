"""A recorded run is replayed without one command: later ones are repeated with the values that they had set."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.core.model.errors import Conflict, NotFound
from control_plane.core.model.intents import Intent, SetLearningRate
from control_plane.core.model.records import (
    BranchStarted,
    CheckpointCommitted,
    CommandAccepted,
    CommandScheduled,
    CommandSettled,
    Record,
)
from control_plane.core.rules.branch_rules import first_uuid
from control_plane.core.rules.effect.plan import EffectPlan, plan
from control_plane.core.rules.replay_plan import recorded
from tests.core.examples import command, created, intent, settled, started, uuid
from tests.core.rules.effect.histories import FACTS, PlainRank, applied, begun, ended, entries_of, recorded_run

LR = "set_learning_rate"
REMOVED = uuid(1)


def run_of(*commands: tuple[Record, ...]) -> list[Any]:
    """The journal of a run that has finished, with these commands."""
    return entries_of(created(), begun(), *(record for each in commands for record in each), *ended())


def intents(planned: EffectPlan) -> list[tuple[int, str]]:
    """Steps and descriptions of a schedule."""
    return [(item.step, item.command.intent.describe()) for item in planned.scheduled]


TRIPLED = applied(1, 10, {"kind": LR, "factor": 3.0}, {"lr": [1e-3, 5e-4]}, {"lr": [3e-3, 1.5e-3]})


def test_without_its_only_command_nothing_is_scheduled() -> None:
    planned = plan(run_of(TRIPLED), REMOVED)
    assert planned.scheduled == planned.rewritten == ()
    assert (planned.without.step, planned.without.placebo, planned.what) == (10, None, "lr x 3")


def test_earlier_commands_stay_as_they_were_and_a_later_factor_becomes_its_value_in_each_group() -> None:
    halved = {"kind": LR, "factor": 0.5}
    entries = run_of(
        applied(2, 5, halved, {"lr": [2e-3, 1e-3]}, {"lr": [1e-3, 5e-4]}),
        TRIPLED,
        applied(3, 20, halved, {"lr": [3e-3, 1.5e-3]}, {"lr": [1.5e-3, 7.5e-4]}),
        applied(4, 30, halved | {"group": "no_decay", "schedule": "hold"}, {}, {"lr": [1.5e-3, 1e-4]}),
        applied(5, 40, halved, {}, {"lr": [7e-4, 7e-4]}),
    )
    planned = plan(entries, REMOVED)
    assert planned.scheduled[0] == recorded(entries)[0]
    assert intents(planned)[1:] == [
        (20, "lr = 0.0015 (group 0)"),
        (20, "lr = 0.00075 (group 1)"),
        (30, "lr = 0.0001 (group 1, hold)"),
        (40, "lr = 0.0007"),
    ]
    assert [each.becomes for each in planned.rewritten][2] == ("lr = 0.0007",)
    uuids = [item.command.uuid for item in planned.scheduled]
    assert len(set(uuids)) == len(uuids)
    assert set(uuids) >= {uuid(2), uuid(3), uuid(4), uuid(5)}


def test_a_new_schedule_begins_at_the_learning_rates_that_it_had_begun_at() -> None:
    cosine = {"kind": "set_schedule", "shape": "cosine", "end": 0.1}
    entries = run_of(TRIPLED, applied(2, 30, cosine, {}, {"lr": [2e-3, 1e-3], "schedule": ["course", "course"]}))
    assert intents(plan(entries, REMOVED)) == [
        (30, "lr = 0.002 (group 0, hold)"),
        (30, "lr = 0.001 (group 1, hold)"),
        (30, "schedule cosine (to x 0.1)"),
    ]
    # Where the command has not set it, the learning rate is the same anyway.
    decay = {"kind": "set_knobs", "changes": [{"knob": "weight_decay", "value": 0.2}]}
    other = run_of(applied(1, 10, decay), applied(2, 30, cosine, {}, {"lr": [2e-3, 1e-3]}))
    assert intents(plan(other, REMOVED)) == [(30, "schedule cosine (to x 0.1)")]


def test_a_schedule_over_the_steps_that_are_left_keeps_their_number_when_the_length_is_left_out() -> None:
    longer = {"kind": "set_knobs", "changes": [{"knob": "total_steps", "value": 200}]}
    cosine = {"kind": "set_schedule", "shape": "cosine", "warmup_steps": 10, "peak": 2.0}
    entries = run_of(
        applied(1, 10, longer, {"total_steps": 100}, {"total_steps": 200}),
        applied(2, 30, cosine, {}, {"lr": [1e-3, 1e-3]}),
    )
    assert intents(plan(entries, REMOVED))[-1][1].endswith("over 160 steps)")


def test_a_factor_of_modules_becomes_a_value_of_each_and_an_absolute_value_stays() -> None:
    dropped = {"kind": "set_knobs", "changes": [{"knob": "h.*:p", "factor": 2.0}, {"knob": "x", "factor": 3.0}]}
    same = {"kind": "set_knobs", "changes": [{"knob": "h.*:p", "factor": 0.5}]}
    absolute = {"kind": "set_knobs", "changes": [{"knob": "h.*:p", "value": 0.5}]}
    entries = run_of(
        TRIPLED,
        applied(2, 20, dropped, {}, {"h.0:p": 0.2, "h.1:p": 0.4, "dropout": None, "x": 6}),
        applied(3, 30, same, {}, {"h.0:p": 0.1, "h.1:p": 0.1}),
        applied(4, 40, absolute, {}, {"h.0:p": 0.5, "h.1:p": 0.5}),
    )
    planned = plan(entries, REMOVED)
    assert intents(planned) == [(20, "h.0:p = 0.2, h.1:p = 0.4, x = 6"), (30, "h.*:p = 0.1"), (40, "h.*:p = 0.5")]
    assert [each.command for each in planned.rewritten] == [uuid(2), uuid(3)]


def decay(value: float | None = None, factor: float | None = None, group: int | None = None) -> Intent:
    """A change of the weight decay."""
    return intent("set_knobs", changes=[{"knob": "weight_decay", "value": value, "factor": factor, "group": group}])


def test_weight_decay_reaches_the_groups_that_it_had_reached() -> None:
    """A group that holds 0 is left alone where none is named; without an earlier command it holds 0, or does not."""
    entries, _ = recorded_run([(10, decay(0.3, group=1)), (20, decay(0.2)), (30, decay(factor=0.5))])
    assert intents(plan(entries, REMOVED)) == [
        (20, "weight_decay = 0.2 (group 0), weight_decay = 0.2 (group 1)"),
        (30, "weight_decay = 0.1 (group 0), weight_decay = 0.1 (group 1)"),
    ]
    entries, _ = recorded_run([(5, decay(0.3, group=1)), (10, decay(0.0, group=1)), (20, decay(0.2))])
    assert intents(plan(entries, uuid(2)))[1:] == [(20, "weight_decay = 0.2 (group 0)")]


def test_many_modules_become_several_commands_of_one_step() -> None:
    after = {f"h.{number}:p": number / 100 for number in range(40)}
    entries = run_of(
        TRIPLED, applied(2, 20, {"kind": "set_knobs", "changes": [{"knob": "h.*:p", "factor": 2.0}]}, {}, after)
    )
    first, last = plan(entries, REMOVED).scheduled
    assert (len(first.command.intent.changes), len(last.command.intent.changes)) == (32, 8)  # type: ignore[union-attr]
    assert last.command.uuid == uuid(2)


def test_a_value_that_no_command_can_set_stays_relative_and_says_so() -> None:
    entries = run_of(TRIPLED, applied(2, 20, {"kind": LR, "factor": 0.5}, {}, {"lr": ["NaN", 1e-3]}))
    planned = plan(entries, REMOVED)
    assert intents(planned) == [(20, "lr x 0.5")]
    assert planned.rewritten[0].reason == "the learning rates that were read back are not known"


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        (["keep", "course"], ["lr x 0.999998"]),
        (["hold", "hold"], ["lr x 0.999998 (hold)"]),
        (["hold", "keep"], ["lr x 0.999998 (group 0, hold)", "lr x 0.999998 (group 1)"]),
    ],
)
def test_placebo_takes_the_command_s_place_and_keeps_each_group_s_mode(modes: list[str], expected: list[str]) -> None:
    later = applied(2, 20, {"kind": LR, "value": 1e-4})
    entries = entries_of(created(), begun(schedule=modes), *TRIPLED, *later, *ended())
    planned = plan(entries, REMOVED, placebo=-2e-6)
    *placebo, last = planned.scheduled
    assert [item.command.intent.describe() for item in placebo] == expected
    assert {item.command.intent.factor for item in placebo} == {1 - 2e-6}  # type: ignore[union-attr]
    assert {item.step for item in placebo} == {10}
    assert last == plan(entries, REMOVED).scheduled[-1]
    assert planned.placebo == tuple(item.command.uuid for item in placebo)
    assert planned.without.placebo == -2e-6


def test_unfreeze_of_what_would_not_be_frozen_is_left_out_with_the_reason() -> None:
    def frozen(*names: str) -> dict[str, Any]:
        return {"frozen": list(names), "frozen_parameters": 9}

    entries = run_of(
        applied(1, 10, {"kind": "freeze", "parameters": "h.*"}, frozen(), frozen("h.0", "h.1")),
        applied(2, 15, {"kind": "freeze", "parameters": "h.1"}, frozen("h.0", "h.1"), frozen("h.0", "h.1")),
        applied(3, 20, {"kind": "unfreeze", "parameters": "h.0"}, frozen("h.0", "h.1"), frozen("h.1")),
        applied(4, 30, {"kind": "unfreeze", "parameters": "*"}, frozen("h.1"), frozen()),
    )
    planned = plan(entries, REMOVED)
    assert intents(planned) == [(15, "freeze h.1"), (30, "unfreeze *")]
    (left_out,) = planned.rewritten
    assert (left_out.command, left_out.becomes) == (uuid(3), ())
    assert left_out.reason == "no frozen parameter would match 'h.0'"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"kind": "rollback", "branch": "main"}, "ends the comparison at its step 10"),
        ({"kind": "stop"}, "ended the run at step 10"),
        ({"kind": "pause"}, "changes the time of the steps"),
        ({"kind": "resume"}, "changes the time of the steps"),
        ({"kind": "evaluate"}, "only reads the training"),
        ({"kind": "save_checkpoint"}, "only reads the training"),
        ({"kind": "pin_checkpoint", "checkpoint": "c1"}, "changes nothing that is trained"),
    ],
)
def test_command_without_an_effect_to_measure_says_why(body: dict[str, Any], said: str) -> None:
    with pytest.raises(Conflict, match=said):
        plan(run_of(applied(1, 10, body)), REMOVED)


def test_unknown_unsettled_and_refused_commands_say_what_they_are() -> None:
    asked = CommandAccepted(command=command(2, LR, value=1e-3)), CommandAccepted(command=command(3, LR, value=1e-3))
    refused = settled(2, "rejected", reason="rank 1: above the limit")
    entries = run_of((*asked, refused))
    with pytest.raises(NotFound, match="has no command"):
        plan(entries, uuid(9))
    with pytest.raises(Conflict, match="was rejected: rank 1: above the limit; it changed nothing"):
        plan(entries, uuid(2))
    with pytest.raises(Conflict, match="is not settled yet"):
        plan(entries, uuid(3))


def test_a_replay_that_ends_before_the_command_is_refused_and_one_after_it_is_cut() -> None:
    entries = run_of(TRIPLED, applied(2, 30, {"kind": LR, "value": 1e-4}))
    with pytest.raises(Conflict, match="took effect after step 10, and the replay ends at step 10"):
        plan(entries, REMOVED, until_step=10)
    assert intents(plan(entries, REMOVED, until_step=20)) == [(20, "stop")]


# Branches

CHECKPOINT = "step-00000020-g1"
ROLLBACK = uuid(50)
FIRST = ({"kind": LR, "factor": 0.5}, {"kind": LR, "factor": 0.1, "group": 1})


def with_a_branch(saved_at: int = 20) -> list[Any]:
    """Set at 10 and 25; rolled back at 30 to the checkpoint of `saved_at`, with two changes; set at 40."""
    back = {"kind": "rollback", "checkpoint": CHECKPOINT, "first": list(FIRST)}
    accepted, done = applied(50, 30, back, {}, {"checkpoint": CHECKPOINT, "step": saved_at, "from_branch": "main"})
    firsts: list[Record] = []
    rates = ([1.5e-3, 7.5e-4], [1.5e-3, 7.5e-5])
    for place, (body, after) in enumerate(zip(FIRST, rates, strict=True)):
        own = command(0, **body).model_copy(update={"uuid": first_uuid(ROLLBACK, place)})
        firsts += [CommandAccepted(command=own), CommandScheduled(uuid=own.uuid, step=saved_at)]
        firsts += [CommandSettled(uuid=own.uuid, status="applied", step=saved_at, generation=2, after={"lr": after})]
    saved = CheckpointCommitted(
        checkpoint=CHECKPOINT, step=saved_at, generation=1, path=f"checkpoints/{CHECKPOINT}", size_bytes=5
    )
    early = [saved] if saved_at < 10 else []
    return entries_of(
        created(),
        begun(),
        *early,
        *TRIPLED,
        *([] if early else [saved]),
        *applied(2, 25, {"kind": LR, "factor": 2.0}, {}, {"lr": [6e-3, 3e-3]}),
        accepted,
        done,
        BranchStarted(branch="branch-2", parent="main", checkpoint=CHECKPOINT, step=saved_at, rollback=ROLLBACK),
        *firsts[:2],
        *firsts[3:5],
        started(901, 2, step=saved_at, checkpoint=CHECKPOINT, branch="branch-2", facts=FACTS),
        firsts[2],
        firsts[5],
        *(
            record if isinstance(record, CommandAccepted) else record.model_copy(update={"generation": 2})
            for record in applied(3, 40, {"kind": LR, "factor": 2.0}, {}, {"lr": [3e-3, 1.5e-4]})
        ),
        *ended(generation=2),
    )


def test_a_branch_begins_with_the_values_that_it_had_begun_with_and_its_checkpoint_is_saved_again() -> None:
    planned = plan(with_a_branch(), REMOVED)
    assert intents(planned) == [
        (20, "save checkpoint"),
        (25, "lr = 0.006 (group 0)"),
        (25, "lr = 0.003 (group 1)"),
        (30, f"back to {CHECKPOINT}, lr = 0.0015 (group 0), lr = 0.00075 (group 1), lr = 7.5e-05 (group 1)"),
        (40, "lr = 0.003 (group 0)"),
        (40, "lr = 0.00015 (group 1)"),
    ]


def test_command_of_a_branch_that_was_left_has_no_part_in_the_run() -> None:
    with pytest.raises(Conflict, match=r"branch branch-2 began before that.*--until-step"):
        plan(with_a_branch(), uuid(2))
    with pytest.raises(Conflict, match="branch branch-2 began before that"):
        plan(with_a_branch(saved_at=5), REMOVED)
    # Before the run left the branch, it had.
    cut = plan(with_a_branch(), uuid(2), until_step=28)
    assert intents(cut)[-1] == (28, "stop")


@pytest.mark.parametrize("placebo", [None, 1e-6])
def test_an_initial_change_of_a_branch_is_left_out_of_its_rollback(placebo: float | None) -> None:
    planned = plan(with_a_branch(), first_uuid(ROLLBACK, 0), placebo)
    (back,) = [item.command.intent for item in planned.scheduled if item.command.uuid == ROLLBACK]
    held = back.first  # type: ignore[union-attr]
    assert [each.describe() for each in held[-1:]] == ["lr = 7.5e-05 (group 1)"]
    assert len(held) == (1 if placebo is None else 2)
    if placebo is not None:
        assert isinstance(held[0], SetLearningRate)
        assert held[0].factor == 1 + 1e-6
        assert planned.placebo == (first_uuid(ROLLBACK, 0),)


# Any history

RATES = st.builds(
    lambda value, group: intent(LR, group=group, **value),
    st.one_of(
        st.floats(1e-5, 1e-1).map(lambda value: {"value": value}),
        st.floats(0.25, 4.0).map(lambda value: {"factor": value}),
    ),
    st.sampled_from([None, 0, "no_decay"]),
)


def changes(knob: str, group: int | None) -> st.SearchStrategy[dict[str, Any]]:
    """A change of one knob, absolute or relative. Ranks refuse to set a weight decay that is 0 in every group."""
    least = 0.0 if group is not None else 0.01
    how = st.one_of(
        st.floats(least, 0.9).map(lambda value: {"value": value}),
        st.floats(0.25, 4.0).map(lambda value: {"factor": value}),
    )
    return how.map(lambda value: {"knob": knob, "group": group, **value})


CHANGES = st.one_of(
    changes("weight_decay", None), changes("weight_decay", 1), *(changes(knob, None) for knob in ("h.*:p", "h.0:p"))
)
KNOBS = st.lists(CHANGES, min_size=1, max_size=3, unique_by=lambda each: (each["knob"], each["group"])).map(
    lambda made: intent("set_knobs", changes=made)
)
ASKED: st.SearchStrategy[list[Intent]] = st.lists(st.one_of(RATES, KNOBS), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ASKED, st.data())
def test_every_later_command_has_the_result_that_it_had_whatever_is_left_out(
    asked: list[Intent], data: st.DataObject
) -> None:
    """A rank that obeys the plan reads, of what a later command has set, what the recorded run had read."""
    steps = [10 * place for place in range(1, len(asked) + 1)]
    entries, seen = recorded_run(list(zip(steps, asked, strict=True)))
    removed = data.draw(st.integers(1, len(asked)))
    planned = plan(entries, uuid(removed))
    outcomes = {entry.record.uuid: entry.record for entry in entries if isinstance(entry.record, CommandSettled)}
    rank = PlainRank()
    for place, step in enumerate(steps):
        kept = rank.read()["weight_decay"]
        for item in (item for item in planned.scheduled if item.step == step):
            rank.obey(item.command.intent)
        if place + 1 < removed:
            assert rank.read() == seen[place]
        elif place + 1 > removed:
            outcome = outcomes[uuid(place + 1)]
            held, had = rank.read(), seen[place]
            for name in outcome.after or {}:
                if isinstance(had[name], list):
                    chosen = _set_groups(asked[place], name, outcome)
                    others = [at for at in range(2) if at not in chosen and name == "weight_decay"]
                    assert [held[name][at] for at in others] == [kept[at] for at in others], (name, planned)
                    assert [held[name][at] for at in chosen] == [had[name][at] for at in chosen], (name, planned)
                else:
                    assert held[name] == had[name], (name, planned)


def _set_groups(what: Intent, name: str, outcome: CommandSettled) -> list[int]:
    """The groups that a command has set: a weight decay of 0 is left alone where no group is named."""
    if isinstance(what, SetLearningRate):
        return [0, 1] if what.group is None else [1 if what.group == "no_decay" else int(what.group)]
    own = [change for change in what.changes if change.knob == name]  # type: ignore[union-attr]
    before = (outcome.before or {})[name]
    unnamed = [at for at in range(2) if before[at] != 0] if any(change.group is None for change in own) else []
    return sorted({*unnamed, *(change.group for change in own if change.group is not None)})

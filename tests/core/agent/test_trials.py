"""Trials of proposals: the better of two branches goes on, whatever happens on the way; what a person does wins."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from control_plane.core.model.commands import Command, Evaluate, SaveCheckpoint
from control_plane.core.model.errors import Conflict, NotAllowed
from control_plane.core.model.intents import Cancel, Rollback
from control_plane.core.model.proposals import TrialStarted
from control_plane.core.model.records import CommandAccepted, CommandSettled
from control_plane.core.rules import decisions
from control_plane.core.rules.agent import trials
from control_plane.core.rules.agent.proposals import expire_proposals
from control_plane.core.rules.agent.trials import MAX_SAVES, TRIED, loss_of
from control_plane.core.rules.branch_rules import stands_on
from control_plane.server.agent_views import agent_of
from tests.core.agent.test_proposals import HALVE, PROPOSAL, TENFOLD, sent
from tests.core.agent.trial_run import ACCEPT, LAST, SAVED, STEPS, Run, on_trial_branch
from tests.core.examples import committed, created, state_after, uuid


def test_a_better_one_is_adopted_and_the_run_stays_on_its_branch() -> None:
    run = Run(losses=(3.0, 2.75))
    begun = run.propose()
    assert [type(record).__name__ for record in begun] == [
        "CommandAccepted", "CommandSettled", "TrialStarted", "CommandAccepted",
    ]  # fmt: skip
    assert run.state.agent.proposals[uuid(PROPOSAL)].seq == 6
    run.train()
    verdict = run.verdict()
    assert (verdict.verdict, run.state.tree.head) == ("adopted", "trial-6")
    assert verdict.reason == ("trial: better by 0.25 (evaluation loss 3 without it, 2.75 with it, after 10 steps)")
    assert verdict.command is not None
    made = run.state.commands[verdict.command]
    assert (made.command.describe(), made.status, made.settled and made.settled.step) == ("lr x 0.5", "applied", SAVED)
    assert run.shown() == [
        "save checkpoint: applied",
        "evaluate: applied",
        "save checkpoint: applied",
        f"back to step-{SAVED}-g1 as trial-6, lr x 0.5: applied",
        "lr x 0.5: applied",
        "evaluate: applied",
    ]
    evaluated = [
        life.settled.step
        for life in run.state.commands.values()
        if isinstance(life.command.intent, Evaluate) and life.settled
    ]
    assert evaluated == [LAST, LAST]
    assert trials.next_records(run.state, ACCEPT) == []


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        ((3.0, 3.0), "evaluation loss 3 without it, 3 with it"),
        ((3.0, 3.5), "evaluation loss 3 without it, 3.5 with it"),
        ((3.0, float("nan")), "evaluation loss 3 without it, not finite with it"),
        ((float("inf"), None), "evaluation loss not finite without it, not finite with it"),
    ],
)
def test_one_that_is_not_better_is_left_behind(losses: tuple[Any, Any], sentence: str) -> None:
    run = Run(losses=losses)
    run.propose()
    run.train()
    verdict = run.verdict()
    assert (verdict.verdict, verdict.command) == ("not_better", None)
    assert verdict.reason == f"trial: not better ({sentence}, after 10 steps)"
    run.train(lambda run: run.state.tree.head == "main")
    assert run.step >= LAST, "it goes on where it was, without training those steps a third time"
    assert run.shown()[-1] == "switch to branch main: applied"


def test_a_finite_loss_is_better_than_none() -> None:
    run = Run(losses=(float("nan"), 9.0))
    run.propose()
    run.train()
    assert run.verdict().reason == ("trial: better (evaluation loss not finite without it, 9 with it, after 10 steps)")


@pytest.mark.parametrize(("reading", "loss"), [
    ({"eval_loss": 2.0}, 2.0), ({"eval_a_loss": 1.0, "eval_b_loss": 2.0}, 1.5), ({"eval_loss": None}, None),
    ({"eval_a_loss": 1.0, "eval_b_loss": float("inf")}, None), ({}, None),
])  # fmt: skip
def test_the_loss_of_an_evaluation(reading: dict[str, Any], loss: float | None) -> None:
    assert loss_of(reading) == loss


def test_high_risk_waits_for_a_person_and_is_tried_then() -> None:
    run = Run()
    assert not any(isinstance(record, TrialStarted) for record in run.propose(TENFOLD))
    run.send(sent(60, "answer_proposal", proposal=str(uuid(PROPOSAL)), approve=True, intent=HALVE))
    assert [life.command.describe() for life in run.state.commands.values()][-1] == "save checkpoint"
    run.train()
    assert (run.verdict().verdict, run.verdict().by, run.state.tree.head) == ("adopted", "ann", "trial-6")


def test_the_deadlines_default_is_tried_too_and_no_deadline_ends_a_trial() -> None:
    run = Run(settings={"mode": "suggest", "deadline_s": 60.0, "default": "approve"})
    run.propose()
    late = {uuid(PROPOSAL): 61.0}
    run.write(expire_proposals(run.state, late, ACCEPT))
    assert [each.is_on_trial for each in run.state.agent.open_proposals()] == [True]
    assert expire_proposals(run.state, late, ACCEPT) == []
    run.train()
    assert run.verdict().verdict == "adopted"


def test_what_cannot_begin_a_branch_is_made_without_a_trial() -> None:
    run = Run()
    run.propose({"kind": "evaluate"})
    assert run.verdict().verdict == "automatic"
    assert {"set_learning_rate", "set_knobs", "set_schedule"} <= TRIED
    assert not TRIED & {"pause", "stop", "evaluate", "rollback", "run_action"}


PERSON = sent(70, "set_learning_rate", value=0.01)


def test_a_persons_change_before_the_rollback_ends_it_and_nothing_is_undone() -> None:
    run = Run()
    run.propose()
    run.train(lambda run: run.step == SAVED + 5)
    run.send(PERSON)
    verdict = run.verdict()
    assert verdict.verdict == "abandoned"
    assert verdict.reason == "trial: 'lr = 0.01' was sent by ann meanwhile"
    run.train()
    run.train(lambda run: run.step > LAST + 5)
    assert run.state.tree.head == "main"
    assert not any(isinstance(life.command.intent, Rollback) for life in run.state.commands.values())
    assert run.shown() == [
        "save checkpoint: applied", "evaluate: cancelled", "save checkpoint: cancelled",
        *[f"cancel {trials.uuid_of(uuid(PROPOSAL), name)}: applied" for name in ("without", "kept-0")],
    ]  # fmt: skip


def test_a_persons_change_on_the_trials_branch_stays_there() -> None:
    run = Run(losses=(3.0, 4.0))
    run.propose()
    run.train(on_trial_branch)
    run.send(PERSON)
    run.train()
    run.train(lambda run: run.step > LAST + 5)
    assert run.verdict().verdict == "abandoned"
    assert (run.state.tree.head, run.state.commands[uuid(70)].status) == ("trial-6", "applied")


def test_a_persons_change_takes_back_a_rollback_that_waits() -> None:
    run = Run()
    run.propose()
    branch = trials.uuid_of(uuid(PROPOSAL), "branch")
    run.train(lambda run: branch in run.state.pending)
    run.send(PERSON)
    cancels = [life.command.intent for life in run.state.commands.values() if isinstance(life.command.intent, Cancel)]
    assert [each.command for each in cancels] == [branch]


def test_a_pause_and_its_end_are_no_change() -> None:
    run = Run()
    run.propose()
    run.train(lambda run: run.step == SAVED + 3)
    run.send(sent(71, "pause"))
    run.boundary()
    run.send(sent(72, "resume"))
    run.train()
    assert run.verdict().verdict == "adopted"


@pytest.mark.parametrize(("command", "verdict"), [
    (sent(60, "answer_proposal", proposal=str(uuid(PROPOSAL)), approve=False, note="no"), "rejected"),
    (sent(60, "withdraw_proposal", "agent", "pilot", proposal=str(uuid(PROPOSAL))), "withdrawn"),
    (sent(60, "stop_agent"), "abandoned"),
])  # fmt: skip
@pytest.mark.parametrize("when", [on_trial_branch, lambda run: run.step == SAVED + 3])
def test_it_is_ended_and_the_run_is_back_where_it_was(
    command: Command, verdict: str, when: Callable[[Run], bool]
) -> None:
    run = Run()
    run.propose()
    run.train(when)
    run.send(command)
    assert run.verdict().verdict == verdict
    run.train()
    run.train(lambda run: run.step > LAST + 5)
    assert run.state.tree.head == "main"


def test_on_trial_it_cannot_be_approved() -> None:
    run = Run()
    run.propose()
    with pytest.raises(Conflict, match="is on trial: saves a checkpoint"):
        run.send(sent(60, "answer_proposal", proposal=str(uuid(PROPOSAL)), approve=True))
    told = set()
    run.on_step = lambda run: told.update(view.trial for view in agent_of(run.state, {}).proposals)
    run.train()
    assert told - {None} == {
        "saves a checkpoint before 10 steps without it and with it",
        "without it until step 30",
        "goes back for the 10 steps with it",
        "with it until step 30",
    }


def test_another_change_of_the_agents_waits_for_its_end() -> None:
    run = Run()
    run.propose()
    (_, outcome) = run.propose({"kind": "set_learning_rate", "factor": 1.5}, 51)
    assert isinstance(outcome, CommandSettled)
    assert "proposal 6 is on trial" in str(outcome.reason)
    with pytest.raises(NotAllowed, match="as a proposal"):
        run.send(sent(52, "set_learning_rate", role="agent", author="pilot", factor=0.9))
    run.propose({"kind": "evaluate"}, 53)
    run.train()
    assert run.verdict().verdict == "adopted"
    run.propose({"kind": "set_learning_rate", "factor": 0.9}, 54)
    assert run.state.agent.tried == uuid(54)


def test_nobody_is_tried_while_the_run_is_on_its_way_back() -> None:
    run = Run(losses=(3.0, 4.0))
    run.propose()
    run.train(lambda run: trials.uuid_of(uuid(PROPOSAL), "return") in run.state.pending)
    (_, outcome) = run.propose(HALVE, 51)
    assert isinstance(outcome, CommandSettled)
    assert "on its way back" in str(outcome.reason)


@pytest.mark.parametrize(("kind", "reason"), [
    ("evaluate", "trial: the run could not be evaluated: no evaluation set"),
    ("rollback", "trial: the run could not go back to the checkpoint: no evaluation set"),
])  # fmt: skip
def test_what_the_ranks_cannot_do_ends_it(kind: str, reason: str) -> None:
    run = Run(refuses=lambda command, step: "no evaluation set" if command.intent.kind == kind else None)
    run.propose()
    run.train()
    assert (run.verdict().verdict, run.verdict().reason, run.state.tree.head) == ("abandoned", reason, "main")


def test_a_save_that_was_refused_is_tried_again_later() -> None:
    def busy(command: Command, step: int) -> str | None:
        return "another is being written" if isinstance(command.intent, SaveCheckpoint) and step < SAVED + 6 else None

    run = Run(refuses=busy)
    run.propose()
    run.train()
    saves = [
        (life.status, life.settled.step if life.settled else None)
        for life in run.state.commands.values()
        if isinstance(life.command.intent, SaveCheckpoint)
    ]
    assert saves == [
        ("rejected", SAVED), ("rejected", SAVED + 1), ("rejected", SAVED + 3), ("applied", SAVED + 7),
        ("applied", SAVED + 7 + STEPS),
    ]  # fmt: skip
    assert run.verdict().verdict == "adopted"


def test_saves_that_never_succeed_end_it() -> None:
    run = Run(refuses=lambda command, step: "no room" if isinstance(command.intent, SaveCheckpoint) else None)
    run.propose()
    run.train(lambda run: run.state.agent.proposals[uuid(PROPOSAL)].closed)
    assert run.verdict().reason == "trial: no checkpoint could be saved: no room"
    assert len([each for each in run.shown() if each.startswith("save")]) == MAX_SAVES


def test_too_few_steps_are_left() -> None:
    run = Run(total_steps=SAVED + STEPS, settings={"trial_steps": STEPS + SAVED})
    (_, outcome) = run.propose()
    assert isinstance(outcome, CommandSettled)
    assert outcome.reason == "a trial takes 30 steps, and the run ends at step 30: too few are left"
    run = Run(total_steps=LAST)
    run.propose()
    run.train(lambda run: run.state.agent.proposals[uuid(PROPOSAL)].closed)
    assert run.verdict().reason == "trial: it takes until step 30, and the run ends at step 30"


@pytest.mark.parametrize("at", range(1, 25))
def test_a_failure_at_any_boundary_changes_nothing_of_the_outcome(at: int) -> None:
    """The trainers are gone at one boundary and begin again from the branch's newest checkpoint."""
    run, boundaries = Run(), 0
    run.propose()

    def fail(run: Run) -> None:
        nonlocal boundaries
        boundaries += 1
        if boundaries == at:
            number = run.state.generation_number
            run.write(decisions.fail_generation(run.state, number, run.step, 1.0, ()))
            run.go_on()
            own = [each for each in run.state.checkpoints.usable() if each.branch == run.state.tree.head]
            base = max(own, key=lambda each: each.step, default=None)
            base = base or run.state.checkpoints.find(run.state.tree.branches[run.state.tree.head].checkpoint)
            run.step = base.step if base else 0
            run.begin(run.step, base.checkpoint if base else None)

    run.on_step = fail
    run.train()
    assert boundaries >= at or at > 22
    assert (run.verdict().verdict, run.state.tree.head) == ("adopted", "trial-6")


def test_the_journal_alone_is_enough_at_every_entry() -> None:
    """A control server that begins anew after any entry goes on to the same end, with the same uuids."""
    run = Run(losses=(3.0, 4.0))
    run.propose()
    run.train()
    run.train(lambda run: run.state.tree.head == "main")
    known = {entry.record.command.uuid for entry in run.entries if isinstance(entry.record, CommandAccepted)}
    for cut in range(4, len(run.entries)):
        state = state_after(created(), *[entry.record for entry in run.entries[:cut]])
        for record in trials.next_records(state, ACCEPT):
            sent_uuid: UUID | None = record.command.uuid if isinstance(record, CommandAccepted) else None
            assert sent_uuid is None or sent_uuid in known


def test_the_checkpoint_to_return_to_is_not_let_go_of() -> None:
    run = Run()
    run.propose()
    run.train(lambda run: run.step > SAVED + 2)
    run.write([committed(SAVED + 2)])
    assert f"step-{SAVED}-g1" in stands_on(run.state)


def test_the_end_of_the_run_closes_it() -> None:
    run = Run()
    run.propose()
    run.write(decisions.close_run(run.state, "failed", "the disk is full"))
    run.go_on()
    assert run.verdict().verdict == "expired"

"""The guarded rule on synthetic loss curves."""

import math
from collections.abc import Callable

import pytest

from control_plane.agent.loop import AgentOptions, run_agent
from control_plane.agent.policy import AgentAction, Decision, Observation
from control_plane.agent.rules.guarded import Memory, Patience, look
from tests.agent.simulated import NoisyModel, Quadratic, SimulatedRun, observed

MODELS: dict[str, Callable[[], Callable[[float], float]]] = {
    "noisy": lambda: NoisyModel().step,
    "quadratic": lambda: Quadratic().step,
}


def looks(*windows: list[float], changed_at: tuple[int | None, ...] = ()) -> list[Decision]:
    """The rule's decisions on these windows of losses, one after the other."""
    memory, decisions, step = Memory(), [], 1
    for index, window in enumerate(windows):
        at = changed_at[index] if index < len(changed_at) else None
        memory, decision = look(memory, observed(window, first_step=step, changed_at=at))
        decisions.append(decision)
        step += len(window)
    return decisions


def actions(*windows: list[float], changed_at: tuple[int | None, ...] = ()) -> list[str]:
    return [decision.action.value for decision in looks(*windows, changed_at=changed_at)]


def test_look_at_a_plateau_halves_when_patience_is_over() -> None:
    assert actions(*[[6.0, 6.1, 5.9]] * 3) == ["keep", "keep", "halve"]


def test_look_at_a_long_steady_fall_doubles() -> None:
    assert actions(*[[5.0 - 0.1 * i] * 3 for i in range(5)]) == ["keep"] * 4 + ["double"]


def test_look_at_one_noisy_window_in_a_fall_keeps() -> None:
    assert actions([5.0], [4.8], [4.81], [4.6], [4.61], [4.4]) == ["keep"] * 6


def test_look_at_a_divergence_halves_at_once() -> None:
    assert actions([3.0] * 5, [9.0] * 5) == ["keep", "halve"]


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_look_at_a_loss_that_is_not_finite_halves_at_once(lost: float) -> None:
    assert actions([3.0, 3.0, 3.0, lost]) == ["halve"]


def test_look_at_one_overflow_among_many_losses_is_not_a_divergence() -> None:
    assert actions([3.0, math.inf, 3.0, 3.0, 3.0, 3.0]) == ["keep"]


def test_look_after_a_change_measures_from_there() -> None:
    # 4.0 is far from the best ever (3.0), but after the change it is falling, so the rule lets it fall.
    assert actions([3.0], [9.0], [5.0], [4.5], [4.0], changed_at=(None, None, 2, 2, 2)) == [
        "keep", "halve", "keep", "keep", "keep",
    ]  # fmt: skip


def test_look_at_a_recovery_does_not_double_before_the_best_is_reached_again() -> None:
    falling = [[9.0 - 0.5 * i] for i in range(8)]  # 9.0 ... 5.5: six good looks, all above the 3.0 it once had
    assert "double" not in actions([3.0], *falling, changed_at=(None, 2, *[2] * 7))


def test_look_when_halving_brought_no_finite_loss_back_asks_for_a_checkpoint() -> None:
    decisions = looks(*[[math.nan] * 3] * 5, changed_at=(None, 3, 6, 9, 9))
    assert [decision.action.value for decision in decisions] == ["halve", "halve", "halve", "keep", "keep"]
    assert "restore a checkpoint" in decisions[-1].reason


def test_look_when_many_changes_did_not_help_stops_changing() -> None:
    changes = (None, None, None, *[at for at in range(3, 30) for _ in range(2)])
    seen = actions(*[[6.0]] * 24, changed_at=changes)
    assert seen.count("halve") == 6
    assert seen[-6:] == ["keep"] * 6


def test_look_without_new_losses_keeps() -> None:
    memory, _ = look(Memory(), observed([3.0, 3.0]))
    again, decision = look(memory, observed([3.0, 3.0]))
    assert (again, decision.action) == (memory, AgentAction.KEEP)


def test_look_after_a_rollback_starts_anew() -> None:
    memory, _ = look(Memory(), observed([2.0] * 50))
    memory, decision = look(memory, observed([4.0] * 5, generation=1))
    assert (memory.best, memory.generation, decision.action) == (4.0, 1, AgentAction.KEEP)


def test_look_with_more_patience_waits_longer() -> None:
    patience, memory, seen = Patience(bad_looks=4), Memory(), []
    for index in range(5):
        observation: Observation = observed([6.0], first_step=index + 1)
        memory, decision = look(memory, observation, patience)
        seen.append(decision.action.value)
    assert seen == ["keep"] * 4 + ["halve"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("lr", [5e-3, 1e-2, 2e-2])
def test_rule_from_a_learning_rate_far_too_high_recovers_and_doing_nothing_does_not(model: str, lr: float) -> None:
    idle, steered = SimulatedRun(lr, MODELS[model]()), SimulatedRun(lr, MODELS[model]())
    idle.train(idle.total_steps)
    run_agent(steered, "r", AgentOptions(), say=lambda line: None, environ={}, wait=lambda seconds: None)
    without, with_rule = (sum(run.losses[-20:]) / 20 for run in (idle, steered))
    shown = f"{model} from {lr}: final loss {with_rule:.3f} with the rule, {without:.3f} without; lr {steered.lr:.3g}"
    assert steered.lr < lr / 4, shown
    assert math.isfinite(with_rule), shown
    assert not without <= with_rule * 1.05, shown


@pytest.mark.parametrize(("model", "lr"), [("noisy", 1e-3), ("noisy", 3e-4), ("quadratic", 1e-3)])
def test_rule_from_a_good_learning_rate_does_no_harm(model: str, lr: float) -> None:
    idle, steered = SimulatedRun(lr, MODELS[model]()), SimulatedRun(lr, MODELS[model]())
    idle.train(idle.total_steps)
    run_agent(steered, "r", AgentOptions(), say=lambda line: None, environ={}, wait=lambda seconds: None)
    without, with_rule = (sum(run.losses[-20:]) / 20 for run in (idle, steered))
    assert with_rule <= without * 1.02, f"final loss {with_rule:.3f} with the rule, {without:.3f} without"

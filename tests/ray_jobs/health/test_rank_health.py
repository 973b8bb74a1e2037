"""Health of a rank without ranks: order of looks and gathers, restored state, checks that fail, a script's own loop."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from control_plane.api.messages import Point
from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.health import HealthChange
from ray_jobs.health import rank_health
from ray_jobs.health.rank_health import GATHER_STEPS, LAYER_STEPS, RankHealth
from ray_jobs.health.step_signs import evaluation_sign
from ray_jobs.loop.live import PlainLoop, live
from ray_jobs.rank.plan import FROM_THE_BEGINNING
from ray_jobs.rank.session import RankSession

STEPS = 34
Looks = list[tuple[int, dict[str, float], dict[str, list[float]]]]


class Alone:
    """Collectives of one rank, or of one that hears itself twice."""

    rank = 0

    def __init__(self, world_size: int) -> None:
        self.world_size, self.gathers = world_size, 0

    def start_gather_floats(self, values: list[float]) -> Callable[[], Any]:
        self.gathers += 1
        return lambda: np.array([values] * self.world_size)


class Line:
    """Link that keeps what it is given."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.changes: list[HealthChange] = []

    def measure(self, points: Sequence[Point]) -> None:
        self.points += points

    def health(self, change: HealthChange) -> None:
        self.changes.append(change)


class Net(nn.Module):
    """Net of a stranger: no blocks, a functional activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


class Loop:
    """Script's own loop on one rank, with everything that a session does for its health."""

    def __init__(self, world_size: int = 2, settings: dict[str, Any] | None = None, saved: Any = None) -> None:
        torch.manual_seed(3)
        self.net = Net()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05)
        self.loop = PlainLoop(STEPS)
        self.training = live(self.loop, self.net, self.optimizer)
        self.line, self.collectives = Line(), Alone(world_size)
        session = RankSession(self.collectives, self.line)  # type: ignore[arg-type]
        if saved is not None:
            self.training.health.restored = saved["health"]
            self.net.load_state_dict(saved["net"])
            self.loop.step = saved["step"]
        given = HealthSettings.model_validate({"hook_steps": 10} | (settings or {}))
        self.health = RankHealth(self.training, session, given, FROM_THE_BEGINNING)
        self.health.signs.clock.watch(self.net)
        self.looks: Looks = []
        monitor: Any = self.health._monitor
        judge = monitor.observe

        def observe(step: int, signs: dict[str, float], by_rank: Any, **how: bool) -> HealthChange:
            self.looks.append((step, dict(signs), {name: list(row) for name, row in by_rank.items()}))
            return judge(step, signs, by_rank, **how)

        monitor.observe = observe

    def make(self, steps: int, spoiled: int = 0) -> None:
        """Make steps; the samples depend on the step alone."""
        for _ in range(steps):
            step = self.loop.step + 1
            self.health.begin_step(step)
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
            loss = (self.net(x) - x.sum(dim=1, keepdim=True)).square().mean() * (
                float("nan") if step == spoiled else 1.0
            )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.loop.step = step
            self.health.signs.end_of_loop({"loss": loss})
            self.health.end_step(step)
            self.health.signs.begin()

    def save(self) -> Any:
        """Settle, and return what a checkpoint would hold, through JSON."""
        self.health.settle()
        net = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        return {"health": json.loads(json.dumps(self.training.health.state())), "net": net, "step": self.loop.step}


def steady(looks: Looks) -> list[Any]:
    """What of the looks does not come from a clock."""
    kinds = ("loss", "loss_local", "grad_norm", "lr", "skipped_steps")
    families = ("weight_norm/", "layer_grad_norm/", "update_", "dormant/", "hidden_std/")
    return [
        (step, {k: v for k, v in signs.items() if k in kinds or k.startswith(families)}, by_rank.get("loss"))
        for step, signs, by_rank in looks
    ]


def test_every_step_is_judged_once_one_boundary_later_and_gathers_come_with_the_next_look() -> None:
    run = Loop()
    run.make(STEPS)
    assert [step for step, _, _ in run.looks] == list(range(1, STEPS))
    gathered = [step for step, _, by_rank in run.looks if by_rank]
    assert gathered == [step + 1 for step in range(GATHER_STEPS, STEPS - 1, GATHER_STEPS)]
    with_layers = [step for step, signs, _ in run.looks if "weight_norm/first" in signs]
    assert with_layers == [step + 1 for step in range(LAYER_STEPS, STEPS - 1, LAYER_STEPS)]
    run.health.close()
    assert run.looks[-1][0] == STEPS


@pytest.mark.parametrize("saved_at", range(8, 17))
def test_a_run_restored_from_any_step_looks_at_what_an_undisturbed_one_looks_at(saved_at: int) -> None:
    undisturbed = Loop()
    undisturbed.make(STEPS)
    first = Loop()
    first.make(saved_at)
    saved = first.save()
    again = Loop(saved=saved)
    again.make(STEPS - saved_at)
    assert steady(first.looks + again.looks) == steady(undisturbed.looks)
    assert again.health.state()["monitor"].keys() == undisturbed.health.state()["monitor"].keys()


def test_a_save_changes_no_look() -> None:
    undisturbed, saving = Loop(), Loop()
    undisturbed.make(STEPS)
    for _ in range(STEPS):
        saving.make(1)
        saving.save()
    assert steady(saving.looks) == steady(undisturbed.looks + [look for look in saving.looks if look[0] == STEPS])


def test_a_loss_that_is_no_number_is_reported_and_no_checkpoint_behind_it_is_trusted() -> None:
    run = Loop()
    run.make(12, spoiled=12)
    assert run.health.trust()[0] != "suspect"
    run.save()
    (alert,) = [alert for change in run.line.changes for alert in change.raised]
    assert (alert.kind, alert.onset_step) == ("non_finite", 12)
    assert run.health.trust()[0] == "suspect"


def test_a_restored_run_does_not_raise_again_what_is_open() -> None:
    run = Loop()
    run.make(12, spoiled=12)
    again = Loop(saved=run.save())
    again.make(3)
    assert [change for change in again.line.changes if change.raised] == []
    assert again.health.trust()[0] == "suspect"


def test_checks_that_fail_cost_no_training_and_no_checkpoint_is_called_trusted() -> None:
    run = Loop()
    monitor: Any = run.health._monitor
    monitor.observe = lambda *unused, **how: 1 / 0
    run.make(STEPS)
    assert run.loop.step == STEPS
    assert run.health.trust() == ("unknown", ("the checks have failed",))


def test_state_of_an_unknown_shape_begins_with_empty_windows() -> None:
    run = Loop(saved=Loop().save() | {"health": {"monitor": {"version": 1}, "arrived": 7}})
    run.make(12)
    assert len(run.looks) == 11


def test_signs_are_charted_seldom_and_none_that_the_script_logs_itself() -> None:
    run = Loop(world_size=1)
    run.health.logged = lambda: frozenset({"loss"})
    run.make(STEPS)
    charted = {point.name: [] for point in run.line.points}  # type: ignore[var-annotated]
    for point in run.line.points:
        charted[point.name].append(point.step)
    assert charted["loss_local"] == charted["weight_norm/first"] == charted["dormant/second"] == [10, 20, 30]
    assert "loss" not in charted
    assert all(len(name) <= 64 for name in charted)


def test_signs_that_are_switched_off_are_not_measured() -> None:
    run = Loop(settings={"signs": {"layers": False, "hooks": False, "memory": False}})
    run.make(STEPS)
    names = {name for _, signs, _ in run.looks for name in signs}
    assert not [name for name in names if name.startswith(("weight_norm", "dormant", "memory"))]
    assert len(run.health.layout) == 1 + len(rank_health.VectorLayout(()).names[1:])


def test_the_gradient_norm_of_a_scripts_loop_is_that_of_its_gradients_or_what_it_tells() -> None:
    run = Loop()
    run.make(3)
    expected = float(torch.cat([one.grad.reshape(-1) for one in run.net.parameters() if one.grad is not None]).norm())
    run.health.settle()
    assert run.looks[-1][1]["grad_norm"] == pytest.approx(expected, rel=1e-5)
    run.health.signs.note("grad_norm", 17.0)
    run.make(1)
    run.health.settle()
    assert run.looks[-1][1]["grad_norm"] == 17.0


def test_leaving_takes_every_hook_down() -> None:
    run = Loop()
    run.make(3)
    run.health.leave()
    assert not run.optimizer._optimizer_step_pre_hooks
    assert not run.net._forward_hooks
    assert not run.net._forward_pre_hooks


@pytest.mark.parametrize(
    ("metric", "sign"),
    [
        ("eval_loss", "eval/all_loss"),
        ("eval_web_loss", "eval/web_loss"),
        ("eval_heldout_2023_loss", "heldout/2023_loss"),
        ("eval_accuracy", None),
        ("loss", None),
    ],
)
def test_evaluation_losses_have_the_names_of_the_catalogue(metric: str, sign: str | None) -> None:
    assert evaluation_sign(metric) == sign


def charted_after(saved: Any) -> set[str]:
    """Return the names of what a run charts first that goes on from a checkpoint."""
    run = Loop(saved=saved)
    run.make(2)
    return {point.name for point in run.line.points}


def test_gather_that_a_checkpoint_holds_is_not_charted_beside_what_the_script_had_logged() -> None:
    run = Loop()
    run.health.logged = lambda: frozenset({"loss"})
    run.make(10)
    saved = run.save()
    assert saved["health"]["arrived"]["step"] == 10
    names = charted_after(saved)
    assert "weight_norm/first" in names
    assert "loss" not in names, "the script's own loss of step 10 is there"
    unknown = saved | {"health": saved["health"] | {"logged": []}}
    assert "loss" in charted_after(unknown), "else this test would show nothing"

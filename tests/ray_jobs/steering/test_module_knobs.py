"""The numbers of a model's modules as knobs: found by patterns, and all dropouts together."""

import pytest
from torch import nn

from control_plane.core.model.commands import Change
from control_plane.core.model.limits import Limit
from ray_jobs.steering.knobs import Knobs, KnobsApplier
from ray_jobs.steering.module_knobs import MAX_MODULES, register_module_knobs
from tests.ray_jobs.steering.test_knobs import command, refusal


class Block(nn.Module):
    """Numbers, and what only looks like one."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.drop, self.linear = nn.Dropout(p), nn.Linear(2, 2)
        self.scale, self.width, self.causal, self._private = 2.0, 2, True, 1.0


class Net(nn.Module):
    """A model of blocks."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.h = nn.ModuleList([Block(p) for p in probabilities])


def module_knobs(model: nn.Module, **limits: Limit) -> Knobs:
    knobs = Knobs(limits)
    register_module_knobs(knobs, model)
    return knobs


def probabilities(model: Net) -> list[float]:
    return [block.drop.p for block in model.h]  # type: ignore[union-attr,misc]


def test_a_pattern_sets_what_it_matches() -> None:
    model = Net(0.1, 0.1, 0.1)
    applied = KnobsApplier(module_knobs(model)).apply(command(Change(knob="h.[12].drop:p", value=0.3)), 1)
    assert probabilities(model) == [0.1, 0.3, 0.3]
    assert applied.before == {"h.1.drop:p": 0.1, "h.2.drop:p": 0.1, "dropout": 0.1}
    assert applied.after == {"h.1.drop:p": 0.3, "h.2.drop:p": 0.3, "dropout": None}


@pytest.mark.parametrize("name", ["h.0:width", "h.0:causal", "h.0:_private", "h.0.linear:weight", "h.0:drop", "x:p"])
def test_what_is_no_public_float_of_a_module_is_no_knob(name: str) -> None:
    assert "there is no knob" in refusal(module_knobs(Net(0.1)), Change(knob=name, value=0.5))


def test_a_number_of_a_module_has_no_bounds_and_a_dropout_has() -> None:
    knobs = module_knobs(Net(0.1))
    assert refusal(knobs, Change(knob="h.0:scale", value=-7.0)) == ""
    assert "below 1" in refusal(knobs, Change(knob="h.0.drop:p", value=1.0))


def test_all_dropouts_are_one_knob_while_they_agree() -> None:
    model = Net(0.1, 0.1)
    knobs = module_knobs(model)
    applier = KnobsApplier(knobs)
    applier.apply(command(Change(knob="dropout", value=0.2)), 1)
    assert probabilities(model) == [0.2, 0.2]
    assert knobs.readings() == {"dropout": 0.2}
    applier.apply(command(Change(knob="h.0.drop:p", value=0.3)), 2)
    assert knobs.readings() == {"h.0.drop:p": 0.3, "h.1.drop:p": 0.2}
    assert "no one value" in refusal(knobs, Change(knob="dropout", value=0.1))
    assert module_knobs(Net(0.1, 0.2)).readings() == {}


def test_dropouts_are_recalled_whichever_way_they_were_set() -> None:
    old, new = Net(0.1, 0.1, 0.1), Net(0.1, 0.1, 0.1)
    knobs = module_knobs(old)
    KnobsApplier(knobs).apply(command(Change(knob="dropout", value=0.2)), 1)
    KnobsApplier(knobs).apply(command(Change(knob="h.1.*:p", value=0.3)), 2)
    recalled = module_knobs(new)
    recalled.recall(knobs.memory())
    assert probabilities(new) == probabilities(old) == [0.2, 0.3, 0.2]
    assert recalled.memory() == knobs.memory()


def test_a_limit_binds_by_whichever_name_a_dropout_is_set() -> None:
    together, apart = {"dropout": Limit(max=0.3)}, {"h.0.*:p": Limit(max=0.3)}
    for limits in (together, apart):
        for name in ("dropout", "h.0.drop:p", "*:p"):
            assert "at most 0.3" in refusal(module_knobs(Net(0.1, 0.1), **limits), Change(knob=name, value=0.4))


def test_a_pattern_that_matches_too_many_modules_is_refused() -> None:
    model = nn.ModuleList([nn.Dropout(0.1) for _ in range(MAX_MODULES + 1)])
    assert f"matches {MAX_MODULES + 1} modules" in refusal(module_knobs(model), Change(knob="*:p", value=0.2))


@pytest.mark.parametrize("pattern", ["*:p", "h.[0].drop:p", "h.0.drop:p"])
def test_role_of_a_limit_holds_for_every_knob_that_a_pattern_covers(pattern: str) -> None:
    for limits in ({"dropout": Limit(roles=("admin",))}, {"h.0.drop:p": Limit(roles=("admin",))}):
        applier = KnobsApplier(module_knobs(Net(0.1, 0.1), **limits))
        change = command(Change(knob=pattern, value=0.2))
        told = applier.check(change.model_copy(update={"role": "agent"})) or ""
        assert f"{next(iter(limits))} may be changed by admin, not by agent" in told
        assert applier.check(change.model_copy(update={"role": "admin"})) is None


def test_all_dropouts_are_bound_by_the_role_of_one_of_them() -> None:
    knobs = module_knobs(Net(0.1, 0.1), **{"h.1.drop:p": Limit(roles=("admin",))})
    change = command(Change(knob="dropout", value=0.2)).model_copy(update={"role": "agent"})
    assert "h.1.drop:p may be changed by admin" in (KnobsApplier(knobs).check(change) or "")


@pytest.mark.parametrize("again", ["*:p", "h.[1].drop:p", "dropout"])
def test_cool_down_of_all_dropouts_holds_for_each_and_not_for_what_is_repeated(again: str) -> None:
    time, repeats = [100.0], False
    knobs = module_knobs(Net(0.1, 0.1), dropout=Limit(cool_down_s=60))
    applier = KnobsApplier(knobs, lambda command: repeats, lambda: time[0])
    change = command(Change(knob="*:p", value=0.2))
    applier.apply(change, 1)
    time[0] += 10
    told = applier.check(command(Change(knob=again, value=0.3))) or ""
    assert "dropout was changed 10 s ago" in told
    assert "try again in 50 s" in told
    repeats = True
    assert applier.check(command(Change(knob=again, value=0.3))) is None
    repeats = False
    applier.undo(change)
    assert applier.check(command(Change(knob=again, value=0.3))) is None


def test_cool_down_ends() -> None:
    time = [100.0]
    knobs = module_knobs(Net(0.1, 0.1), dropout=Limit(cool_down_s=60))
    applier = KnobsApplier(knobs, clock=lambda: time[0])
    applier.apply(command(Change(knob="h.0.drop:p", value=0.2)), 1)
    time[0] += 61
    assert applier.check(command(Change(knob="*:p", value=0.3))) is None

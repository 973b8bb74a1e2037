"""Automatic mixture over a real control server: measured, proposed, made by the grant of the limits, applied."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from control_plane.agent.judging.cadence import idle_s
from control_plane.agent.loop import Autopilot, run_agent
from control_plane.agent.measured import Measured
from control_plane.agent.mixing import MAX_POINTS, SourceSeries, share_exponent, sources_seen
from control_plane.agent.options import options_of
from control_plane.agent.rules.mixture_formulas import FLOOR
from control_plane.agent.rules.power_law import PowerLaw
from control_plane.api.messages import Measurements, Point
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents.agent import AgentSettings, Propose
from control_plane.core.model.intents.data import SetMixture
from control_plane.core.model.proposals import ProposalClosed
from control_plane.gateway.routes import MAX_NAMES
from tests.agent.trainee import HereClient, Trainee, own_loop

BATCH = 16
CURVES = {"useful": PowerLaw(1.0, 40.0, 0.4), "noise": PowerLaw(6.0, 0.0, 0.5), "fresh": PowerLaw(2.0, 9.0, 0.3)}
GRANT = {"mixture/*": {"roles": ["operator", "admin", "agent"]}}


class Mixing(Trainee):
    """Simulated ranks whose samples come from sources, with the loss of each by its own learning curve."""

    step_s = 0.0

    def __init__(self, root: Path, limits: dict[str, Any] = GRANT, total_steps: int = 1200) -> None:
        self.weights, self.drawn = {"useful": 0.5, "noise": 0.5}, {"useful": 0.0, "noise": 0.0}
        from control_plane.core.model.limits import Limit

        of_run = {name: Limit.model_validate(each) for name, each in limits.items()}
        about: dict[str, Any] = {"limits": of_run, "facts": {"mixture": self.mixture}}
        super().__init__(root, "run-1", 1e-3, own_loop(), lambda lr: 2.0, total_steps, **about)

    @property
    def mixture(self) -> dict[str, Any]:
        """What the ranks read back."""
        total = sum(self.weights.values())
        return {
            name: {"weight": weight, "share": weight / total, "records": 1000, "live": False}
            for name, weight in self.weights.items()
        }

    @property
    def knobs(self) -> dict[str, Any]:
        return super().knobs | {"mixture": self.mixture}

    def train(self, steps: int, **further: float) -> None:
        """Make steps; of every tenth the sources' losses and counts are measured."""
        for _ in range(steps):
            self.settle()
            for name, source in self.mixture.items():
                self.drawn[name] += BATCH * source["share"]
            losses = {f"source_loss/{name}": CURVES[name].loss(count) for name, count in self.drawn.items() if count}
            counts = {f"source_samples/{name}": count for name, count in self.drawn.items()}
            timed = {"own_step_s": self.step_s} if self.step_s else {}
            super().train(1, **timed, **(losses | counts if (self.step + 1) % 10 == 0 else {}))

    def _apply(self, intent: Any) -> None:
        if isinstance(intent, SetMixture):
            self.weights |= intent.weights


def steered(trainee: Mixing, until: int, **settings: Any) -> tuple[Autopilot, list[str]]:
    chosen = AgentSettings.model_validate(settings)
    trainee.start_agent(**settings)
    said: list[str] = []
    pilot = Autopilot(HereClient(trainee, steps_per_poll=10), "run-1", options_of(chosen), said.append, None)  # type: ignore[arg-type]
    while trainee.step < until:
        assert pilot.poll() is None
    return pilot, said


def test_a_whole_round_of_ado_and_a_new_source_begins_at_the_floor(tmp_path: Path) -> None:
    trainee = Mixing(tmp_path)
    pilot, said = steered(trainee, 600, policy="ado")
    proposals = [command.intent for command in trainee.sent_by_agents() if isinstance(command.intent, Propose)]
    changes = [command.intent for command in trainee.changes_by_agents()]
    verdicts = {e.record.verdict for e in trainee.entries() if isinstance(e.record, ProposalClosed)}
    assert verdicts == {"automatic"}, "made at once, in mode guarded: the owner's limit grants the weights"
    assert len(proposals) == len(changes) == pilot.applied
    looks = [each.step for each in proposals if each.step is not None]
    assert all(later - earlier >= 50 for earlier, later in pairwise(looks)), looks
    assert looks[0] >= 200
    assert all(isinstance(intent, SetMixture) for intent in changes)
    assert trainee.mixture["useful"]["share"] > 0.6
    assert trainee.mixture["noise"]["share"] >= FLOOR
    assert trainee.lr == 1e-3
    assert any("lets an agent" in line or "limit mixture/*" in line for line in said), "what it needs is said at start"
    # A source that comes: its own weight holds until the next look, then the floor.
    trainee.weights["fresh"], trainee.drawn["fresh"] = 1.0, 0.0
    trainee.send({"kind": "set_mixture", "weights": {"fresh": 1.0}})
    while trainee.step < 720:
        pilot.poll()
    assert trainee.mixture["fresh"]["share"] == pytest.approx(FLOOR, abs=1e-4)


def test_without_a_limit_for_agents_it_cannot_be_started_and_people_answer_in_suggest(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"needs 'limits: \{mixture/\*: \{roles: \[operator, admin, agent\]\}\}'"):
        Mixing(tmp_path, {"lr": {"max": 1.0}}).start_agent(policy="odm")
    trainee = Mixing(tmp_path / "granted")
    steered(trainee, 400, policy="uniform", mode="suggest")
    assert not trainee.sent_by_agents(), "shares are equal already"
    trainee.send({"kind": "stop_agent"})
    trainee.send({"kind": "set_mixture", "weights": {"noise": 2.0}})
    pilot, _ = steered(trainee, 600, policy="natural", mode="suggest")
    (proposed,) = (command.intent for command in trainee.sent_by_agents())
    assert isinstance(proposed, Propose)
    assert proposed.intent == SetMixture(weights={"useful": 0.5, "noise": 0.5}), "the weights that they had first"
    assert pilot.applied == 0
    assert trainee.weights["noise"] == 2.0


def test_a_policy_of_mixtures_does_not_ask_while_nothing_can_be_due(tmp_path: Path) -> None:
    trainee = Mixing(tmp_path)
    trainee.step_s = 0.1
    pilot, _ = steered(trainee, 110, policy="natural")
    assert pilot._looked_at >= 50
    left = pilot._looked_at + 50 - trainee.step
    assert left > 0
    assert pilot.idle_s == pytest.approx(0.1 * left)
    assert idle_s(30, {"own_step_s": math.nan}) == idle_s(30, {}) == idle_s(-1, {"own_step_s": 0.1}) == 0.0
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 8:
            raise KeyboardInterrupt

    options = options_of(AgentSettings.model_validate({"policy": "natural"}))
    run_agent(HereClient(trainee, steps_per_poll=10), "run-1", options, lambda line: None, wait=wait)  # type: ignore[arg-type]
    assert 1.0 < max(waits) <= 5.0
    assert min(waits) >= 1.0


def test_settings_of_mixtures_and_their_defaults() -> None:
    ado = AgentSettings.model_validate({"policy": "ado"})
    assert (ado.every_steps, ado.max_changes) == (50, 1000)
    assert AgentSettings.model_validate(ado.model_dump()) == ado
    given = AgentSettings.model_validate({"policy": "odm", "every_steps": 10, "max_changes": 3})
    assert (given.every_steps, given.max_changes) == (10, 3)
    assert AgentSettings().every_steps == 25


def test_series_follow_a_rollback_and_stay_short() -> None:
    series = SourceSeries()
    for step in range(1, 2 * MAX_POINTS):
        series.take("source_loss/a", step, float(step))
    steps = [step for step, _ in series.of("source_loss/a")]
    assert len(steps) <= MAX_POINTS
    assert (steps[0], steps == sorted(steps)) == (1, True)
    series.take("source_loss/a", 50, 0.5)
    assert series.of("source_loss/a")[-1] == (50, 0.5)
    series.take("loss", 1, 1.0)
    assert series.of("loss") == ()
    seen = sources_seen({"a": {"weight": 4.0, "share": 0.8, "records": 3}, "b": {"weight": "x"}}, {"a": 1.0}, series)
    assert (seen.keys(), seen["a"].prior, seen["a"].losses[-1]) == ({"a"}, 1.0, (50, 0.5))
    assert share_exponent({"a": {"weight": 4.0, "share": 2 / 3}, "b": {"weight": 1.0, "share": 1 / 3}}) == 0.5


def test_of_more_sources_than_a_request_has_names_for_everything_is_read() -> None:
    class Reader:
        asked: tuple[str, ...] = ("none",)

        def metrics(self, run: str, after: int = 0, limit: int = 0, names: tuple[str, ...] = ()) -> Measurements:
            self.asked = names
            return Measurements(points=(Point(step=1, name="source_loss/s3", value=2.0, time_s=0.0),), cursor=1)

    reader, measured = Reader(), Measured(10)
    measured.read(reader, "run-1", [f"s{number}" for number in range(20)])
    assert len(reader.asked) == MAX_NAMES
    measured.read(reader, "run-1", [f"s{number}" for number in range(21)])
    assert reader.asked == ()
    assert measured.sources.of("source_loss/s3") == ((1, 2.0),)

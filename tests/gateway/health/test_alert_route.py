"""Route of alerts, and the commands about them: who may, and what they answer."""

import pytest

from control_plane.api.messages import Alerts, Report
from control_plane.core.model.health import Evidence, HealthChange
from tests.core.examples import alert
from tests.gateway.conftest import Rig
from tests.gateway.rig import RUN, bearer

NAN = alert("non_finite", level="critical", evidence=(Evidence(sign="loss", value=float("nan")),))


def raise_both(rig: Rig) -> None:
    """Two alerts, one of which somebody has seen."""
    rig.call(rig.server.report, Report(generation=1, health=(HealthChange(raised=(NAN, alert("dead_units"))),)))
    seq = Alerts.model_validate_json(rig.get(f"/runs/{RUN}/alerts").content).alerts[1].seq
    body = {"intent": {"kind": "acknowledge_alert", "alert": seq}}
    assert rig.post(f"/runs/{RUN}/commands", json=body).json()["status"] == "applied"


def test_alerts_are_answered_with_their_stage_and_what_is_not_finite_is_spelled(rig: Rig) -> None:
    assert rig.get(f"/runs/{RUN}/alerts").json() == {"run": RUN, "step": 4, "alerts": []}
    raise_both(rig)
    answer = rig.get(f"/runs/{RUN}/alerts").json()
    assert [view["stage"] for view in answer["alerts"]] == ["open", "acknowledged"]
    assert answer["alerts"][0]["alert"]["evidence"][0]["value"] == "NaN"
    assert answer["alerts"] == rig.get(f"/runs/{RUN}").json()["alerts"]
    (urgent,) = rig.get(f"/runs/{RUN}/alerts?attention=true").json()["alerts"]
    assert urgent["alert"]["kind"] == "non_finite"


@pytest.mark.parametrize("kind", ["acknowledge_alert", "snooze_alert"])
@pytest.mark.parametrize(("role", "status"), [("viewer", 403), ("agent", 403), ("operator", 202), ("admin", 202)])
def test_people_acknowledge_and_snooze_and_agents_do_not(rig: Rig, kind: str, role: str, status: int) -> None:
    rig.call(rig.server.report, Report(generation=1, health=(HealthChange(raised=(NAN,)),)))
    seq = rig.get(f"/runs/{RUN}/alerts").json()["alerts"][0]["seq"]
    headers = bearer(role)  # type: ignore[arg-type]
    body = {"intent": {"kind": kind, "alert": seq}}
    assert rig.web.post(f"/api/v1/runs/{RUN}/commands", json=body, headers=headers).status_code == status


@pytest.mark.parametrize("given", [0, -1, 2**53, "7", True, None])
def test_number_that_names_no_alert_is_refused_at_the_edge(rig: Rig, given: object) -> None:
    body = {"intent": {"kind": "acknowledge_alert", "alert": given}}
    assert rig.post(f"/runs/{RUN}/commands", json=body).status_code == 422

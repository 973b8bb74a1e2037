"""`steer doctor` and `steer nodes` against a gateway whose cluster is a fake one, and against none."""

import json

import pytest

from tests.cli.conftest import Steer
from tests.gateway.rig import TOKENS, LiveGateway


def test_nodes_of_any_cluster_come_through_the_gateway(idle_gateway: LiveGateway, steer: Steer) -> None:
    answer = steer("nodes")
    assert answer.exit_code == 0, answer.stderr
    head, first, second, *_ = answer.stdout.splitlines()
    assert head.split() == ["NODE", "ID", "ADDRESS", "STATE", "CPUS", "GPUS", "RELEASE", "ACTORS"]
    assert first.split()[:2] == ["head", "(head)"]
    assert second.split()[:6] == ["worker", "b2", "10.0.0.2", "DEAD", "2", "0"]
    assert "1 of 2 CPUs" in answer.stdout
    assert [node["name"] for node in json.loads(steer("nodes", "--json").stdout)["nodes"]] == ["head", "worker"]


def test_doctor_says_each_finding_and_warnings_alone_are_no_failure(idle_gateway: LiveGateway, steer: Steer) -> None:
    answer = steer("doctor")
    assert answer.exit_code == 0, answer.stdout
    lines = answer.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["ok", "ok", "ok", "warning"]
    assert lines[3].endswith("Ray: a node is dead")
    assert lines[-1] == "3 ok, 1 warnings, 0 failed"
    findings = json.loads(steer("doctor", "--json").stdout)["findings"]
    assert [finding["level"] for finding in findings] == ["ok", "ok", "ok", "warning"]


def test_doctor_names_a_role_that_may_not_check(
    idle_gateway: LiveGateway, steer: Steer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERWAY_TOKEN", TOKENS["viewer"])
    answer = steer("doctor")
    assert answer.exit_code == 1
    assert "failed" in answer.stdout.splitlines()[-2]
    assert "viewer" in answer.stdout


@pytest.mark.usefixtures("impatient")
def test_doctor_without_a_gateway_fails_with_the_reason(steer: Steer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERWAY_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("STEERWAY_TOKEN", "x")
    answer = steer("doctor")
    assert answer.exit_code == 1
    assert "no gateway answers at http://127.0.0.1:9" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "1 ok, 0 warnings, 1 failed"

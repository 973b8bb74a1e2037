"""Findings of `steer doctor`: each planted fault is named, with the node, and a sound cluster has none."""

from typing import Any

import pytest

from control_plane.actor.cluster_findings import PROXY_CALLBACK, NodeAnswer, findings_of
from control_plane.actor.node_probe import NodeReport
from control_plane.api.cluster import ClusterView, Finding, NodeInfo
from control_plane.api.head_variables import HEAD_VARIABLES, environment

SOUND = environment() | {PROXY_CALLBACK: "control_plane.gateway.proxy.middlewares", "RAY_AUTH_MODE": "token"}
HEAD = NodeInfo(name="head", node_id="a1", address="10.0.0.1", state="ALIVE", is_head=True)
WORKER = NodeInfo(name="worker", node_id="b2", address="10.0.0.2", state="ALIVE", resources={"CPU": 4.0, "GPU": 2.0})
VIEW = ClusterView(ray="2.60.0", release="0.3.0", nodes=(HEAD, WORKER), resources={"CPU": 4.0}, free={"CPU": 4.0})
REPORT = NodeReport(machine="m", release="0.3.0", python="3.11.7", ray="2.60.0", user=0, torch="2.13.0", gpus=2)
AT_HEAD = NodeAnswer(HEAD, REPORT.model_copy(update={"gcs": SOUND}))


def found(worker: NodeAnswer, head: NodeAnswer = AT_HEAD, view: ClusterView = VIEW) -> list[Finding]:
    return [finding for finding in findings_of(view, [head, worker]) if finding.level != "ok"]


def test_a_sound_cluster_has_no_warning() -> None:
    assert found(NodeAnswer(WORKER, REPORT)) == []
    names = {finding.what for finding in findings_of(VIEW, [AT_HEAD, NodeAnswer(WORKER, REPORT)])}
    assert {"Ray", "worker: release", "worker: GPUs", "worker: clock", "room for runs"} <= names


@pytest.mark.parametrize(
    ("worker", "level", "what", "why"),
    [
        (NodeAnswer(WORKER, why="ModuleNotFoundError: control_plane"), "failed", "worker: probe", "ModuleNotFound"),
        (NodeAnswer(WORKER, REPORT.model_copy(update={"release": "0.2.0"})), "failed", "worker: release", "0.2.0"),
        (NodeAnswer(WORKER, REPORT.model_copy(update={"ray": "2.59.0"})), "failed", "worker: release", "2.59.0"),
        (NodeAnswer(WORKER, REPORT.model_copy(update={"gpus": 1})), "failed", "worker: GPUs", "sees 1"),
        (NodeAnswer(WORKER, REPORT.model_copy(update={"gpus": None})), "failed", "worker: GPUs", "cannot be imported"),
        (NodeAnswer(WORKER, REPORT, offset_s=-9.0, within_s=0.1), "warning", "worker: clock", "-9"),
        (
            NodeAnswer(WORKER, REPORT, (Finding(level="failed", what="fsync", why="EIO"),)),
            "failed",
            "worker: fsync",
            "EIO",
        ),
    ],
)
def test_a_fault_of_a_node_is_named(worker: NodeAnswer, level: str, what: str, why: str) -> None:
    (finding,) = found(worker)
    assert (finding.level, finding.what) == (level, what)
    assert why in finding.why


def test_a_clock_that_may_be_right_is_not_blamed() -> None:
    assert found(NodeAnswer(WORKER, REPORT, offset_s=5.0, within_s=4.0)) == []


@pytest.mark.parametrize("name", [each.name for each in HEAD_VARIABLES if each.value != each.default])
def test_a_variable_that_the_head_lacks_is_named_with_the_command(name: str) -> None:
    gcs = {key: value for key, value in SOUND.items() if key != name}
    (finding,) = found(NodeAnswer(WORKER, REPORT), NodeAnswer(HEAD, REPORT.model_copy(update={"gcs": gcs})))
    assert finding.level == "warning"
    assert f"{name}={environment()[name]}" in finding.action


@pytest.mark.parametrize(
    ("environ", "what"),
    [
        ({k: v for k, v in SOUND.items() if k != PROXY_CALLBACK}, "head: admission control"),
        (SOUND | {"RAY_AUTH_MODE": "disabled"}, "head: Ray's token"),
        ({}, "head: variables"),
    ],
)
def test_a_head_without_proxy_token_or_readable_environment(environ: dict[str, Any], what: str) -> None:
    head = NodeAnswer(HEAD, REPORT.model_copy(update={"gcs": environ}))
    assert [finding.what for finding in found(NodeAnswer(WORKER, REPORT), head)] == [what]


def test_a_dead_node_and_a_full_cluster_are_said() -> None:
    dead = WORKER.model_copy(update={"state": "DEAD"})
    view = VIEW.model_copy(update={"nodes": (HEAD, dead), "free": {}})
    assert [finding.what for finding in findings_of(view, [AT_HEAD]) if finding.level != "ok"] == [
        "Ray",
        "room for runs",
    ]

"""Findings of `steer doctor` about a cluster: pure rules over what its nodes have answered."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from control_plane.actor.node_probe import NodeReport
from control_plane.api.cluster import ClusterView, Finding, NodeInfo
from control_plane.api.head_variables import HEAD_VARIABLES, reasons_against

PROXY_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
MAX_CLOCK_DIFFERENCE_S = 2.0
"""Times of records and logs are of different nodes; expiry of tokens is by the gateway's clock."""


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """Answer of one node's probe, or `why` there is none. `offset_s`: its clock is ahead by so much, +- `within_s`."""

    node: NodeInfo
    report: NodeReport | None = None
    storage: tuple[Finding, ...] = ()
    offset_s: float = 0.0
    within_s: float = 0.0
    why: str = ""

    @property
    def name(self) -> str:
        """Return the node's name, for a person."""
        return self.node.name


def findings_of(view: ClusterView, answers: Sequence[NodeAnswer]) -> tuple[Finding, ...]:
    """Return one finding a check, in the order in which a person would look."""
    findings = [_nodes(view)]
    for answer in answers:
        findings += _of_node(view, answer)
    head = next((answer.report for answer in answers if answer.node.is_head), None)
    return (*findings, *_of_head(head), _resources(view))


def _nodes(view: ClusterView) -> Finding:
    alive = [node for node in view.nodes if node.state == "ALIVE"]
    dead = [node.name for node in view.nodes if node.state != "ALIVE"]
    why = f"Ray {view.ray}: {len(alive)} nodes alive" + (f"; dead: {', '.join(dead)}" if dead else "")
    action = "`ray start --address=...` on a dead node joins it again" if dead else ""
    return Finding(level="warning" if dead else "ok", what="Ray", why=why, action=action)


def _of_node(view: ClusterView, answer: NodeAnswer) -> Iterable[Finding]:
    name, report = answer.name, answer.report
    if report is None:
        yield Finding(
            level="failed",
            what=f"{name}: probe",
            why=answer.why,
            action="install this release of Steerway in the Python that runs Ray there, and see its Ray logs",
        )
        return
    versions = f"Steerway {report.release}, Ray {report.ray}, Python {report.python}"
    if (report.release, report.ray) == (view.release, view.ray):
        yield Finding(level="ok", what=f"{name}: release", why=versions)
    else:
        why = f"{versions}; the gateway has Steerway {view.release}, Ray {view.ray}"
        yield Finding(level="failed", what=f"{name}: release", why=why, action="install the same releases everywhere")
    yield _gpus(answer, report)
    yield _clock(answer)
    for finding in answer.storage:
        yield finding.model_copy(update={"what": f"{name}: {finding.what}"})


def _gpus(answer: NodeAnswer, report: NodeReport) -> Finding:
    declared = answer.node.resources.get("GPU", 0)
    what = f"{answer.name}: GPUs"
    if not declared:
        return Finding(level="ok", what=what, why="Ray has none here")
    if report.gpus is None:
        why = f"Ray has {declared:g}, but torch cannot be imported there"
        return Finding(level="failed", what=what, why=why, action="install a CUDA build of torch there")
    if report.gpus < declared:
        why = f"Ray has {declared:g}, torch {report.torch} sees {report.gpus}"
        return Finding(level="failed", what=what, why=why, action="install a CUDA build of torch, or check the driver")
    return Finding(level="ok", what=what, why=f"Ray has {declared:g}, torch {report.torch} sees {report.gpus}")


def _clock(answer: NodeAnswer) -> Finding:
    ahead_s, within_s = answer.offset_s, answer.within_s
    why = f"{ahead_s:+.3f} s from the gateway's (+- {within_s:.3f} s)"
    if abs(ahead_s) - within_s > MAX_CLOCK_DIFFERENCE_S:
        return Finding(level="warning", what=f"{answer.name}: clock", why=why, action="synchronise it (NTP)")
    return Finding(level="ok", what=f"{answer.name}: clock", why=why)


def _of_head(head: NodeReport | None) -> Iterable[Finding]:
    environ = None if head is None else head.gcs or head.raylet
    if not environ:
        yield Finding(
            level="warning",
            what="head: variables",
            why="the environment of Ray's head cannot be read",
            action="see docs/deploy.md for the variables that it should have",
        )
        return
    yield from head_variables(environ)
    if environ.get("RAY_AUTH_MODE") == "token":
        yield Finding(level="ok", what="head: Ray's token", why="Ray's own interfaces require its token")
    else:
        yield Finding(
            level="warning",
            what="head: Ray's token",
            why="RAY_AUTH_MODE is not `token`: whoever reaches Ray's ports runs code on the cluster",
            action="start Ray with RAY_AUTH_MODE=token on every node, or close its ports to everybody else",
        )


def head_variables(environ: dict[str, str]) -> list[Finding]:
    """Return findings about the variables that decide how soon failures are detected, and about the proxy."""
    lacking: list[Finding] = []
    if reasons := reasons_against(environ):
        named = {reason.split(" ", 1)[0] for reason in reasons}
        exports = " ".join(f"{each.name}={each.value}" for each in HEAD_VARIABLES if each.name in named)
        lacking.append(
            Finding(
                level="warning",
                what="head: detection of cut nodes",
                why="; ".join(reasons),
                action=f"before `ray start`, on every node: export {exports}",
            )
        )
    if not environ.get(PROXY_CALLBACK):
        lacking.append(
            Finding(
                level="warning",
                what="head: admission control",
                why=f"{PROXY_CALLBACK} is not set: floods are refused by the app, which costs it more than the proxy",
                action=f"export {PROXY_CALLBACK}=control_plane.gateway.proxy.middlewares before `ray start --head`",
            )
        )
    return lacking or [Finding(level="ok", what="head: variables", why="health checks, keepalive and proxy are set")]


def _resources(view: ClusterView) -> Finding:
    shown = [
        f"{view.free.get(name, 0):g} of {view.resources[name]:g} {name}s"
        for name in ("CPU", "GPU")
        if name in view.resources
    ]
    why = f"free: {', '.join(shown) or 'none'}"
    return Finding(level="ok" if view.free.get("CPU", 0) else "warning", what="room for runs", why=why)

"""`steer doctor`: checks of this client, of the gateway, and of every node of its cluster.

Exit code: 0 if nothing failed, 1 otherwise; warnings alone are 0.
"""

import time
from typing import Annotated

import typer

from control_plane.addresses import is_in_the_clear, plain_url
from control_plane.api.cluster import Finding
from control_plane.api.versions import release
from control_plane.cli.output.printing import tell, tell_json
from control_plane.cli.select_run import connect
from control_plane.config import Settings, settings
from control_plane.core.model.errors import NotAllowed, SteerwayError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
SLOW_ANSWER_S = 1.0


def doctor(as_json: AsJson = False) -> None:
    """Check the way to the gateway, Ray, versions, GPUs, clocks and the storage of every node. Takes seconds."""
    findings = diagnose(settings())
    if as_json:
        tell_json({"findings": [finding.model_dump() for finding in findings]})
    else:
        for finding in findings:
            tell(format_finding(finding))
        tell(summary(findings))
    raise typer.Exit(1 if any(finding.level == "failed" for finding in findings) else 0)


def diagnose(where: Settings) -> list[Finding]:
    """Return a finding for each check; the later ones are left out where an earlier one makes them impossible."""
    findings = [_address(where)]
    try:
        with connect() as client:
            began_s = time.monotonic()
            version = str(client.health().get("version"))
            findings.append(_gateway(version, time.monotonic() - began_s))
            client.runs()  # needs a token of any role
            findings.append(Finding(level="ok", what="token", why="the gateway accepts it"))
            findings += client.cluster_checks().findings
    except NotAllowed as error:
        action = "`steer token create NAME --role operator` on the cluster makes one"
        findings.append(Finding(level="failed", what="token", why=error.reason, action=action))
    except SteerwayError as error:
        what = "cluster" if len(findings) > 1 else "gateway"
        findings.append(Finding(level="failed", what=what, why=error.reason))
    return findings


def _address(where: Settings) -> Finding:
    parts = plain_url(where.gateway_url)
    if parts is not None and is_in_the_clear(parts):
        return Finding(
            level="warning",
            what="address",
            why=f"{where.gateway_url} is plain http to another machine: the token can be read on the way",
            action="use https, or a tunnel to the gateway's port",
        )
    return Finding(level="ok", what="address", why=where.gateway_url)


def _gateway(version: str, took_s: float) -> Finding:
    ours = release("unknown")
    why = f"Steerway {version} answers in {1000 * took_s:.0f} ms"
    if version != ours:
        why += f"; this client is {ours}"
        return Finding(level="warning", what="gateway", why=why, action="install the gateway's release here")
    return Finding(level="warning" if took_s > SLOW_ANSWER_S else "ok", what="gateway", why=why)


def format_finding(finding: Finding) -> str:
    """Return one line: level, what, why, and what to do."""
    line = f"{finding.level:<7}  {finding.what}" + (f": {finding.why}" if finding.why else "")
    return line + (f"; to do: {finding.action}" if finding.action else "")


def summary(findings: list[Finding]) -> str:
    """Return the number of findings of each level."""
    counts = {level: sum(finding.level == level for finding in findings) for level in ("ok", "warning", "failed")}
    return f"{counts['ok']} ok, {counts['warning']} warnings, {counts['failed']} failed"

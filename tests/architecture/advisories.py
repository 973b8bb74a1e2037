"""Known vulnerabilities of the versions in constraints.txt, asked of osv.dev through pip-audit.

`python -m tests.architecture.advisories` is a part of `make check`. It fails on an advisory that `ACCEPTED` does not
name. Without a network, or with a source that has no advisories, it says so in one line and does not fail.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "https://api.osv.dev/v1/query"
TIMEOUT_S = 15.0
KNOWN_BAD = {"package": {"name": "jinja2", "ecosystem": "PyPI"}, "version": "2.4.1"}
"""Probe: a source without an advisory about this version (a mirror, a login page, a stub) has none at all."""

ACCEPTED: dict[str, str] = {}
"""Advisory id or alias -> why that one does not reach Steerway. A line goes when its advisory is no longer found."""


@dataclass(frozen=True)
class Advisory:
    """Known vulnerability of a pinned version."""

    package: str
    version: str
    ids: tuple[str, ...]
    """Id, then aliases."""
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        fixed = " or ".join(self.fixed_in) if self.fixed_in else "no version yet"
        return (
            f"{self.package} {self.version}: {self.ids[0]} ({', '.join(self.ids[1:]) or 'no alias'}), fixed in {fixed}"
        )


class AuditFailed(Exception):
    """pip-audit ended without a report, although its source answers."""


def unreachable(source: str) -> str | None:
    """Return the reason why the source has no advisories, or None."""
    try:
        answer = httpx.post(source, json=KNOWN_BAD, timeout=TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    if not answer.is_success:
        return f"it answered {answer.status_code}"
    try:
        known = answer.json()["vulns"]
    except (ValueError, KeyError, TypeError):
        known = []
    return None if known else "it does not even know what is wrong with jinja2 2.4.1"


def audit(pins: Path, source: str) -> list[Advisory]:
    """Return the advisories about these pins. Installs and resolves nothing."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(pins), "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", "osv", "--osv-url", source, "--timeout", str(int(TIMEOUT_S))]
    command += ["--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        raise AuditFailed("\n".join(done.stderr.strip().splitlines()[-5:])) from None
    skipped = [f"{package['name']}: {package['skip_reason']}" for package in packages if "skip_reason" in package]
    if skipped or not packages:
        raise AuditFailed("not looked at: " + ("; ".join(skipped) or "anything"))
    return [
        Advisory(package["name"], package["version"], (entry["id"], *entry["aliases"]), tuple(entry["fix_versions"]))
        for package in packages
        for entry in package["vulns"]
    ]


def report(pins: Path, source: str, accepted: Mapping[str, str] = ACCEPTED) -> int:
    """Print a report; return 0 if clean or unavailable, 1 for advisories or unneeded exceptions, 2 on failure."""
    reason = unreachable(source)
    if reason is None:
        try:
            advisories = audit(pins, source)
        except AuditFailed as error:
            reason = unreachable(source)  # the network may have gone away under pip-audit
            if reason is None:
                print(f"The audit of {pins.name} failed: {error}", file=sys.stderr)
                return 2
    if reason is not None:
        print(f"{pins.name} was not looked up: {source} has no advisories ({reason}).")
        return 0
    open_ones = [advisory for advisory in advisories if not accepted.keys() & set(advisory.ids)]
    needless = sorted(accepted.keys() - {name for advisory in advisories for name in advisory.ids})
    for advisory in open_ones:
        print(f"{advisory}. Raise the pin in {pins.name}, or accept the id with a reason.", file=sys.stderr)
    for name in needless:
        print(f"{name} is accepted and no longer found: take it out of ACCEPTED.", file=sys.stderr)
    for advisory in advisories:
        if advisory not in open_ones:
            because = next(accepted[name] for name in advisory.ids if name in accepted)
            print(f"{advisory}. Accepted: {because}")
    if not open_ones:
        print(f"{pins.name}: {source} knows no advisory that is not accepted.")
    return 1 if open_ones or needless else 0


def main() -> int:
    """Run the audit from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pins", nargs="?", type=Path, default=ROOT / "constraints.txt", help="name==version a line")
    parser.add_argument("--source", default=SOURCE, help="an address that answers OSV's /v1/query")
    given = parser.parse_args()
    return report(given.pins, given.source)


if __name__ == "__main__":
    sys.exit(main())

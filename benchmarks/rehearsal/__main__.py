"""Command line of the rehearsal.

    make rehearsal                                   all of it, as root; 15 minutes on two cores
    python -m benchmarks.rehearsal [--until STEP] [--write docs/rehearsal.md]

The exit code is 0 if every step has passed, 1 if not, 2 if this machine cannot build the rig.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.network.machines import Rig
from benchmarks.network.requirements import reason_against
from benchmarks.rehearsal.machines import Place
from benchmarks.rehearsal.report import Report
from benchmarks.rehearsal.steps import STEPS, Rehearsal
from control_plane.core.model.errors import SteerwayError

CANNOT = 2


def main(arguments: Sequence[str]) -> int:
    """Run the rehearsal and return the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.rehearsal", description="From laptop to cluster, with faults.")
    names = [name for name, _ in STEPS]
    parser.add_argument("--until", choices=names, default=names[-1], help="the last step to take")
    parser.add_argument("--write", type=Path, help="document whose table is replaced")
    parser.add_argument("--keep", action="store_true", help="on a failure, print the ends of the machines' logs")
    given = parser.parse_args(arguments)
    if reason := reason_against():
        print(f"the rehearsal cannot be held here: {reason}", file=sys.stderr)
        return CANNOT
    report = Report()
    passed = False
    with Rig() as rig:
        rehearsal = Rehearsal(Place(rig), report)
        try:
            for name, step in STEPS:
                step(rehearsal)
                if name == given.until:
                    break
            passed = True
        except SteerwayError as error:
            print(f"the rehearsal has failed: {error.reason}", file=sys.stderr, flush=True)
            if given.keep:
                rehearsal.print_logs()
    print(report.table(), flush=True)
    if given.write is not None:
        report.write(given.write)
    return 0 if passed else 1


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)

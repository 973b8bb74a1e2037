"""Command line of the benchmarks.

    python -m benchmarks NAME [--json] [--n N] [--quick] [--only KINDS] [--answers FILE]
    python -m benchmarks --list

Progress goes to stderr. With `--json` the last line on stdout is one JSON object. The exit code is 0 if every target is
met, 1 if not, 2 for an invalid request, 130 after Ctrl-C.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from types import FrameType

from benchmarks.catalogue import BENCHMARKS, Benchmark, listing
from benchmarks.harness.result import Result
from control_plane.core.model.errors import SteerwayError

INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure Steerway.", epilog=listing())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", nargs="?", help="one of the benchmarks below")
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--n", type=int, help="number of repetitions, in the benchmark's unit")
    parser.add_argument("--quick", action="store_true", help="a smoke run: too short for its figures to mean anything")
    parser.add_argument("--only", help="kinds to measure, separated by commas (health)")
    parser.add_argument(
        "--answers", help="file that keeps each answer; what it has is not measured again (health, studies)"
    )
    given = parser.parse_args(arguments)
    if given.list:
        print(listing())
        return 0
    benchmark = BENCHMARKS.get(given.name)
    if benchmark is None:
        what = f"there is no benchmark {given.name!r}" if given.name else "name a benchmark"
        say(f"{what}; there are:\n{listing()}")
        return 2
    if given.n is not None and given.n < 1:
        say(f"--n is {given.n}, but {benchmark.name} needs at least 1 of its {benchmark.unit}")
        return 2
    options = {name: value for name in ("only", "answers") if (value := getattr(given, name)) is not None}
    if unknown := sorted(set(options) - benchmark.options):
        say(f"{benchmark.name} has no option --{unknown[0]}")
        return 2
    return _run(benchmark, given.n, given.quick, given.json, options)


def _run(benchmark: Benchmark, n: int | None, quick: bool, as_json: bool, options: Mapping[str, str]) -> int:
    from benchmarks.harness import conditions

    machine = conditions.machine()  # now, so that the load does not include our own
    try:
        with stdout_kept_clean():
            result = benchmark.measure(n, quick, say, options)
    except SteerwayError as error:
        say(f"{benchmark.name}: {error.reason}")
        return error.exit_code
    except (KeyboardInterrupt, SystemExit):  # Ray installs signal handlers that raise SystemExit
        say(f"{benchmark.name}: interrupted")
        return INTERRUPTED
    if as_json:
        print(json.dumps(result.to_json(benchmark.name, machine, conditions.versions()), allow_nan=False), flush=True)
    else:
        _show(benchmark.name, result)
    return 0 if result.met else 1


def _show(name: str, result: Result) -> None:
    from rich.console import Console

    from benchmarks.harness.report import show

    show(name, result, Console())


def say(line: str) -> None:
    """Print progress or an error to stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Redirect the output of libraries and child processes to stderr, so that stdout holds the result only."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def end_in_good_order() -> None:
    """Handle a closed terminal and a `kill` as Ctrl-C: end everything that was started."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    # A second Ctrl-C must not interrupt the clean-up.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    end_in_good_order()
    sys.exit(main(sys.argv[1:]))

"""Benchmarks of overhead, latency, recovery and faults; each measures both arms in one run.

    python -m benchmarks --list
    python -m benchmarks overhead --json

Times depend on the machine; so the figure of a target is a ratio against the other arm of the same run, a number of
steps, or a count.
"""

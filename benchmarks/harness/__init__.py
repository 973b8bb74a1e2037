"""Harness that all benchmarks share: ranks, runs, statistics, results."""

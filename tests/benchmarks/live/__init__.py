"""Benchmarks on a live run: their figures and verdicts."""

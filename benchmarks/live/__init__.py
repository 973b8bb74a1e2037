"""Benchmarks of commands on a live run."""

"""Benchmarks of saving: stall of a step, and torn saves."""

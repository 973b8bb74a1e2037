"""Benchmarks of what Steerway adds to a training step."""

"""Benchmarks of health checks: planted faults that must be found in time, and healthy runs that must stay silent."""

"""Benchmarks of failure detection: detection time and false alarms."""

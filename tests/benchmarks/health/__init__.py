"""Tests of the benchmark of health checks."""

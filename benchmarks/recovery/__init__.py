"""Benchmark of recovery from failures, beside the stock stack."""

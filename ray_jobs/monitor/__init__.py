"""Failure detection: one monitor process beside each rank, heartbeats over TCP, and the verdict."""

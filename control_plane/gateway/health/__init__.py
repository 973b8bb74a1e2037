"""Alerts of runs: their route, and messages about them to other services."""

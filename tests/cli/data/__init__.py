"""Tests of the commands about a run's data."""

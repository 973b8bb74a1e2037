"""Tests of the generators of a run's records."""

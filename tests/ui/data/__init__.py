"""Tests of the console's part in a run's data."""

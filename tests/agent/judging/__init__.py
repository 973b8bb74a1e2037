"""Tests of the judgements on a run's numbers."""

"""Tests of the rules for a run's agent."""

"""Tests of rounds: memory, planner, playing and the frontier."""

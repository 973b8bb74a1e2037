"""Comparison of runs, branches and replays."""

"""Agents of runs: the loop that keeps one process per run, and the route that shows it."""

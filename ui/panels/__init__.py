"""Panels of a run's page: controls and state."""

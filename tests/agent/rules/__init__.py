"""Rules of the autopilot."""

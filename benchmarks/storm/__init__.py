"""Storms of commands and of faults against a live run."""

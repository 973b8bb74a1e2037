"""Judgements on a run's numbers: when to look again, and what a change has done to the loss."""

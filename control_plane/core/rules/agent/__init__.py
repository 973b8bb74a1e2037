"""Rules for a run's agent: which proposals are made at once, and which are left to a person."""

"""Control server of one run, and the read-only view of a run whose server has ended."""

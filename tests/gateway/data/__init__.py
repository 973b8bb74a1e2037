"""Routes of a run's data, and the announcement of shards."""

"""Records of live sources: checks, shards, and the store."""

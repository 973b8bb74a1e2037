"""Records of live sources: checked against their schema, stored as immutable shards named by their hash, indexed."""

"""Checkpoints on disk: shards, signed manifests, transfer between runs, cleanup."""

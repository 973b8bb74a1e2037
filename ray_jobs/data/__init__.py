"""Deterministic data order and random number generators."""

"""Reflexes, alerts and trusted checkpoints: the rules alone."""

"""Rounds: fresh runs of one config, planned one after the other from a memory of the earlier ones; their frontier."""

"""Sharded checkpoints: save, restore, resume plan, and conversion to another number of ranks."""

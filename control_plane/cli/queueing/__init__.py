"""Subcommands of `steer` for the start queue, quotas, deletion and space."""

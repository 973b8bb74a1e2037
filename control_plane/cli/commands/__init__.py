"""Subcommands of `steer`, one module a command group."""

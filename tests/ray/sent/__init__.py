"""Runs on a real cluster whose code was sent by a client."""

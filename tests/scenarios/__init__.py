"""Transcripts: what is done to a run, and everything that comes of it."""

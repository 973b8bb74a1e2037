"""Tests of the replay without one command."""

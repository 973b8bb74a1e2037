"""Tests of agents on a real cluster."""

"""Tests of the autopilot: its gate, its rule, its loop, and a model that misbehaves."""

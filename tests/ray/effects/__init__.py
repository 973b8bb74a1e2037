"""Tests of effects on a real cluster."""

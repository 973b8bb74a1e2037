"""Tests: from the pure core to a real cluster."""

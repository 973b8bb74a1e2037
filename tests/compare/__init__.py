"""Tests of comparisons that need no run."""

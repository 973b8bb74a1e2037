"""Tests of what a model is asked, and of its answers."""

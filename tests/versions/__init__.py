"""Tests of releases side by side."""

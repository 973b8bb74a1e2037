"""Tests of control_plane/core/rules."""

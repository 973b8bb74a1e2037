"""Tests of control_plane/core/health."""

"""Tests of control_plane/core/model."""

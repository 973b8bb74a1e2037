"""Tests of the console's part in an agent's proposals."""

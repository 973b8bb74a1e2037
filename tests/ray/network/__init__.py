"""Tests on machines of their own, whose network fails."""

"""Autopilot: a language model or a rule that may double, halve or keep the learning rate, and what it is granted."""

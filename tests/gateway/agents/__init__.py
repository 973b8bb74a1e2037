"""Tests of the agents that the gateway supervises."""

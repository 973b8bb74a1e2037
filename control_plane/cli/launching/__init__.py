"""Commands that begin, continue and end runs: clients of the gateway's launch routes."""

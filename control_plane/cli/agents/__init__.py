"""Commands about a run's agent: start, stop, status, and the answers to its proposals."""

"""One machine's cluster."""

"""One rank's part in a steered run: its live training, session, and link to the control server."""

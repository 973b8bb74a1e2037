"""Live charts of the console."""

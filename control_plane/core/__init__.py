"""The words and rules of steering: no I/O, no clock, no framework."""

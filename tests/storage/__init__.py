"""The files: what is confirmed survives, and what does not verify is never guessed."""

"""Effect of one command: a replay without it, in which later commands set the values that they had set."""

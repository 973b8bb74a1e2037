"""Studies of data that comes in, or whose mixture changes, while a run trains."""

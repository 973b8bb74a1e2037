"""Sources that change while a run on a real cluster trains."""
